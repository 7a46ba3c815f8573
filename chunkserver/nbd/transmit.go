package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// transmission is a connection's second phase. One goroutine reads requests;
// each request then has its own until its reply is queued.
type transmission struct {
	session
	conn    net.Conn
	in      *bufio.Reader
	log     *slog.Logger
	drain   time.Duration
	budget  *budget
	replies replies

	requests context.Context // of all requests; ends when their time is up
	running  sync.WaitGroup
	failures atomic.Int64 // requests that met an input/output error
}

// errDrained is the cause with which requests are cut off.
var errDrained = errors.New("connection ended, and the time to drain is over")

func newTransmission(conn net.Conn, in *bufio.Reader, chosen session, limits *Server, log *slog.Logger) *transmission {
	t := &transmission{
		session: chosen,
		conn:    conn,
		in:      in,
		log:     log,
		drain:   limits.DrainTimeout,
		budget:  newBudget(limits.MaxInFlight, limits.MaxInFlightBytes),
	}
	t.replies = replies{conn: conn, sent: t.release}
	return t
}

// run serves requests until the connection ends, however it does, and returns
// when none is left. The error is nil after DISC.
func (t *transmission) run(ctx context.Context) error {
	requests, cutOff := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cutOff(nil)
	t.requests = requests

	var timer *time.Timer
	drain := sync.OnceFunc(func() {
		t.conn.SetReadDeadline(longAgo)
		t.conn.SetWriteDeadline(time.Now().Add(t.drain))
		timer = time.AfterFunc(t.drain, func() { cutOff(errDrained) })
	})
	stop := context.AfterFunc(ctx, drain)
	defer stop()

	err := t.read(ctx)
	drain()
	defer timer.Stop()
	t.running.Wait()
	if n := t.failures.Load(); n > 1 {
		t.log.Warn("nbd: requests failed", "count", n)
	}
	if failed := t.replies.err; failed != nil {
		return fmt.Errorf("send replies: %w", failed)
	}
	return err
}

// read starts a goroutine per request until DISC, the end of ctx, or an error.
func (t *transmission) read(ctx context.Context) error {
	for ctx.Err() == nil {
		r, err := t.next()
		if err != nil {
			return err
		}
		if r.command == cmdDisc {
			t.release(r)
			return nil
		}
		t.running.Add(1)
		go t.serve(r)
	}
	return ctx.Err()
}

// next reads a request with its data and admits it.
func (t *transmission) next() (*request, error) {
	raw, err := t.in.Peek(requestSize)
	if err != nil {
		if len(raw) > 0 {
			err = midMessage(err)
		}
		return nil, err
	}
	if magic := binary.BigEndian.Uint32(raw); magic != magicRequest {
		return nil, fmt.Errorf("request begins with %#x", magic)
	}
	r := newRequest(raw)
	t.in.Discard(requestSize)
	r.refusal = t.check(r)

	data := r.command <= cmdWrite && r.refusal == nil
	if data {
		_, size := bufferClass(int(r.length))
		r.cost = int64(size)
	}
	t.budget.acquire(r.cost)
	if data {
		r.buffer = takeBuffer(int(r.length))
	}
	if r.command == cmdWrite {
		err = t.receive(r)
	}
	if err != nil {
		t.release(r)
		return nil, err
	}
	return r, nil
}

// receive reads the data of a WRITE, or reads over it if it is refused.
func (t *transmission) receive(r *request) (err error) {
	switch {
	case r.buffer != nil:
		_, err = io.ReadFull(t.in, r.data())
	case r.length <= maxDiscard:
		_, err = t.in.Discard(int(r.length))
	default:
		err = fmt.Errorf("write of %d bytes", r.length)
	}
	return midMessage(err)
}

// command says what a request may ask for.
type command struct {
	name     string // empty: there is no such command
	flags    uint16 // besides FUA, which all have
	writes   bool   // changes the device
	data     bool   // carries length bytes, in the request or in the reply
	pastEnd  error  // refusal of a range that isn't within the device
	unranged bool   // has no range
}

var commands = [...]command{
	cmdRead:        {name: "read", flags: flagDF, data: true, pastEnd: ErrInvalid},
	cmdWrite:       {name: "write", writes: true, data: true, pastEnd: ErrNoSpace},
	cmdDisc:        {name: "disconnect", unranged: true},
	cmdFlush:       {name: "flush", unranged: true},
	cmdTrim:        {name: "trim", writes: true, pastEnd: ErrInvalid},
	cmdWriteZeroes: {name: "write zeroes", flags: flagNoHole | flagFastZero, writes: true, pastEnd: ErrNoSpace},
	cmdBlockStatus: {name: "block status", flags: flagReqOne, pastEnd: ErrInvalid},
}

// check returns why a request is not for the device, nil if it is.
func (t *transmission) check(r *request) error {
	var c command
	if int(r.command) < len(commands) {
		c = commands[r.command]
	}
	if r.command == cmdDisc {
		return nil // whatever else it says
	}
	unknown := r.flags &^ (c.flags | flagFUA)
	if !t.structured {
		unknown |= r.flags & flagDF
	}
	size := uint64(t.info.Size)
	switch {
	case c.name == "":
		return fmt.Errorf("%w: unknown command %d", ErrInvalid, r.command)
	case unknown != 0:
		return fmt.Errorf("%w: %s with flags %#x", ErrInvalid, c.name, unknown)
	case c.writes && t.info.ReadOnly:
		return ErrReadOnly
	case r.command == cmdBlockStatus && !t.allocation:
		return fmt.Errorf("%w: no metadata context was selected", ErrInvalid)
	case c.unranged:
		return nil
	case r.length == 0:
		return fmt.Errorf("%w: %s of no bytes", ErrInvalid, c.name)
	case c.data && r.length > maxPayload:
		return fmt.Errorf("%w: %s of %d bytes", ErrInvalid, c.name, r.length)
	case r.offset > size || uint64(r.length) > size-r.offset:
		return fmt.Errorf("%w: %s of %d bytes at %d of %d", c.pastEnd, c.name, r.length, r.offset, size)
	}
	return nil
}

// serve works on a request and queues its reply.
func (t *transmission) serve(r *request) {
	defer t.running.Done()
	err := r.refusal
	if err == nil {
		err = t.execute(r)
	}
	if err != nil && judge(err).errno == errnoIO && t.failures.Add(1) == 1 {
		// The first is enough: a broken device would fill the log.
		t.log.Warn("nbd: request failed", "command", commands[r.command].name,
			"offset", r.offset, "length", r.length, "error", err)
	}
	r.encodeReply(t.structured, err)
	t.replies.send(r)
}

// execute has the device do what the request says.
func (t *transmission) execute(r *request) (err error) {
	ctx, offset, length := t.requests, int64(r.offset), int64(r.length)
	switch r.command {
	case cmdRead:
		return t.device.ReadAt(ctx, r.data(), offset)
	case cmdFlush:
		return t.device.Flush(ctx)
	case cmdBlockStatus:
		return t.blockStatus(ctx, r)
	case cmdWrite:
		err = t.device.WriteAt(ctx, r.data(), offset)
	case cmdTrim:
		err = t.device.Discard(ctx, offset, length)
	case cmdWriteZeroes:
		err = t.device.Zero(ctx, offset, length, r.flags&flagNoHole == 0)
	}
	if err == nil && r.flags&flagFUA != 0 {
		err = t.device.Flush(ctx)
	}
	return err
}

// blockStatus gathers the descriptors of a reply, neighbours that are alike
// as one.
func (t *transmission) blockStatus(ctx context.Context, r *request) error {
	extents, err := t.device.Extents(ctx, int64(r.offset), int64(r.length))
	if err != nil {
		return err
	}
	limit := maxExtents
	if r.flags&flagReqOne != 0 {
		limit = 1
	}
	var merged []Extent
	for left := int64(r.length); left > 0 && len(extents) > 0; extents = extents[1:] {
		e := extents[0]
		if e.Length <= 0 {
			return fmt.Errorf("device returned an extent of %d bytes", e.Length)
		}
		e.Length = min(e.Length, left)
		left -= e.Length
		if last := len(merged) - 1; last >= 0 && merged[last].Hole == e.Hole && merged[last].Zero == e.Zero {
			merged[last].Length += e.Length
		} else if len(merged) < limit {
			merged = append(merged, e)
		} else {
			break
		}
	}
	if len(merged) == 0 {
		return errors.New("device returned no extents")
	}
	r.status = appendStatus(nil, merged)
	return nil
}

// release takes back what a request holds, when its reply is out or dropped.
func (t *transmission) release(r *request) {
	t.budget.release(r.cost)
	r.free()
}
