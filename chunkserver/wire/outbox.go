package wire

import (
	"net"
	"sync"
	"time"
)

// writeTimeout bounds how long a peer may refuse to take bytes before the
// connection is given up.
const writeTimeout = 10 * time.Second

// outbox collects frames while the previous ones are being written, so that
// one system call sends all that has gathered. What it holds is bounded by
// whoever enqueues: requests by the windows of clients, replies by requests.
type outbox struct {
	mu      sync.Mutex
	changed sync.Cond // something was put, written, or closed
	next    batch
	put     uint64 // frames ever put
	written uint64 // frames ever written
	closed  bool
}

// batch is a run of bytes with larger pieces to be inserted by reference.
type batch struct {
	bytes []byte
	cuts  []cut
}

// cut inserts data after the first at bytes of a batch.
type cut struct {
	at   int
	data []byte
}

// enqueue adds a frame. head is copied; data is referenced and must not
// change until the frame is written. It returns the frame's number, and
// false if the outbox is closed.
func (o *outbox) enqueue(h header, head, data []byte) (uint64, bool) {
	h.length = uint32(len(head) + len(data))
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return 0, false
	}
	o.next.bytes = append(h.append(o.next.bytes), head...)
	if len(data) > 0 {
		o.next.cuts = append(o.next.cuts, cut{len(o.next.bytes), data})
	}
	o.put++
	o.changed.Broadcast()
	return o.put, true
}

// run writes what is enqueued until the outbox is closed or writing fails.
func (o *outbox) run(nc net.Conn) error {
	var spare batch
	var vec net.Buffers
	for {
		o.mu.Lock()
		for o.put == o.written && !o.closed {
			o.changed.Wait()
		}
		if o.closed {
			o.mu.Unlock()
			return nil
		}
		full, last := o.next, o.put
		o.next = batch{spare.bytes[:0], spare.cuts[:0]}
		o.mu.Unlock()

		if err := nc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		vec = full.vectors(vec[:0])
		pending := vec
		if _, err := pending.WriteTo(nc); err != nil {
			return err
		}
		clear(vec)
		clear(full.cuts)
		spare = full

		o.mu.Lock()
		o.written = last
		o.changed.Broadcast()
		o.mu.Unlock()
	}
}

func (b *batch) vectors(vec net.Buffers) net.Buffers {
	from := 0
	for _, c := range b.cuts {
		vec = append(vec, b.bytes[from:c.at], c.data)
		from = c.at
	}
	if from < len(b.bytes) {
		vec = append(vec, b.bytes[from:])
	}
	return vec
}

// await waits until the frame of that number no longer references its data.
func (o *outbox) await(number uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.written < number && !o.closed {
		o.changed.Wait()
	}
}

// close drops what has not been written.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.changed.Broadcast()
}
