package wire

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
)

func frame(h header, payload string) []byte {
	h.length = uint32(len(payload))
	return append(h.append(nil), payload...)
}

func TestFrameRoundTrip(t *testing.T) {
	t.Parallel()
	want := header{kind: KindRead, flags: flagReply, code: codeFenced, id: 1<<63 + 5}
	b := append(frame(want, "hello"), frame(header{kind: KindRenew}, "")...)
	r := newReader(bytes.NewReader(b))
	got, payload, err := r.readFrame()
	want.length = 5
	if err != nil || got != want || string(payload) != "hello" {
		t.Errorf("got %+v, %q, %v", got, payload, err)
	}
	if got, payload, err = r.readFrame(); err != nil || got != (header{kind: KindRenew}) || payload != nil {
		t.Errorf("got %+v, %q, %v", got, payload, err)
	}
	if _, _, err = r.readFrame(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestFrameCutShort(t *testing.T) {
	t.Parallel()
	whole := frame(header{kind: KindRead}, "hello")
	for n := 1; n < len(whole); n++ {
		_, _, err := newReader(bytes.NewReader(whole[:n])).readFrame()
		if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) || err == io.EOF {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

// A frame that announces too much is refused before memory is taken for it.
func TestFrameTooLong(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		h := header{length: MaxPayload + 1, kind: KindRead}
		_, _, err := newReader(bytes.NewReader(h.append(nil))).readFrame()
		if err == nil || !strings.Contains(err.Error(), "announces") {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 100*(slabLen+16<<10) {
		t.Errorf("%d bytes were taken for refused frames", took)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(frame(header{kind: KindRead, id: 7}, "hello"))
	f.Add(append(frame(header{kind: KindHello}, "{}"), 1, 2, 3))
	f.Add(header{length: MaxPayload + 1}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newReader(bytes.NewReader(b))
		var again []byte
		for {
			h, payload, err := r.readFrame()
			if err != nil {
				break
			}
			if len(payload) != int(h.length) || h.length > MaxPayload {
				t.Fatalf("%d bytes for %+v", len(payload), h)
			}
			again = append(h.append(again), payload...)
		}
		if !bytes.HasPrefix(b, again) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

// Payloads share memory but no bytes, and many small ones cost next to nothing.
func TestPayloadsAreTheReceivers(t *testing.T) {
	long := strings.Repeat("x", maxInSlab+1)
	var stream []byte
	for _, payload := range []string{"first", "second", long, "third"} {
		stream = append(stream, frame(header{kind: KindRead}, payload)...)
	}
	r := newReader(bytes.NewReader(stream))
	var got []string
	var payloads [][]byte
	for range 4 {
		_, payload, err := r.readFrame()
		if err != nil {
			t.Fatal(err)
		}
		payloads = append(payloads, payload)
	}
	for i := range payloads {
		payloads[i] = append(payloads[i], "behind"...)
	}
	for i, payload := range payloads {
		payload[0] = byte('A' + i)
		got = append(got, string(payload))
	}
	want := []string{"Airstbehind", "Becondbehind", "C" + long[1:] + "behind", "Dhirdbehind"}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("payload %d is %.20q, want %.20q", i, got[i], want[i])
		}
	}

	stream = bytes.Repeat(frame(header{kind: KindRead}, string(make([]byte, 4096))), 1100)
	r = newReader(bytes.NewReader(stream))
	if allocs := testing.AllocsPerRun(1000, func() { r.readFrame() }); allocs != 0 {
		t.Errorf("%v allocations for a payload", allocs)
	}
}
