package nbd

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// script is a connection whose client has said everything beforehand and
// takes every reply.
type script struct {
	net.Conn // nil: only what is below is called
	said     *bytes.Reader
	heard    bytes.Buffer // written by one sender at a time
}

func (s *script) Read(p []byte) (int, error)       { return s.said.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return s.heard.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) RemoteAddr() net.Addr             { return &net.UnixAddr{Name: "script"} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

const (
	fuzzSize   = 2048     // of the device
	fuzzInput  = 16 << 10 // longest input
	fuzzMemory = 16 << 20 // an input may make the server take, over time
)

// play serves what the client has said and returns what it has heard. The
// server must come to an end, soon and without taking much memory.
func play(t *testing.T, said ...[]byte) *bytes.Buffer {
	s := &Server{
		Exports:          newShelf(t, map[string]*memory{"disk": newMemory(fuzzSize)}),
		MaxInFlightBytes: 64 << 10,
	}
	conn := &script{said: bytes.NewReader(bytes.Join(said, nil))}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.ServeConn(t.Context(), conn) // any outcome but a hang is fine
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the server hangs")
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > fuzzMemory {
		t.Errorf("the server took %d bytes", took)
	}
	return &conn.heard
}

// FuzzNegotiate throws bytes at a fresh connection.
func FuzzNegotiate(f *testing.F) {
	flags := []byte{0, 0, 0, modern}
	for _, options := range [][][]byte{
		{optionBytes(optGo, goData("disk", infoName, infoDescription, infoBlockSize))},
		{optionBytes(optInfo, goData("nobody")), optionBytes(optList, nil), optionBytes(optAbort, nil)},
		{optionBytes(optExportName, []byte("disk"))},
		{optionBytes(optStructuredReply, nil), optionBytes(optSetMetaContext, metaQuery("disk", baseAllocation, "x:")), optionBytes(optGo, goData("disk"))},
		{optionBytes(optStructuredReply, nil), optionBytes(optListMetaContext, metaQuery("disk"))},
		{optionBytes(5, nil), optionBytes(77777, []byte("data"))},
		{optionBytes(optGo, append(counted("disk"), 0xff, 0xff))},
		{optionBytes(optSetMetaContext, append(counted("disk"), 0xff, 0xff, 0xff, 0xff))},
		{[]byte("IHAVEOPT\x00\x00\x00\x06\xff\xff\xff\xff")},
		{[]byte("IHAVEOPT\x00\x00\x00\x06\x00\x02\x00\x00")},
	} {
		f.Add(append(flags, bytes.Join(options, nil)...))
	}
	f.Add([]byte{0xff, 0, 0, 0})
	f.Fuzz(func(t *testing.T, said []byte) {
		if len(said) > fuzzInput {
			t.Skip()
		}
		heard := play(t, said)
		if !bytes.HasPrefix(heard.Bytes(), []byte("NBDMAGICIHAVEOPT\x00\x03")) {
			t.Errorf("greeting is %q", heard.Bytes())
		}
	})
}

// FuzzTransmission throws bytes at an open export. With structured replies it
// takes the answers apart.
func FuzzTransmission(f *testing.F) {
	write := append(requestHeader(flagFUA, cmdWrite, 1, 100, 5), "hello"...)
	for _, requests := range [][][]byte{
		{write, requestHeader(0, cmdRead, 2, 100, 5), requestHeader(0, cmdDisc, 0, 0, 0)},
		{requestHeader(0, cmdFlush, 1, 0, 0), requestHeader(flagNoHole|flagFastZero, cmdWriteZeroes, 2, 0, fuzzSize)},
		{requestHeader(flagReqOne, cmdBlockStatus, 1, 1, 100), requestHeader(0, cmdTrim, 2, 3, 4)},
		{requestHeader(0, cmdRead, 1, 1<<64-1, 1<<32-1), requestHeader(0, cmdRead, 1, 0, maxPayload)},
		{requestHeader(0, cmdWrite, 1, 0, 1<<32-1), write},
		{requestHeader(0, cmdWrite, 1, 0, maxPayload), write},
		{requestHeader(0xffff, 0xffff, 1, 0, 0), []byte("garbage")},
	} {
		f.Add(bytes.Join(requests, nil), true)
		f.Add(bytes.Join(requests, nil), false)
	}
	flags := []byte{0, 0, 0, modern}
	chunks := bytes.Join([][]byte{flags, optionBytes(optStructuredReply, nil), optionBytes(optSetMetaContext, metaQuery("disk", baseAllocation))}, nil)
	enter := optionBytes(optGo, goData("disk"))
	f.Fuzz(func(t *testing.T, said []byte, structured bool) {
		if len(said) > fuzzInput {
			t.Skip()
		}
		if !structured {
			play(t, flags, enter, said)
			return
		}
		heard := play(t, chunks, enter, said)
		heard.Next(play(t, chunks, enter).Len()) // the negotiation
		answers := 0
		for c := (&client{tb: t, in: bufio.NewReader(heard), structured: true}); ; answers++ {
			if _, err := c.in.Peek(1); err == io.EOF {
				break
			}
			if a := c.answer(nil); len(a.data) > fuzzSize || len(a.status)%8 != 0 {
				t.Errorf("answer with %d bytes of data, %d of status", len(a.data), len(a.status))
			}
		}
		if most := len(said) / requestSize; answers > most {
			t.Errorf("%d answers to at most %d requests", answers, most)
		}
	})
}
