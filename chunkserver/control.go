package chunkserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/replica"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

const (
	// heartbeatPeriod is the time between two signs of life to the leader.
	heartbeatPeriod = 500 * time.Millisecond
	// leaderTimeout bounds how long a server may take to welcome the
	// session or to answer. One that takes longer is given up for another.
	leaderTimeout = 3 * time.Second
	// room is how many bytes must fit into a store that is not full.
	room = 16 << 20
)

// lead keeps a session with the metadata leader until the server stops.
func (s *Server) lead() {
	wait := leastPause
	for s.ctx.Err() == nil {
		registered, err := s.seek()
		if s.ctx.Err() != nil {
			return
		}
		s.log.Info("no session with the metadata leader", "err", err)
		if registered {
			wait = leastPause
		}
		wait = pause(s.ctx, wait)
	}
}

// seek tries each metadata server in turn, and whom they name, until a session
// with the leader has begun, and ended.
func (s *Server) seek() (registered bool, err error) {
	var failures []error
	tried := make(map[string]bool)
	for queue := slices.Clone(s.cfg.Servers); len(queue) > 0; {
		address := queue[0]
		queue = queue[1:]
		if tried[address] {
			continue
		}
		tried[address] = true
		registered, err := s.attend(address)
		if registered {
			return true, err
		}
		failures = append(failures, err)
		if leader := wire.LeaderOf(err); leader != "" {
			queue = slices.Insert(queue, 0, leader)
		}
	}
	return false, errors.Join(failures...)
}

// attend registers with a metadata server and heartbeats until the session
// ends.
func (s *Server) attend(address string) (registered bool, err error) {
	s.mu.Lock()
	hello := wire.Hello{
		Role:    wire.RoleChunkserver,
		Cluster: s.cluster,
		Session: fmt.Sprintf("%s/%x", s.store.ID(), s.incarnation),
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(s.ctx, leaderTimeout)
	defer cancel()
	conn, err := wire.Dial(ctx, s.cfg.Dial, address, hello, leaderCalls{s})
	if err != nil {
		return false, err
	}
	defer conn.Close()
	req := wire.Register{Store: s.store.ID(), Incarnation: s.incarnation, Address: s.cfg.Address}
	var resp wire.Registered
	if err := wire.Ask(ctx, conn, wire.KindRegister, req, &resp); err != nil {
		return false, fmt.Errorf("register: %w", err)
	}
	if err := s.join(resp.Node, resp.Cluster); err != nil {
		return false, fmt.Errorf("join: %w", err)
	}
	s.log.Info("registered", "leader", address, "node", resp.Node)
	return true, s.heartbeats(conn)
}

// heartbeats gives signs of life until the connection or the server ends.
func (s *Server) heartbeats(conn *wire.Conn) error {
	tick := time.NewTicker(heartbeatPeriod)
	defer tick.Stop()
	for {
		if err := s.heartbeat(conn); err != nil {
			return fmt.Errorf("heartbeat: %w", err)
		}
		select {
		case <-tick.C:
		case <-s.news:
		case <-conn.Done():
			return conn.Err()
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

func (s *Server) heartbeat(conn *wire.Conn) error {
	usage, err := s.store.Usage()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, leaderTimeout)
	defer cancel()
	sign := wire.Heartbeat{Used: usage.Used, Free: usage.Free, Full: s.store.Admit(room) != nil, Reports: s.reports()}
	return wire.Ask(ctx, conn, wire.KindHeartbeat, sign, nil)
}

// reports is what the primaries here have to tell about the members of their
// copysets.
func (s *Server) reports() (reports []wire.Report) {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.copysets))
	s.mu.Unlock()
	for _, c := range all {
		c.mu.Lock()
		report := c.reported()
		c.mu.Unlock()
		if len(report.Synced)+len(report.Lagging) > 0 {
			reports = append(reports, report)
		}
	}
	return reports
}

// ring has the leader told at once what is new.
func (s *Server) ring() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// leaderCalls handles what the metadata leader asks.
type leaderCalls struct{ s *Server }

func (leaderCalls) Closed(*wire.Conn, error) {}

func (h leaderCalls) Handle(r *wire.Request) {
	switch r.Kind {
	case wire.KindConfigure:
		wire.Answer(r, h.s.configure)
	case wire.KindSeal:
		wire.Answer(r, h.s.seal)
	case wire.KindChunks:
		wire.Answer(r, func(_ context.Context, req wire.Chunks) ([]uint32, error) {
			return h.s.store.Chunks(req.Volumes)
		})
	case wire.KindDigest:
		wire.Answer(r, h.s.digest)
	case wire.KindSubmit:
		h.s.submit(r, chunk.OpFence, chunk.OpPurge, chunk.OpFlatten)
	default:
		wire.Deaf{}.Handle(r)
	}
}

// awaitJoin waits until the answer to the registration, which the leader may
// send right before its first request, has been taken in.
func (s *Server) awaitJoin(ctx context.Context) error {
	select {
	case <-s.joined:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// configure returns when every copyset named has taken in its configuration, or
// has promised not to. They do so at the same time, to share the store's syncs.
func (s *Server) configure(ctx context.Context, req wire.Configure) (done wire.Configured, err error) {
	if err := s.awaitJoin(ctx); err != nil {
		return done, err
	}
	s.meet(req.Peers)
	errs := make([]error, len(req.Copysets))
	var all sync.WaitGroup
	for i, config := range req.Copysets {
		all.Go(func() { errs[i] = s.take(config) })
	}
	all.Wait()
	for _, config := range req.Copysets {
		if c := s.known(config.ID); c != nil && c.promised() > config.Epoch {
			done.Sealed = append(done.Sealed, config.ID)
		}
	}
	return done, errors.Join(errs...)
}

// take takes in a configuration. What is here of a copyset that has no member
// here is dropped.
func (s *Server) take(config chunk.Copyset) error {
	if config.Member(s.node) != nil {
		return s.copyset(config.ID).step(replica.Configure{Config: config})
	}
	c := s.known(config.ID)
	if c == nil {
		return nil
	}
	if err := c.step(replica.Configure{Config: config}); err != nil {
		return err
	}
	return c.drop(config.Epoch)
}

// seal returns the ends of all histories named, or an error if any copyset
// refuses.
func (s *Server) seal(ctx context.Context, req wire.Seal) ([]wire.Sealed, error) {
	if err := s.awaitJoin(ctx); err != nil {
		return nil, err
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var sealed []wire.Sealed
	var errs []error
	for id, epoch := range req.Epochs {
		all.Go(func() {
			s.copyset(id).ask(func(t replica.Ticket) replica.Event {
				return replica.Seal{Ticket: t, Epoch: epoch}
			}, func(r replica.Reply) {
				mu.Lock()
				defer mu.Unlock()
				if r.Err != nil {
					errs = append(errs, fmt.Errorf("seal copyset %d: %w", id, r.Err))
					return
				}
				sealed = append(sealed, wire.Sealed{Copyset: id, Epoch: r.LastEpoch, LSN: r.Last})
			})
		})
	}
	all.Wait() // a Seal is answered within its step
	slices.SortFunc(sealed, func(a, b wire.Sealed) int { return cmp.Compare(a.Copyset, b.Copyset) })
	return sealed, errors.Join(errs...)
}
