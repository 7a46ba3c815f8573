package replica

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// TestAnyEvents: whatever events and messages come, in whatever order, a core
// keeps its word and doesn't fall over.
func TestAnyEvents(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := New(1, 1, history(2, 1, 1, 2))
		w := witness{last: 3, commit: 2, waiting: make(map[Ticket]bool)}
		for range rapid.IntRange(1, 200).Draw(t, "events") {
			e := anyEvent(t, w.last, w.ask())
			w.see(t, c.Step(e), c)
		}
	})
}

// A witness remembers what a core has done.
type witness struct {
	promised chunk.Epoch
	last     chunk.LSN
	commit   chunk.LSN
	tickets  Ticket
	waiting  map[Ticket]bool
}

// ask returns a new ticket, which may or may not be used.
func (w *witness) ask() Ticket {
	w.tickets++
	w.waiting[w.tickets] = true
	return w.tickets
}

func (w *witness) see(t *rapid.T, effects Effects, c *Core) {
	if effects.Promise != 0 {
		if effects.Promise <= w.promised {
			t.Fatalf("promises %d after %d", effects.Promise, w.promised)
		}
		w.promised = effects.Promise
	}
	for _, e := range effects.Journal {
		if e.LSN != w.last+1 {
			t.Fatalf("journals %d after %d", e.LSN, w.last)
		}
		w.last = e.LSN
	}
	for _, s := range effects.Send {
		if s.To == 1 || s.Message.Epoch != w.promised {
			t.Fatalf("sends %v to %d, having promised %d", shownMessage(s.Message), s.To, w.promised)
		}
	}
	for _, r := range effects.Reply {
		if !w.waiting[r.Ticket] {
			t.Fatalf("answers %d again", r.Ticket)
		}
		delete(w.waiting, r.Ticket)
	}
	if effects.Commit != 0 {
		if effects.Commit <= w.commit || effects.Commit > w.last {
			t.Fatalf("commits %d after %d, with a history up to %d", effects.Commit, w.commit, w.last)
		}
		w.commit = effects.Commit
	}
	if epoch := c.Serving(); epoch != 0 && epoch != w.promised {
		t.Fatalf("serves %d, having promised %d", epoch, w.promised)
	}
}

func anyEvent(t *rapid.T, last chunk.LSN, ticket Ticket) Event {
	node := func() chunk.NodeID { return chunk.NodeID(rapid.Uint32Range(0, 3).Draw(t, "node")) }
	epoch := func() chunk.Epoch { return chunk.Epoch(rapid.Uint64Range(0, 6).Draw(t, "epoch")) }
	lsn := func() chunk.LSN {
		return chunk.LSN(rapid.OneOf(rapid.Uint64Range(0, uint64(last)+2), rapid.Just(^uint64(0))).Draw(t, "lsn"))
	}
	config := func() chunk.Copyset {
		c := chunk.Copyset{ID: 9, Epoch: epoch(), Primary: node()}
		for id := range chunk.NodeID(rapid.IntRange(0, 3).Draw(t, "members")) {
			state := rapid.SampledFrom([]chunk.MemberState{chunk.InSync, chunk.InSync, chunk.Syncing, chunk.Out}).Draw(t, "state")
			c.Members = append(c.Members, chunk.Member{Node: id + 1, Incarnation: 1, State: state})
		}
		return c
	}
	op := write(rapid.IntRange(0, 3).Draw(t, "block"))
	switch rapid.IntRange(0, 7).Draw(t, "kind") {
	case 0:
		return Configure{config()}
	case 1:
		return Seal{ticket, epoch()}
	case 2:
		return Submit{ticket, epoch(), op}
	case 3:
		return Read{ticket, epoch(), op.Ref, op.Off, op.Len}
	case 4:
		return Durable{min(lsn(), last)}
	case 5:
		return PeerUp{node()}
	case 6:
		return Tick{}
	}
	m := Message{
		Kind:      MessageKind(rapid.Uint8Range(0, 6).Draw(t, "message")),
		Round:     rapid.Uint64Range(0, 3).Draw(t, "round"),
		LSN:       lsn(),
		Last:      lsn(),
		LastEpoch: epoch(),
		Entry:     chunk.Entry{Copyset: 9, Epoch: epoch(), LSN: lsn(), Commit: lsn(), Op: op},
	}
	if m.Epoch = epoch(); rapid.Bool().Draw(t, "configured") {
		c := config()
		m.Epoch, m.Config = c.Epoch, &c
	}
	return Receive{node(), m}
}
