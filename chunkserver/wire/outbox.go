package wire

import (
	"net"
	"sync"
	"time"
)

const (
	// writeTimeout bounds how long a peer may take over writeSize bytes
	// before the connection is given up.
	writeTimeout = 10 * time.Second
	writeSize    = 4 << 20
)

// outbox collects frames while the previous ones are being written, so that
// one system call sends all that has gathered. What it holds is bounded by
// whoever enqueues: requests by the windows of clients; replies by requests,
// none of which is read while the outbox holds more than maxPendingBytes.
type outbox struct {
	mu      sync.Mutex
	changed sync.Cond // something was put, written, or closed
	next    batch
	put     uint64 // frames ever put
	written uint64 // frames ever written
	size    int    // bytes put and not yet written
	closed  bool   // nothing more is put or written
	stopped bool   // run has returned and references nothing any more
}

// batch is a run of bytes with larger pieces to be inserted by reference.
type batch struct {
	bytes []byte
	cuts  []cut
	size  int
}

// cut inserts data after the first at bytes of a batch.
type cut struct {
	at   int
	data []byte
}

// enqueue adds a frame. head is copied; data is referenced and must not
// change until the frame is written. It returns the frame's number, or 0 if
// the outbox is closed.
func (o *outbox) enqueue(h header, head, data []byte) uint64 {
	h.length = uint32(len(head) + len(data))
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return 0
	}
	o.next.bytes = append(h.append(o.next.bytes), head...)
	if len(data) > 0 {
		o.next.cuts = append(o.next.cuts, cut{len(o.next.bytes), data})
	}
	o.next.size += headerLen + int(h.length)
	o.size += headerLen + int(h.length)
	o.put++
	o.changed.Broadcast()
	return o.put
}

// run writes what is enqueued until the outbox is closed or writing fails.
func (o *outbox) run(nc net.Conn) error {
	defer o.stop()
	var spare batch
	var vec net.Buffers
	var stretch net.Buffers // on the heap, once, as WriteTo has it escape
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
		o.next = batch{bytes: spare.bytes[:0], cuts: spare.cuts[:0]}
		o.mu.Unlock()

		vec = full.vectors(vec[:0])
		if err := write(nc, vec, &stretch); err != nil {
			return err
		}
		clear(vec)
		clear(full.cuts)
		spare = full

		o.mu.Lock()
		o.written = last
		o.size -= full.size
		o.changed.Broadcast()
		o.mu.Unlock()
	}
}

// write writes vec in stretches of about writeSize bytes, with stretch for the
// present one.
func write(nc net.Conn, vec net.Buffers, stretch *net.Buffers) error {
	for len(vec) > 0 {
		n, size := 0, 0
		for n < len(vec) && size < writeSize {
			size += len(vec[n])
			n++
		}
		if err := nc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		*stretch = vec[:n]
		if _, err := stretch.WriteTo(nc); err != nil {
			return err
		}
		vec = vec[n:]
	}
	return nil
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
	for o.written < number && !o.stopped {
		o.changed.Wait()
	}
}

// drain waits while more than limit bytes have not been written.
func (o *outbox) drain(limit int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.size > limit && !o.closed {
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

// stop is what run does last.
func (o *outbox) stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed, o.stopped = true, true
	o.changed.Broadcast()
}
