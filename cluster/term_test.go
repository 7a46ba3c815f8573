package cluster

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/localsnap/localsnap/fsm"
)

// duty runs Lead at a member and records its calls.
type duty struct {
	t      testing.TB
	n      *Node
	terms  chan context.Context // of each call
	quit   chan struct{}        // calls return early
	inside atomic.Int32
	done   sync.WaitGroup
}

func startDuty(ctx context.Context, t testing.TB, n *Node) *duty {
	d := &duty{t: t, n: n, terms: make(chan context.Context, 64), quit: make(chan struct{})}
	d.done.Go(func() { n.Lead(ctx, d.call) })
	return d
}

func (d *duty) call(term context.Context) {
	if d.inside.Add(1) > 1 {
		d.t.Errorf("%s: two calls at once", d.n.self.ID)
	}
	defer d.inside.Add(-1)
	d.terms <- term
	select {
	case <-term.Done():
	case <-d.quit:
	}
}

func (d *duty) wait() { promptly(d.t, "Lead", d.done.Wait) }

func TestLead(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	c.startAll()
	var duties [3]*duty
	for i, n := range c.node {
		duties[i] = startDuty(t.Context(), t, n)
	}
	for range 6 {
		leader := c.leader()
		term := <-duties[leader].terms
		if c.node[leader].raft.State() == raft.Leader && term.Err() != nil {
			t.Errorf("%s leads, but its term has ended: %v", c.config[leader].ID, context.Cause(term))
		}
		next := (leader + 1) % 3
		s := c.config[next].Servers[next]
		c.until("a transfer", func() bool {
			return c.node[leader].raft.State() != raft.Leader ||
				c.node[leader].raft.LeadershipTransferToServer(raft.ServerID(s.ID), raft.ServerAddress(s.Raft)).Error() == nil
		})
		<-term.Done()
		if cause := context.Cause(term); !errors.Is(cause, errLost) || !errors.Is(cause, ErrNotLeader) {
			t.Errorf("%s lost its leadership, and its term ended with %v", c.config[leader].ID, cause)
		}
	}
	leader := c.leader()
	term := <-duties[leader].terms
	for i := range c.node {
		c.stop(i)
		duties[i].wait()
	}
	if cause := context.Cause(term); !errors.Is(cause, errClosed) {
		t.Errorf("the member was closed, and its term ended with %v", cause)
	}
}

// A new leader starts its work with all that was acknowledged before.
func TestLeadSeesAll(t *testing.T) {
	t.Parallel()
	c := startTrio(t)
	old := c.leader()
	c.put(1, "one")
	seen := make(chan string, 3)
	var done sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for i, n := range c.node {
		if i == old {
			continue
		}
		done.Go(func() {
			n.Lead(ctx, func(term context.Context) {
				if err := n.ReadLocal(func(s *fsm.State) error { seen <- values(s)[1]; return nil }); err != nil {
					t.Error(err)
				}
			})
		})
	}
	c.kill(old)
	if v := <-seen; v != "one" {
		t.Errorf("a leader begins with %q", v)
	}
	cancel()
	promptly(t, "Lead", done.Wait)
}

// A call that goes on after its term holds up the next.
func TestLeadDoesNotOverlap(t *testing.T) {
	t.Parallel()
	c := startTrio(t)
	leader := c.leader()
	n := c.node[leader]
	calls, finish := make(chan context.Context), make(chan struct{})
	var done sync.WaitGroup
	var inside atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	done.Go(func() {
		n.Lead(ctx, func(term context.Context) {
			if inside.Add(1) > 1 {
				t.Error("two calls at once")
			}
			defer inside.Add(-1)
			calls <- term
			<-finish
		})
	})
	first := <-calls
	n.endTerm(errLost)
	n.beginTerm()
	if err := first.Err(); err == nil {
		t.Error("the first term goes on")
	}
	for i := range uint64(5) { // all that a second call waits for passes
		c.put(i, "one")
	}
	finish <- struct{}{}
	second := <-calls
	if second.Err() != nil {
		t.Errorf("the second term has ended: %v", context.Cause(second))
	}
	cancel()
	<-second.Done()
	close(finish)
	promptly(t, "Lead", done.Wait)
}

// A call that returns early is not repeated in its term.
func TestLeadOncePerTerm(t *testing.T) {
	t.Parallel()
	c := startTrio(t)
	ctx, cancel := context.WithCancel(t.Context())
	leader := c.node[c.leader()]
	term := leader.raft.CurrentTerm()
	d := startDuty(ctx, t, leader)
	close(d.quit)
	<-d.terms
	c.put(1, "one")
	if len(d.terms) > 0 && leader.raft.CurrentTerm() == term {
		t.Error("Lead called again in one term")
	}
	cancel()
	d.wait()
}
