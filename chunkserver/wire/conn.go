// Package wire carries requests between the roles: framed binary messages on
// TCP, pipelined, answered in any order, with either end asking.
//
// A connection begins with a [Hello], which tells who is calling and from
// which session. A session has one connection: when it calls again, the older
// connection is closed, and everything that was read from it has been handed
// on, before the newer one is welcomed. A copy of a write that lingers in a
// dead connection can therefore never be applied after its retry.
//
// On the data plane a client [Conn] submits operations and reads to the
// primary of a copyset, and primaries stream [replica.Message]s to the other
// members. On the control plane chunkservers and gateways keep a session with
// the metadata leader, which calls back on the same connection.
package wire

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// maxPending bounds the requests of one connection that are being worked on,
// and maxPendingBytes their payloads, as well as the replies that the peer has
// not taken yet; beyond any of these nothing more is read.
const (
	maxPending      = 1024
	maxPendingBytes = 64 << 20
)

// Handler works on what arrives at a connection.
type Handler interface {
	// Handle is called for each request and one-way message in the order
	// of arrival, on the connection's reading goroutine: what may block
	// belongs into Request.Go.
	Handle(*Request)
	// Closed is called once, after the last Handle has returned.
	Closed(*Conn, error)
}

// Deaf is the Handler of an end that is asked nothing, and refuses, for others
// too, what they were not made for.
type Deaf struct{}

// Handle refuses the request.
func (Deaf) Handle(r *Request) {
	r.Refuse(fmt.Errorf("%w: request of kind %d is not for here", chunk.ErrInvalid, r.Kind))
}

// Closed does nothing.
func (Deaf) Closed(*Conn, error) {}

// Conn is one end of a connection. Both ends may make requests.
type Conn struct {
	nc      net.Conn
	in      *reader
	handler Handler
	out     outbox
	ctx     context.Context // ends with the connection
	cancel  context.CancelCauseFunc
	done    sync.WaitGroup

	mu      sync.Mutex
	calls   map[uint64]func(payload []byte, err error) // nil once closed
	lastID  uint64
	pending int // requests being worked on
	bytes   int // of their payloads
	drained sync.Cond
}

// newConn makes a connection, of which only in has been used so far. start
// sets it going.
func newConn(nc net.Conn, in *reader) *Conn {
	c := &Conn{nc: nc, in: in, calls: make(map[uint64]func([]byte, error))}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.out.changed.L = &c.out.mu
	c.drained.L = &c.mu
	return c
}

func (c *Conn) start(h Handler) {
	c.handler = h
	c.done.Go(func() {
		if err := c.out.run(c.nc); err != nil {
			c.fail(fmt.Errorf("write to %v: %w", c.nc.RemoteAddr(), err))
		}
	})
	c.done.Go(func() {
		err := c.read()
		c.fail(fmt.Errorf("read from %v: %w", c.nc.RemoteAddr(), err))
		c.handler.Closed(c, context.Cause(c.ctx))
	})
}

// Close ends the connection and waits until everything that was begun on it
// has returned. It must not be called from a Handler.
func (c *Conn) Close() {
	c.fail(chunk.ErrStopped)
	c.done.Wait()
}

// Done is closed when the connection has ended, for whatever reason.
func (c *Conn) Done() <-chan struct{} { return c.ctx.Done() }

// Err tells why the connection has ended; nil while it lives.
func (c *Conn) Err() error { return context.Cause(c.ctx) }

// fail ends the connection for a reason, without waiting.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	calls := c.calls
	c.calls = nil
	c.cancel(err)
	c.drained.Broadcast()
	c.mu.Unlock()
	if calls == nil {
		return
	}
	c.out.close()
	c.nc.Close()
	c.out.await(math.MaxUint64) // then no call's data is referenced any more
	for _, done := range calls {
		done(nil, fmt.Errorf("%w: connection lost: %w", ErrUnavailable, err))
	}
}

// Start makes a request: done is called once, with the reply's payload or an
// error, from another goroutine and without blocking. An error that wraps
// ErrUnavailable leaves open whether the request was carried out. head is
// copied; data must not change before done is called.
func (c *Conn) Start(kind Kind, head, data []byte, done func(payload []byte, err error)) {
	c.begin(kind, head, data, done)
}

func (c *Conn) begin(kind Kind, head, data []byte, done func([]byte, error)) (id, frame uint64) {
	c.mu.Lock()
	if c.calls == nil {
		c.mu.Unlock()
		done(nil, fmt.Errorf("%w: connection lost: %w", ErrUnavailable, c.Err()))
		return 0, 0
	}
	c.lastID++
	id = c.lastID
	c.calls[id] = done
	c.mu.Unlock()
	frame = c.out.enqueue(header{kind: kind, id: id}, head, data) // a closed outbox comes with fail, which calls done
	return id, frame
}

// Call makes a request and waits for its reply or the end of ctx. When it
// returns, data is no longer referenced.
func (c *Conn) Call(ctx context.Context, kind Kind, head, data []byte) ([]byte, error) {
	w := waiters.Get().(*waiter)
	id, frame := c.begin(kind, head, data, w.done)
	select {
	case r := <-w.replied:
		waiters.Put(w) // unlike one that was given up, which done may yet be called of
		return r.payload, r.err
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.calls, id)
		c.mu.Unlock()
		if len(data) > 0 {
			c.out.await(frame)
		}
		return nil, fmt.Errorf("%w: no reply from %v: %w", ErrUnavailable, c.nc.RemoteAddr(), ctx.Err())
	}
}

// waiter is a Call that waits. It is used again when it has been replied to.
type waiter struct {
	replied chan reply
	done    func([]byte, error)
}

type reply struct {
	payload []byte
	err     error
}

var waiters = sync.Pool{New: func() any {
	w := &waiter{replied: make(chan reply, 1)}
	w.done = func(p []byte, err error) { w.replied <- reply{p, err} }
	return w
}}

// Tell sends a message that has no reply. head is copied; data must never
// change again. A message that can't be sent is lost with the connection.
func (c *Conn) Tell(kind Kind, head, data []byte) {
	c.out.enqueue(header{kind: kind, flags: flagOneWay}, head, data)
}

// read hands on what arrives until the connection ends.
func (c *Conn) read() error {
	var requests []Request // made many at a time
	for {
		h, payload, err := c.in.readFrame()
		if err != nil {
			return err
		}
		if h.flags&flagReply != 0 {
			c.replied(h, payload)
			continue
		}
		if len(requests) == 0 {
			requests = make([]Request, 32)
		}
		r := &requests[0]
		requests = requests[1:]
		*r = Request{Kind: h.kind, Payload: payload, conn: c, id: h.id, oneWay: h.flags&flagOneWay != 0}
		if !r.oneWay && !c.admit(len(payload)) {
			return c.Err()
		}
		c.handler.Handle(r)
	}
}

func (c *Conn) replied(h header, payload []byte) {
	c.mu.Lock()
	done := c.calls[h.id]
	delete(c.calls, h.id)
	c.mu.Unlock()
	switch {
	case done == nil: // given up by Call
	case h.code == codeOK:
		done(payload, nil)
	default:
		done(nil, remoteError(h.code, payload))
	}
}

// admit counts a request in, after waiting for room. False: connection ended.
func (c *Conn) admit(n int) bool {
	c.out.drain(maxPendingBytes)
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.calls != nil && c.pending > 0 && (c.pending >= maxPending || c.bytes+n > maxPendingBytes) {
		c.drained.Wait()
	}
	c.pending++
	c.bytes += n
	return c.calls != nil
}

// Request is something that the peer asked or told.
type Request struct {
	Kind    Kind
	Payload []byte // the receiver's to keep

	conn   *Conn
	id     uint64
	oneWay bool
}

// Conn is the connection that the request came on.
func (r *Request) Conn() *Conn { return r.conn }

// Reply answers a request, once; a one-way message takes no answer. head is
// copied, data must never change again.
func (r *Request) Reply(head, data []byte) { r.reply(codeOK, head, data) }

// Refuse answers a request with an error.
func (r *Request) Refuse(err error) {
	text := err.Error()
	var remote *RemoteError
	if errors.As(err, &remote) {
		text = remote.Text
	}
	r.reply(codeOf(err), []byte(text), nil)
}

func (r *Request) reply(code Code, head, data []byte) {
	if r.oneWay {
		return
	}
	c := r.conn
	c.out.enqueue(header{kind: r.Kind, flags: flagReply, code: code, id: r.id}, head, data)
	c.mu.Lock()
	c.pending--
	c.bytes -= len(r.Payload)
	c.drained.Signal()
	c.mu.Unlock()
}

// Go works on the request in a goroutine of its connection, with a context
// that ends with it.
func (r *Request) Go(work func(ctx context.Context)) {
	r.conn.done.Go(func() { work(r.conn.ctx) })
}
