// Package coordinator is what only the metadata leader does: it keeps sessions
// with chunkservers and gateways, decides on the configuration of copysets,
// hands out attachments, takes snapshots around live writers, and drives the
// long work that the metadata asks for.
//
// # The story
//
// Everything runs in a term: from the moment this server leads and has applied
// what earlier leaders answered, until it leads no more. A [term] keeps only
// what can be lost: sessions, and when they were last heard of. What must not
// be lost is in the state (package fsm), so the next leader begins where this
// one stopped: chunkservers and gateways call it, and it finds the open jobs
// in the state.
//
// # Invariants
//
//   - Jobs act on committed facts only, and their operations are harmless to
//     repeat or to come late. So a leader that has yet to learn that it was
//     replaced does no harm.
//   - A writer that was paused goes on only with a context that is read after
//     the outcome of the command it was paused for is known. When it can't be
//     known, the connection is closed: the writer stays paused until it has
//     resumed its attachment, which voids the command if it comes later.
//   - An attachment whose gateway is gone ends only after every copyset refuses
//     its token; one that was given back has nothing in flight.
//   - A member in sync is out of the configuration before anything is acknowledged
//     without it. Where the primary does not simply go on, those in sync under the
//     new configuration have sealed the old one, and the longest history leads.
//
// # Failure of a chunkserver
//
// One that has said nothing for two seconds, counted from the beginning of the
// term at the earliest, or whose port refuses connections, has failed (watch.go). What follows from that is a pure function
// (decide.go). Its decisions are committed, for all copysets at a time, if the
// state is still what they were made on; members and gateways are told then. A
// leader that fails in between leaves nothing behind but promises, which members
// mention when the next one configures them.
//
// A member that is out and seen again is brought up to date by the primary, and
// in sync when that says so. A copyset waits for one of its last two members in
// any case.
//
// # Placement
//
// Where nothing fails, copies are moved (plan.go): away from chunkservers that
// stay away, are to leave, or are full; to those that have joined; and the role of
// the primary likewise. A move is a member more, which is brought up to date, and
// then one less: there are never fewer copies in sync meanwhile. What the next step
// is follows from the configurations, so no leader has to remember a move. Each step
// makes shares more equal, and where that can't be, nothing is moved.
package coordinator

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/localsnap/localsnap/chunkserver/wire"
	"github.com/localsnap/localsnap/cluster"
	"github.com/localsnap/localsnap/fsm"
)

// Config is what a Coordinator works with.
type Config struct {
	Node *cluster.Node
	Log  *slog.Logger

	// Patience is how long a chunkserver may say nothing before its copysets
	// go on without it, if two copies are left: DefaultPatience.
	Patience time.Duration

	// ReplaceAfter is how long a chunkserver may stay away before others get
	// its copies, counted from the beginning of the term at the earliest:
	// DefaultReplaceAfter.
	ReplaceAfter time.Duration
}

// DefaultReplaceAfter is longer than a machine takes to start anew.
const DefaultReplaceAfter = 10 * time.Minute

// DefaultPatience is four times as long as a chunkserver takes between two signs
// of life.
const DefaultPatience = 2 * time.Second

// Coordinator is this server's part in leading the cluster. Its methods may be
// called at any time; while the server does not lead they refuse with
// cluster.ErrNotLeader.
type Coordinator struct {
	cfg  Config
	node *cluster.Node
	log  *slog.Logger

	mu   sync.Mutex
	term *term // nil while this server does not lead
}

// New returns a coordinator, which Run sets going.
func New(cfg Config) *Coordinator {
	cfg.Patience = cmp.Or(cfg.Patience, DefaultPatience)
	cfg.ReplaceAfter = cmp.Or(cfg.ReplaceAfter, DefaultReplaceAfter)
	return &Coordinator{cfg: cfg, node: cfg.Node, log: cfg.Log}
}

// Run serves chunkservers and gateways on control, and leads whenever this
// server is the leader, until ctx ends.
func (c *Coordinator) Run(ctx context.Context, control net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var leading sync.WaitGroup
	leading.Go(func() { c.node.Lead(ctx, c.lead) })
	sessions := wire.Server{Accept: c.accept, Log: c.log}
	err := sessions.Serve(ctx, control)
	cancel()
	leading.Wait()
	if err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	return nil
}

// lead runs one term.
func (c *Coordinator) lead(ctx context.Context) {
	t, err := newTerm(ctx, c.cfg)
	for err != nil {
		c.log.Warn("can't begin to lead, trying again", "err", err)
		if !wait(ctx, time.Second) {
			return
		}
		t, err = newTerm(ctx, c.cfg)
	}
	c.setTerm(t)
	t.run()
	c.setTerm(nil)
	t.closeSessions()
}

func (c *Coordinator) setTerm(t *term) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.term = t
}

// current returns the present term.
func (c *Coordinator) current() (*term, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.term == nil {
		return nil, cluster.ErrNotLeader
	}
	return c.term, nil
}

// accept decides on the greeting of a chunkserver or gateway.
func (c *Coordinator) accept(conn *wire.Conn, hello wire.Hello) (wire.Handler, error) {
	t, err := c.current()
	if err != nil {
		leader, _ := c.node.Leader()
		return nil, wire.NotLeader(leader.Control)
	}
	return t.accept(conn, hello)
}

// Do carries out one command of a user and returns its value, or the
// *fsm.Error with which it was refused.
func (c *Coordinator) Do(ctx context.Context, command fsm.Command) (any, error) {
	t, err := c.current()
	if err != nil {
		return nil, err
	}
	value, err := t.do(ctx, command)
	t.ring()
	return value, err
}

// Read calls fn with a state that includes everything answered before.
func (c *Coordinator) Read(ctx context.Context, fn func(*fsm.State) error) error {
	return c.node.Read(ctx, fn)
}

// Leader tells whether this server leads, and else where the leader's users
// reach it, if that is known. A server that is about to lead is not known yet.
func (c *Coordinator) Leader() (apiAddress string, self, known bool) {
	if _, err := c.current(); err == nil {
		return c.node.Self().API, true, true
	}
	leader, ok := c.node.Leader()
	if !ok || leader.ID == c.node.Self().ID {
		return "", false, false
	}
	return leader.API, false, true
}
