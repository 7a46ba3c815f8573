package cluster

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"github.com/localsnap/localsnap/fsm"
)

func TestLeaderServes(t *testing.T) {
	t.Parallel()
	c := startTrio(t)
	leader := c.node[c.leader()]
	ctx := t.Context()

	value, err := leader.Apply(ctx, register(1, "one"))
	if n, ok := value.(fsm.Node); err != nil || !ok || n.Address != "one" {
		t.Errorf("Apply = %#v, %v", value, err)
	}
	if got, err := get(ctx, leader, 1); err != nil || got != "one" {
		t.Errorf("Read = %q, %v", got, err)
	}
	_, err = leader.Apply(ctx, register(2, ""))
	if refusal, ok := err.(*fsm.Error); !ok || refusal.Kind != fsm.InvalidArgument {
		t.Errorf("Apply of what is refused: %#v, want the *fsm.Error itself", err)
	}
	asked := errors.New("asked")
	if err := leader.Read(ctx, func(*fsm.State) error { return asked }); err != asked {
		t.Errorf("Read returns %v, not what its function does", err)
	}
	c.settled()
}

func TestFollowerRefuses(t *testing.T) {
	t.Parallel()
	c := startTrio(t)
	leader := c.leader()
	c.put(1, "one")
	for i, n := range c.node {
		if s, ok := n.Leader(); !ok || s != c.config[0].Servers[leader] {
			t.Errorf("%s takes %v for the leader", n.Self().ID, s)
		}
		if i == leader {
			continue
		}
		if _, err := n.Apply(t.Context(), register(1, "two")); !errors.Is(err, ErrNotLeader) || errors.Is(err, ErrUnknown) {
			t.Errorf("Apply at a follower: %v", err)
		}
		if _, err := get(t.Context(), n, 1); !errors.Is(err, ErrNotLeader) {
			t.Errorf("Read at a follower: %v", err)
		}
		c.until("the follower's own state", func() (found bool) {
			if err := n.ReadLocal(func(s *fsm.State) error { found = values(s)[1] == "one"; return nil }); err != nil {
				t.Fatal(err)
			}
			return found
		})
	}
}

// Every acknowledged command is there after its leader has died.
func TestLeaderDies(t *testing.T) {
	t.Parallel()
	c := startTrio(t)
	want := make(map[uint64]string)
	for round := range uint64(3) {
		for i := range uint64(5) {
			k, v := round*5+i, fmt.Sprint(round, i)
			c.put(k, v)
			want[k] = v
		}
		leader := c.leader()
		c.kill(leader)
		start := time.Now()
		next := c.node[c.leader()]
		t.Logf("replaced after %v", time.Since(start).Round(time.Millisecond))
		if err := next.Read(t.Context(), func(s *fsm.State) error {
			if diff := cmp.Diff(want, values(s)); diff != "" {
				t.Errorf("after %s died (-acknowledged +found):\n%s", c.config[leader].ID, diff)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		c.start(leader)
	}
	c.settled()
}

// A leader without a majority confirms nothing and answers nothing, and what it
// had taken on is gone or done, but not both.
func TestPartitionedLeader(t *testing.T) {
	t.Parallel()
	c := startTrio(t)
	c.put(1, "before")
	old := c.leader()
	deposed := c.node[old]
	c.net.sever(deposed.self.Raft, true)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := deposed.Apply(ctx, register(2, "lost")); !errors.Is(err, ErrUnknown) || errors.Is(err, ErrNotLeader) || ctx.Err() != nil {
		t.Errorf("Apply without a majority: %v", err)
	}
	if v, err := get(ctx, deposed, 1); !errors.Is(err, ErrNotLeader) || errors.Is(err, ErrUnknown) || ctx.Err() != nil {
		t.Errorf("Read without a majority: %q, %v", v, err)
	}
	c.node[old] = nil // the others' leader is meant
	c.put(1, "after")
	c.node[old] = deposed
	if v, err := get(ctx, deposed, 1); err == nil {
		t.Errorf("the deposed leader answers %q", v)
	}
	c.net.heal()
	c.settled()
	if v, err := get(ctx, c.node[c.leader()], 1); err != nil || v != "after" {
		t.Errorf("after the partition: %q, %v", v, err)
	}
	if v, err := get(ctx, c.node[c.leader()], 2); err != nil || v != "" {
		t.Errorf("what the deposed leader took on: %q, %v", v, err)
	}
}

// A leader that didn't run for a while gets answers to what it asked before.
// None of them may count for a question asked now.
func TestPausedLeader(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	c.config[0].Timeout = patience // the pause: it does not notice that time passes
	c.startAll()
	paused := c.node[0]
	c.until("a to lead", func() bool {
		other := c.node[c.leader()]
		return other == paused || other.raft.LeadershipTransferToServer("a", "a:1").Error() == nil && paused.raft.State() == raft.Leader
	})
	c.put(1, "before")

	release := c.net.hold(paused.self.Raft)
	defer release()
	c.net.sever(paused.self.Raft, false)
	c.node[0] = nil
	c.put(1, "after")
	c.node[0] = paused
	if paused.raft.State() != raft.Leader {
		t.Fatal("the paused leader has heard of the other")
	}

	type answer struct {
		value string
		err   error
	}
	answers := make(chan answer)
	go func() {
		v, err := get(t.Context(), paused, 1)
		answers <- answer{v, err}
	}()
	c.until("the question", func() bool { return len(paused.slots) > 0 })
	release()
	c.net.heal()
	if a := <-answers; a.err == nil && a.value != "after" || a.err != nil && !errors.Is(a.err, ErrNotLeader) {
		t.Errorf("the paused leader answers %q, %v", a.value, a.err)
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	for i := range c.config {
		c.config[i].Timeout = time.Second // a leader without a majority waits so long
	}
	c.startAll()
	leader := c.node[c.leader()]
	c.net.sever(leader.self.Raft, true)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := leader.Apply(ctx, register(1, "one")); !errors.Is(err, ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Apply when time is up: %v", err)
	}
	if _, err := leader.Apply(ctx, register(1, "one")); errors.Is(err, ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Apply when time was up before: %v", err)
	}
	ended, end := context.WithCancelCause(t.Context())
	end(errLost)
	if _, err := leader.Apply(ended, register(1, "one")); errors.Is(err, ErrUnknown) || !errors.Is(err, ErrNotLeader) {
		t.Errorf("Apply in a term that is over: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := get(ctx, leader, 1); errors.Is(err, ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Read when time is up: %v", err)
	}
}

func TestRequestsAreBounded(t *testing.T) {
	t.Parallel()
	c := startTrio(t)
	leader := c.node[c.leader()]
	for range cap(leader.slots) {
		leader.slots <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := leader.Apply(ctx, register(1, "one")); errors.Is(err, ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Apply while as many wait: %v", err)
	}
	for range cap(leader.slots) {
		<-leader.slots
	}
	c.put(1, "one")
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ err, want error }{
		{nil, nil},
		{raft.ErrNotLeader, ErrNotLeader},
		{raft.ErrLeadershipTransferInProgress, ErrNotLeader},
		{raft.ErrLeadershipLost, ErrUnknown},
		{raft.ErrRaftShutdown, ErrUnknown}, // also of what is committed
		{errors.New("disk"), ErrUnknown},
	} {
		got := outcome(test.err)
		for _, kind := range []error{ErrNotLeader, ErrUnknown} {
			if errors.Is(got, kind) != (kind == test.want) {
				t.Errorf("outcome(%v) = %v, want %v", test.err, got, test.want)
			}
		}
		if !errors.Is(got, test.err) {
			t.Errorf("outcome(%v) = %v hides it", test.err, got)
		}
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	t.Run("hands over", func(t *testing.T) {
		t.Parallel()
		c := newTrio(t)
		for i := range c.config {
			c.config[i].Timeout = 2 * time.Second // an election alone takes longer
		}
		c.startAll()
		leader := c.leader()
		start := time.Now()
		c.stop(leader)
		c.leader()
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("leadership was handed over only within %v", took)
		}
	})
	t.Run("without a majority", func(t *testing.T) {
		t.Parallel()
		c := startTrio(t)
		leader := c.leader()
		n := c.node[leader]
		for i := range c.node {
			if i != leader {
				c.kill(i)
			}
		}
		applied := make(chan error)
		go func() {
			_, err := n.Apply(t.Context(), register(1, "one"))
			applied <- err
		}()
		promptly(t, "Close", func() { c.stop(leader) })
		if err := <-applied; !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrNotLeader) {
			t.Errorf("Apply while closing: %v", err)
		}
		if _, err := n.Apply(t.Context(), register(1, "one")); !errors.Is(err, ErrNotLeader) {
			t.Errorf("Apply after Close: %v", err)
		}
		if err := n.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}
