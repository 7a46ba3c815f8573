package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
	"github.com/localsnap/localsnap/fsm"
)

// callTimeout bounds how long a chunkserver may take to answer.
const callTimeout = 5 * time.Second

// chunkserver is the session of a chunkserver.
type chunkserver struct {
	term *term
	conn *wire.Conn

	// What follows is guarded by term.mu.
	node    fsm.Node                        // zero until registered
	told    map[chunk.CopysetID]chunk.Epoch // configurations that it has confirmed
	telling bool                            // it is being told others
	sign    wire.Heartbeat                  // the last one
}

// Handle answers what the chunkserver asks.
func (s *chunkserver) Handle(r *wire.Request) {
	s.term.hear(s)
	switch r.Kind {
	case wire.KindRegister:
		wire.Answer(r, s.register)
	case wire.KindHeartbeat:
		wire.Answer(r, s.heartbeat)
	default:
		wire.Deaf{}.Handle(r)
	}
}

func (s *chunkserver) heartbeat(_ context.Context, sign wire.Heartbeat) (struct{}, error) {
	t := s.term
	t.mu.Lock()
	news := sign.Full != s.sign.Full || !slices.EqualFunc(sign.Reports, s.sign.Reports, wire.Report.Equal)
	s.sign = sign
	t.mu.Unlock()
	if news {
		t.ring()
	}
	return struct{}{}, nil
}

// Closed ends the session.
func (s *chunkserver) Closed(conn *wire.Conn, err error) {
	t := s.term
	t.forget(conn)
	t.mu.Lock()
	known := s.node.ID != 0
	if t.chunkservers[s.node.ID] == s {
		delete(t.chunkservers, s.node.ID)
	}
	t.mu.Unlock()
	if known {
		t.log.Info("lost chunkserver", "node", s.node.ID, "address", s.node.Address, "err", err)
		t.ring()
	}
}

// hear notes that a chunkserver has said something.
func (t *term) hear(s *chunkserver) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.node.ID != 0 {
		t.heard[s.node.ID] = time.Now()
	}
}

func (s *chunkserver) register(ctx context.Context, req wire.Register) (wire.Registered, error) {
	store, err := uuid.Parse(req.Store)
	if err != nil {
		return wire.Registered{}, fmt.Errorf("%w: store %q: %w", chunk.ErrInvalid, req.Store, err)
	}
	t := s.term
	ctx, cancel := t.within(ctx)
	defer cancel()
	value, err := t.node.Apply(ctx, fsm.RegisterNode{Store: store, Address: req.Address, Incarnation: req.Incarnation})
	if err != nil {
		return wire.Registered{}, refusal(err)
	}
	node := value.(fsm.Node)
	t.mu.Lock()
	s.node = node
	t.chunkservers[node.ID] = s
	t.heard[node.ID] = time.Now()
	delete(t.gone, node.ID)
	t.mu.Unlock()
	t.log.Info("chunkserver registered", "node", node.ID, "address", node.Address)
	t.ring()
	return wire.Registered{Cluster: t.cluster.String(), Node: node.ID}, nil
}

// submit has an operation committed in a copyset, however long it takes.
func (t *term) submit(ctx context.Context, copyset chunk.CopysetID, op chunk.Op) error {
	for {
		err := t.trySubmit(ctx, copyset, op)
		retry := errors.Is(err, chunk.ErrStaleEpoch) || errors.Is(err, chunk.ErrNotReady) ||
			errors.Is(err, chunk.ErrStopped) || errors.Is(err, wire.ErrUnavailable)
		if !retry {
			return err
		}
		if !wait(ctx, 50*time.Millisecond) {
			return fmt.Errorf("%v in copyset %d: %w", op.Kind, copyset, errors.Join(ctx.Err(), err))
		}
	}
}

func (t *term) trySubmit(ctx context.Context, copyset chunk.CopysetID, op chunk.Op) error {
	t.mu.Lock()
	if int(copyset) >= len(t.copysets) {
		t.mu.Unlock()
		return fmt.Errorf("%w: copyset %d is not known yet", wire.ErrUnavailable, copyset)
	}
	config := t.copysets[copyset]
	primary := t.chunkservers[config.Primary]
	t.mu.Unlock()
	if primary == nil {
		return fmt.Errorf("%w: chunkserver %d, primary of copyset %d, is away", wire.ErrUnavailable, config.Primary, copyset)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	request := wire.Submit{Copyset: copyset, Epoch: config.Epoch, Op: op}
	_, err := primary.conn.Call(ctx, wire.KindSubmit, request.AppendHead(nil), op.Data)
	return err
}

// fence makes every copyset refuse what an attachment may still have on its
// way. Later attachments have larger tokens.
func (t *term) fence(ctx context.Context, a fsm.Attachment) error {
	t.mu.Lock()
	n := len(t.copysets)
	t.mu.Unlock()
	fence := chunk.Op{
		Kind:  chunk.OpFence,
		Ref:   chunk.Ref{Volume: a.Volume},
		Token: chunk.Token{Attachment: a.ID, Seq: chunk.MaxSeq},
	}
	return parallel(ctx, n, n, func(ctx context.Context, i int) error {
		return t.submit(ctx, chunk.CopysetID(i), fence)
	})
}

// chunks lists the chunks that have layers in any of the volumes. It asks so
// many chunkservers that an in-sync member of every copyset is among them.
func (t *term) chunks(ctx context.Context, volumes []chunk.VolumeID) ([]uint32, error) {
	t.mu.Lock()
	var asked []*chunkserver
	for id, s := range t.chunkservers {
		if slices.ContainsFunc(t.copysets, func(c chunk.Copyset) bool {
			m := c.Member(id)
			return m != nil && m.State == chunk.InSync
		}) {
			asked = append(asked, s)
		}
	}
	uncovered := slices.IndexFunc(t.copysets, func(c chunk.Copyset) bool {
		return !slices.ContainsFunc(c.Members, func(m chunk.Member) bool {
			return m.State == chunk.InSync && t.chunkservers[m.Node] != nil
		})
	})
	t.mu.Unlock()
	if uncovered >= 0 {
		return nil, fmt.Errorf("%w: no in-sync member of copyset %d is connected", wire.ErrUnavailable, uncovered)
	}
	var mu sync.Mutex
	var all []uint32
	err := parallel(ctx, len(asked), len(asked), func(ctx context.Context, i int) error {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		var found []uint32
		if err := wire.Ask(ctx, asked[i].conn, wire.KindChunks, wire.Chunks{Volumes: volumes}, &found); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, found...)
		return nil
	})
	slices.Sort(all)
	return slices.Compact(all), err
}

// parallel calls work for 0 to n-1, at most width at a time, and returns the
// first error, after which it begins nothing more.
func parallel(ctx context.Context, n, width int, work func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	next := make(chan int)
	for range min(n, width) {
		running.Go(func() {
			for i := range next {
				if err := work(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := 0; i < n && ctx.Err() == nil; i++ {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	running.Wait()
	return context.Cause(ctx)
}
