package chunkserver

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/replica"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// clientCalls handles what clients ask on the data plane.
type clientCalls struct{ s *Server }

func (clientCalls) Closed(*wire.Conn, error) {}

func (h clientCalls) Handle(r *wire.Request) {
	switch r.Kind {
	case wire.KindSubmit:
		h.s.submit(r, chunk.OpWrite, chunk.OpZero)
	case wire.KindRead:
		h.s.read(r, chunk.MaxOp, h.s.readData)
	case wire.KindExtents:
		h.s.read(r, chunk.Size, h.s.readExtents)
	default:
		wire.Deaf{}.Handle(r)
	}
}

// submit has an operation of one of some kinds ordered before it returns, so
// that operations keep the order in which they came. It blocks while the store's
// queue is full.
func (s *Server) submit(r *wire.Request, kinds ...chunk.OpKind) {
	req, err := wire.ParseSubmit(r.Payload)
	if err == nil && !slices.Contains(kinds, req.Op.Kind) {
		err = fmt.Errorf("%w: %v is not for the caller to submit", chunk.ErrInvalid, req.Op.Kind)
	}
	if err != nil {
		r.Refuse(err)
		return
	}
	c := s.known(req.Copyset)
	if c == nil {
		r.Refuse(chunk.ErrNotReady)
		return
	}
	if n := growth(&req.Op); n > 0 {
		if err := s.store.Admit(n); err != nil {
			r.Refuse(err)
			return
		}
	}
	began := time.Now()
	c.ask(func(t replica.Ticket) replica.Event {
		return replica.Submit{Ticket: t, Epoch: req.Epoch, Op: req.Op}
	}, func(reply replica.Reply) {
		if reply.Err != nil {
			r.Refuse(reply.Err)
			return
		}
		s.pace.observe(time.Since(began))
		r.Reply(nil, nil)
	})
}

// growth is the number of bytes by which an operation may fill the store.
func growth(op *chunk.Op) int {
	if op.Kind == chunk.OpWrite || op.Kind == chunk.OpFlatten {
		return int(op.Len)
	}
	return 0
}

// content reads the answer to a request from the store.
type content func(view *chunk.View, ref chunk.Ref, off, n uint32) ([]byte, error)

func (s *Server) readData(view *chunk.View, ref chunk.Ref, off, n uint32) ([]byte, error) {
	p := make([]byte, n)
	return p, s.store.ReadAt(view, ref, p, off)
}

func (s *Server) readExtents(view *chunk.View, ref chunk.Ref, off, n uint32) ([]byte, error) {
	found, err := s.store.Extents(view, ref, off, n)
	if err != nil {
		return nil, err
	}
	extents := make([]wire.Extent, len(found))
	for i, e := range found {
		extents[i] = wire.Extent{Len: e.Len, Data: e.Data}
	}
	return wire.AppendExtents(nil, extents), nil
}

// read answers a request for a range of at most limit bytes.
func (s *Server) read(r *wire.Request, limit uint32, get content) {
	req, err := wire.ParseRead(r.Payload, limit)
	if err != nil {
		r.Refuse(err)
		return
	}
	c := s.known(req.Copyset)
	if c == nil {
		r.Refuse(chunk.ErrNotReady)
		return
	}
	view, err := s.views.parse(req.View)
	if err != nil {
		r.Refuse(err)
		return
	}
	r.Go(func(ctx context.Context) {
		weight := int64(min(req.Len, chunk.MaxOp))
		if err := s.reading.Acquire(ctx, weight); err != nil {
			r.Refuse(err)
			return
		}
		ask := replica.Read{Epoch: req.Epoch, Ref: chunk.Ref{Volume: view.Volume(), Index: req.Index}, Off: req.Off, Len: req.Len}
		var data []byte
		// The core knows why an epoch isn't served, and refuses the same.
		if c.serving.Load() == uint64(req.Epoch) {
			err = s.mended(ctx, func() (err error) {
				data, err = get(view, ask.Ref, req.Off, req.Len)
				return err
			})
			if err != nil {
				s.reading.Release(weight)
				r.Refuse(err)
				return
			}
		}
		c.ask(func(t replica.Ticket) replica.Event {
			ask.Ticket = t
			return ask
		}, func(reply replica.Reply) {
			s.reading.Release(weight)
			switch {
			case reply.Err != nil:
				r.Refuse(reply.Err)
			case data == nil: // the epoch has been served only since
				r.Refuse(chunk.ErrNotReady)
			default:
				r.Reply(nil, data)
			}
		})
	})
}

// maxViews bounds the views that are remembered.
const maxViews = 4096

// views remembers the views that were asked for, as reads name the same ones
// over and over. The zero value is empty.
type views struct {
	mu    sync.Mutex
	known map[string]*chunk.View // by encoding
}

// parse returns the view that fills b.
func (v *views) parse(b []byte) (*chunk.View, error) {
	v.mu.Lock()
	view := v.known[string(b)]
	v.mu.Unlock()
	if view != nil {
		return view, nil
	}
	view, rest, err := chunk.ParseView(b)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes behind a view", chunk.ErrInvalid, len(rest))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.known) >= maxViews || v.known == nil {
		v.known = make(map[string]*chunk.View)
	}
	v.known[view.Key()] = view
	return view, nil
}
