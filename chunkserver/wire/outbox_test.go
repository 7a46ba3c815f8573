package wire

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// Frames of any size, with and without data, arrive whole and in the order in
// which each sender sent them, however many gather in one write.
func TestOutboxKeepsFramesWholeAndInOrder(t *testing.T) {
	t.Parallel()
	const senders, frames = 4, 300
	near, far := net.Pipe()
	c := newConn(near, newReader(near))
	c.start(silent())
	defer far.Close()
	defer c.Close()
	var wg sync.WaitGroup
	for s := range senders {
		rng := rand.New(rand.NewPCG(1, uint64(s)))
		wg.Go(func() {
			for i := range frames {
				n := rng.IntN(2000)
				if rng.IntN(50) == 0 {
					n = rng.IntN(writeSize)
				}
				payload := binary.LittleEndian.AppendUint32([]byte{byte(s)}, uint32(i))
				payload = append(payload, bytes.Repeat([]byte{byte(i)}, n)...)
				cut := rng.IntN(len(payload) + 1)
				c.Tell(Kind(s+1), payload[:cut], payload[cut:])
			}
		})
	}
	in := newReader(far)
	var next [senders]int
	for range senders * frames {
		h, payload, err := in.readFrame()
		if err != nil {
			t.Fatal(err)
		}
		s, i := int(payload[0]), int(binary.LittleEndian.Uint32(payload[1:]))
		if int(h.kind) != s+1 || i != next[s] {
			t.Fatalf("frame %d of sender %d where %d was due", i, s, next[s])
		}
		if rest := payload[5:]; bytes.Count(rest, []byte{byte(i)}) != len(rest) {
			t.Fatalf("frame %d of sender %d is damaged", i, s)
		}
		next[s]++
	}
	wg.Wait()
	c.out.await(senders * frames)
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.size != 0 || c.out.next.size != 0 {
		t.Errorf("%d bytes are accounted for when all are written", c.out.size)
	}
}
