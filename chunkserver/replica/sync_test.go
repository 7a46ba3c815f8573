package replica

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// syncingPeer returns a primary whose member 2 is in sync, and 3 is syncing on
// the stream of round 1.
func syncingPeer(s State) *Core {
	c := New(1, 1, s)
	c.Step(Configure{configuration(chunk.InSync, chunk.InSync, chunk.Syncing)})
	c.Step(Receive{2, Message{Kind: Status, Epoch: 5, Round: 1, LSN: s.Last, Last: s.Last, LastEpoch: s.LastEpoch}})
	c.Step(Receive{3, Message{Kind: Status, Epoch: 5, Round: 1}})
	return c
}

// TestBackPressure: a member that is syncing holds operations back when it is
// too far behind, until it catches up, loses its stream, or is given up.
func TestBackPressure(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Core) Effects{
		"caught up":      func(c *Core) Effects { return c.Step(Receive{3, Message{Kind: Ack, Epoch: 5, LSN: 1}}) },
		"new connection": func(c *Core) Effects { return c.Step(PeerUp{3}) },
		"given up": func(c *Core) Effects {
			for range maxIdle - 1 {
				if effects := c.Step(Tick{}); len(effects.Journal) > 0 {
					t.Errorf("goes on after too short a while")
				}
			}
			return c.Step(Tick{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := syncingPeer(State{})
			c.Step(Receive{3, Message{Kind: Ack, Epoch: 5}})
			for i := range maxBehind {
				if effects := c.Step(Submit{Ticket: Ticket(i + 1), Epoch: 5, Op: write(i)}); len(effects.Journal) != 1 {
					t.Fatalf("operation %d waits", i+1)
				}
			}
			c.Step(Receive{2, Message{Kind: Ack, Epoch: 5, LSN: maxBehind}})
			if effects := c.Step(Submit{Ticket: 100, Epoch: 5, Op: write(100)}); len(effects.Journal)+len(effects.Reply) != 0 {
				t.Fatalf("does not wait: %+v", effects)
			}
			effects := end(c)
			if len(effects.Journal) != 1 || effects.Journal[0].LSN != maxBehind+1 {
				t.Errorf("does not go on: %+v", effects)
			}
			again := c.Step(Receive{3, Message{Kind: Status, Epoch: 5, Round: 1}})
			if len(again.Send) > 0 {
				t.Errorf("goes on with the same stream: %+v", again.Send)
			}
			if synced, lagging := c.Report(); len(synced) > 0 || slices.Contains(lagging, 3) != (name == "given up") {
				t.Errorf("reports %v synced, %v lagging", synced, lagging)
			}
		})
	}
}

// TestWhatWaitsIsAnswered: what waits for a hold or to be ordered is sent away
// with the epoch, and the end of a hold is no use behind it.
func TestWhatWaitsIsAnswered(t *testing.T) {
	t.Parallel()
	c := syncingPeer(State{})
	op := write(0)
	c.Step(Hold{Ticket: 1, Epoch: 5, Node: 3, Round: 1, Ref: op.Ref, Off: op.Off, Len: op.Len})
	c.Step(Submit{Ticket: 2, Epoch: 5, Op: write(1)})
	c.Step(Hold{Ticket: 3, Epoch: 5, Node: 3, Round: 1, Ref: op.Ref, Off: op.Off, Len: op.Len})
	c.Step(Submit{Ticket: 4, Epoch: 5, Op: op})
	var tickets []Ticket
	for _, r := range c.Step(Seal{Ticket: 5, Epoch: 6}).Reply {
		if stale := errors.Is(r.Err, chunk.ErrStaleEpoch); stale != (r.Ticket != 5) {
			t.Errorf("answer to %d: %v", r.Ticket, r.Err)
		}
		tickets = append(tickets, r.Ticket)
	}
	if slices.Sort(tickets); !slices.Equal(tickets, []Ticket{2, 3, 4, 5}) {
		t.Errorf("answers %v", tickets)
	}
	if effects := c.Step(Release{Ticket: 1, Copy: &chunk.Copy{}}); len(effects.Send)+len(effects.Reply) != 0 {
		t.Errorf("releases after the end: %+v", effects)
	}
}

// TestFencedWhileWaiting: a writer that is replaced while its operation waits
// for a hold is shut out, too.
func TestFencedWhileWaiting(t *testing.T) {
	t.Parallel()
	c := syncingPeer(State{})
	op := write(0)
	c.Step(Hold{Ticket: 1, Epoch: 5, Node: 3, Round: 1, Ref: op.Ref, Off: op.Off, Len: op.Len})
	c.Step(Submit{Ticket: 2, Epoch: 5, Op: op})
	c.Step(Submit{Ticket: 3, Epoch: 5, Op: chunk.Op{Kind: chunk.OpFence, Ref: op.Ref, Token: chunk.Token{Attachment: 2, Seq: 1}}})
	effects := c.Step(Release{Ticket: 1})
	if len(effects.Journal) != 0 || len(effects.Reply) != 1 || !errors.Is(effects.Reply[0].Err, chunk.ErrFenced) {
		t.Errorf("after the hold: %+v", effects)
	}
}

// TestTokensArriveWhole: however many volumes there are, a member that is put
// on a stream knows the tokens of all of them, and of no others.
func TestTokensArriveWhole(t *testing.T) {
	t.Parallel()
	tokens := make(map[chunk.VolumeID]chunk.Token)
	for v := range chunk.VolumeID(2*maxTokens + 1) {
		tokens[v+1] = chunk.Token{Attachment: uint64(v) + 1, Seq: 1}
	}
	c := New(1, 1, State{Tokens: tokens})
	c.Step(Configure{configuration(chunk.InSync, chunk.InSync, chunk.Syncing)})
	member := New(3, 1, State{Tokens: map[chunk.VolumeID]chunk.Token{1 << 40: {Attachment: 9, Seq: 9}}})
	config := c.Config()
	member.Step(Receive{1, Message{Kind: Probe, Epoch: 5, Round: 1, Config: &config}})
	var reset *History
	for _, e := range c.Step(Receive{3, Message{Kind: Status, Epoch: 5, Round: 1}}).Send {
		if len(e.Message.Tokens) > maxTokens {
			t.Errorf("a message with %d tokens", len(e.Message.Tokens))
		}
		if effects := member.Step(Receive{1, e.Message}); effects.Reset != nil {
			reset = effects.Reset
		}
	}
	if reset == nil || !maps.Equal(reset.Tokens, tokens) || !maps.Equal(member.tokens, tokens) {
		t.Errorf("not all tokens have come")
	}
	if primary, epoch, round, ok := member.Pulling(); primary != 1 || epoch != 5 || round != 1 || !ok {
		t.Errorf("pulls from %d in epoch %d, round %d: %v", primary, epoch, round, ok)
	}
}

// TestStanding: a run has a part in the copyset only if a configuration names
// it, and until it promises a larger epoch.
func TestStanding(t *testing.T) {
	t.Parallel()
	for _, state := range []chunk.MemberState{chunk.InSync, chunk.Syncing, chunk.Out} {
		config := configuration(chunk.InSync, state)
		for _, test := range []struct {
			node chunk.NodeID
			run  chunk.Incarnation
			want chunk.MemberState
		}{{2, 1, state}, {2, 2, 0}, {3, 1, 0}} {
			c := New(test.node, test.run, State{})
			effects := c.Step(Configure{config})
			if got := c.Standing(); got != test.want {
				t.Errorf("run %d of node %d is %v, want %v", test.run, test.node, got, test.want)
			}
			if effects.Trust != (test.want == chunk.InSync) {
				t.Errorf("a member that is %v is trusted: %v", test.want, effects.Trust)
			}
			if _, _, _, ok := c.Pulling(); ok {
				t.Errorf("a member that is %v pulls before it is on a stream", test.want)
			}
			if c.Step(Seal{Ticket: 1, Epoch: 6}); c.Standing() != 0 {
				t.Errorf("is %v behind the end of its epoch", c.Standing())
			}
		}
	}
}

// TestStrangersTakeNoPart: a member that is out, or that a configuration does
// not name, heeds nothing that its primary says.
func TestStrangersTakeNoPart(t *testing.T) {
	t.Parallel()
	for _, node := range []chunk.NodeID{3, 4} {
		config := configuration(chunk.InSync, chunk.InSync, chunk.Out)
		c := New(node, 1, State{})
		c.Step(Configure{config})
		for _, m := range []Message{
			{Kind: Probe, Epoch: 5, Round: 1, Config: &config},
			{Kind: Tokens, Epoch: 5, Round: 1},
			{Kind: Reset, Epoch: 5, Round: 1, LSN: 3, LastEpoch: 4},
			{Kind: Copy, Epoch: 5, Round: 1, Copy: &chunk.Copy{}},
			{Kind: Append, Epoch: 5, Entry: chunk.Entry{Epoch: 5, LSN: 1, Op: write(0)}},
			{Kind: Commit, Epoch: 5, LSN: 1},
		} {
			e := c.Step(Receive{1, m})
			if e.Reset != nil || len(e.Journal)+len(e.Copies)+len(e.Send) > 0 || e.Trust || e.Commit != 0 {
				t.Errorf("node %d heeds a %v: %+v", node, m.Kind, e)
			}
		}
	}
}
