package replica

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// configuration is one of nodes that all run as 1; node 1 is the primary.
func configuration(states ...chunk.MemberState) chunk.Copyset {
	c := chunk.Copyset{ID: 9, Epoch: 5, Primary: 1}
	for i, s := range states {
		c.Members = append(c.Members, chunk.Member{Node: chunk.NodeID(i + 1), Incarnation: 1, State: s})
	}
	return c
}

func write(block int) chunk.Op {
	return chunk.Op{
		Kind:  chunk.OpWrite,
		Ref:   chunk.Ref{Volume: 5},
		Token: chunk.Token{Attachment: 1, Seq: 1},
		Off:   uint32(block * chunk.BlockSize),
		Len:   chunk.BlockSize,
	}
}

// history is the state of a store with entries of epochs, the first n of
// which are known to be committed.
func history(n int, epochs ...chunk.Epoch) State {
	s := State{Copyset: 9, Commit: chunk.LSN(n), Last: chunk.LSN(len(epochs))}
	for i, epoch := range epochs {
		s.LastEpoch = epoch
		if i >= n {
			s.Tail = append(s.Tail, chunk.Entry{Copyset: 9, Epoch: epoch, LSN: chunk.LSN(i + 1), Op: write(i)})
		}
	}
	return s
}

// TestSuspect: a primary does not go on with a member whose history can't be
// that of a member in sync.
func TestSuspect(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		status  Message
		suspect bool
	}{
		{"the same history", Message{Last: 4, LastEpoch: 4}, false},
		{"a part of the tail", Message{Last: 3, LastEpoch: 3}, false},
		{"all that is committed", Message{Last: 2, LastEpoch: 1}, false},
		{"less than is committed", Message{Last: 1, LastEpoch: 1}, true},
		{"nothing", Message{}, true},
		{"more than the primary", Message{Last: 5, LastEpoch: 4}, true},
		{"more, by one turn of the ring", Message{Last: 3 + 16, LastEpoch: 3}, true},
		{"another last entry", Message{Last: 4, LastEpoch: 3}, true},
		{"another entry in the tail", Message{Last: 3, LastEpoch: 4}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := New(1, 1, history(2, 1, 1, 3, 4))
			c.Step(Configure{configuration(chunk.InSync, chunk.InSync)})
			m := test.status
			m.Kind, m.Epoch, m.Round, m.LSN = Status, 5, 1, m.Last
			effects := c.Step(Receive{2, m})
			if got := len(effects.Suspects) > 0; got != test.suspect {
				t.Errorf("suspects %v", effects.Suspects)
			}
			if test.suspect && (len(effects.Send) > 0 || effects.Commit > 0) {
				t.Errorf("goes on: %+v", effects)
			}
			c.Step(Receive{2, Message{Kind: Ack, Epoch: 5, LSN: 4}})
			if serves := c.Serving() == 5; serves == test.suspect {
				t.Errorf("serves: %v", serves)
			}
		})
	}
}

// TestSuspectForgetful: a member that acknowledged an entry must still have it
// when its connection has been replaced.
func TestSuspectForgetful(t *testing.T) {
	t.Parallel()
	for _, last := range []chunk.LSN{0, 1, 2} {
		c := New(1, 1, State{})
		c.Step(Configure{configuration(chunk.InSync, chunk.InSync)})
		c.Step(Receive{2, Message{Kind: Status, Epoch: 5, Round: 1}})
		c.Step(Submit{Ticket: 1, Epoch: 5, Op: write(0)})
		c.Step(Submit{Ticket: 2, Epoch: 5, Op: write(1)})
		c.Step(Receive{2, Message{Kind: Ack, Epoch: 5, LSN: 1}})
		c.Step(PeerUp{2})
		effects := c.Step(Receive{2, Message{Kind: Status, Epoch: 5, Round: 2, Last: last, LastEpoch: 5}})
		if got, want := len(effects.Suspects) > 0, last < 1; got != want {
			t.Errorf("ends at %d: suspects %v", last, effects.Suspects)
		}
	}
}

// TestLateStatusIsNoLie: an answer that an acknowledgement has overtaken tells
// less than is certain by now, which is no contradiction.
func TestLateStatusIsNoLie(t *testing.T) {
	t.Parallel()
	c := New(1, 1, State{})
	c.Step(Configure{configuration(chunk.InSync, chunk.InSync)})
	c.Step(Receive{2, Message{Kind: Status, Epoch: 5, Round: 1}})
	c.Step(Submit{Ticket: 1, Epoch: 5, Op: write(0)})
	c.Step(PeerUp{2})
	c.Step(Submit{Ticket: 2, Epoch: 5, Op: write(1)})
	c.Step(Durable{2})
	if effects := c.Step(Receive{2, Message{Kind: Ack, Epoch: 5, LSN: 1}}); effects.Commit != 1 {
		t.Fatalf("committed up to %d", effects.Commit)
	}
	effects := c.Step(Receive{2, Message{Kind: Status, Epoch: 5, Round: 2}})
	if len(effects.Suspects) > 0 {
		t.Errorf("suspects %v", effects.Suspects)
	}
	if len(effects.Send) != 1 || effects.Send[0].Message.Entry.LSN != 2 {
		t.Errorf("sends %v", effects.Send)
	}
}

// TestMinInSync: a primary takes writes only with a second copy in sync, or if
// there is none to be had; it serves reads in any case.
func TestMinInSync(t *testing.T) {
	t.Parallel()
	const in, out = chunk.InSync, chunk.Out
	for _, test := range []struct {
		states []chunk.MemberState
		write  error
	}{
		{[]chunk.MemberState{in}, nil},
		{[]chunk.MemberState{in, in}, nil},
		{[]chunk.MemberState{in, out, in}, nil},
		{[]chunk.MemberState{in, out}, chunk.ErrNotReady},
		{[]chunk.MemberState{in, out, out}, chunk.ErrNotReady},
	} {
		c := New(1, 1, State{})
		c.Step(Configure{configuration(test.states...)})
		for _, m := range c.config.Members {
			c.Step(Receive{m.Node, Message{Kind: Status, Epoch: 5, Round: 1}})
		}
		if got := c.Step(Read{Ticket: 1, Epoch: 5, Len: chunk.BlockSize}).Reply; !cmp.Equal(got, []Reply{{Ticket: 1}}) {
			t.Errorf("%v: read: %v", test.states, got)
		}
		got := c.Step(Submit{Ticket: 2, Epoch: 5, Op: write(0)})
		if test.write == nil && (len(got.Journal) != 1 || len(got.Reply) != 0) {
			t.Errorf("%v: write: %+v", test.states, got)
		}
		if test.write != nil && (len(got.Journal) != 0 || len(got.Reply) != 1 || !errors.Is(got.Reply[0].Err, test.write)) {
			t.Errorf("%v: write: %+v", test.states, got)
		}
	}
}

// TestOthersIgnored: members that are out and strangers are not heard.
func TestOthersIgnored(t *testing.T) {
	t.Parallel()
	for _, from := range []chunk.NodeID{3, 4} {
		c := New(1, 1, State{})
		c.Step(Configure{configuration(chunk.InSync, chunk.InSync, chunk.Out)})
		for _, m := range []Message{
			{Kind: Status, Epoch: 5, Round: 1, Last: 7},
			{Kind: Ack, Epoch: 5, LSN: 7},
			{Kind: Append, Epoch: 5, Entry: chunk.Entry{Epoch: 5, LSN: 1, Op: write(0)}},
		} {
			if diff := cmp.Diff(Effects{}, c.Step(Receive{from, m}), equateEmpty); diff != "" {
				t.Errorf("%v of node %d:\n%s", m.Kind, from, diff)
			}
		}
		if effects := c.Step(PeerUp{from}); len(effects.Send) > 0 {
			t.Errorf("node %d is sent %v", from, effects.Send)
		}
	}
}

// TestSecondaryHeedsPrimary: a secondary takes entries from the primary of its
// epoch only.
func TestSecondaryHeedsPrimary(t *testing.T) {
	t.Parallel()
	entry := chunk.Entry{Epoch: 5, LSN: 1, Op: write(0)}
	for _, test := range []struct {
		from  chunk.NodeID
		epoch chunk.Epoch
		takes bool
	}{
		{1, 5, true}, {3, 5, false}, {1, 4, false}, {1, 6, false},
	} {
		c := New(2, 1, State{})
		c.Step(Configure{configuration(chunk.InSync, chunk.InSync, chunk.InSync)})
		effects := c.Step(Receive{test.from, Message{Kind: Append, Epoch: test.epoch, Entry: entry}})
		if takes := len(effects.Journal) > 0; takes != test.takes {
			t.Errorf("from node %d in epoch %d: journals %v", test.from, test.epoch, effects.Journal)
		}
	}
}

// TestProbeSpeaksForItself: nobody can send another node's configuration, and
// nobody has to take an old one.
func TestProbeSpeaksForItself(t *testing.T) {
	t.Parallel()
	config := configuration(chunk.InSync, chunk.InSync, chunk.InSync)
	probe := Message{Kind: Probe, Epoch: 5, Round: 1, Config: &config}
	for _, test := range []struct {
		from     chunk.NodeID
		promised chunk.Epoch
		answers  bool
	}{
		{1, 0, true}, {1, 5, true}, {1, 6, false}, {3, 0, false},
	} {
		c := New(2, 1, State{Promised: test.promised})
		effects := c.Step(Receive{test.from, probe})
		if answers := len(effects.Send) > 0; answers != test.answers {
			t.Errorf("from node %d, having promised %d: %+v", test.from, test.promised, effects)
		}
		if promises := effects.Promise != 0; promises != (test.answers && test.promised < 5) {
			t.Errorf("from node %d, having promised %d: promises %d", test.from, test.promised, effects.Promise)
		}
	}
	if effects := New(2, 1, State{}).Step(Receive{1, Message{Kind: Probe, Epoch: 5}}); len(effects.Send) > 0 {
		t.Errorf("without a configuration: %+v", effects)
	}
}

var equateEmpty = cmp.Transformer("nilIfEmpty", func(e Effects) map[string]int {
	return map[string]int{
		"promise": int(e.Promise), "journal": len(e.Journal), "send": len(e.Send),
		"reply": len(e.Reply), "commit": int(e.Commit), "suspects": len(e.Suspects),
	}
})

// TestNoAllocation: ordering, acknowledging and reading allocate nothing.
func TestNoAllocation(t *testing.T) {
	c := New(1, 1, State{})
	c.Step(Configure{configuration(chunk.InSync, chunk.InSync)})
	c.Step(Receive{2, Message{Kind: Status, Epoch: 5, Round: 1}})
	secondary := New(2, 1, State{})
	secondary.Step(Configure{c.config})
	lsn := chunk.LSN(0)
	op := write(0)
	round := func() {
		lsn++
		effects := c.Step(Submit{Ticket: Ticket(lsn), Epoch: 5, Op: op})
		m := effects.Send[0].Message
		c.Step(Read{Ticket: 0, Epoch: 5, Ref: op.Ref, Len: chunk.BlockSize})
		secondary.Step(Receive{1, m})
		secondary.Step(Durable{lsn})
		c.Step(Durable{lsn})
		if effects := c.Step(Receive{2, Message{Kind: Ack, Epoch: 5, LSN: lsn}}); len(effects.Reply) != 2 {
			t.Fatalf("LSN %d: %+v", lsn, effects)
		}
	}
	for range 100 {
		round()
	}
	if n := testing.AllocsPerRun(1000, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
