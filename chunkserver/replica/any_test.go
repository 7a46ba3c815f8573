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
		w.see(t, c.Step(Configure{anyConfig(t, 5)}), c)
		for range rapid.IntRange(100, 500).Draw(t, "events") {
			e := anyEvent(t, c, w.ask())
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
	if effects.Reset != nil {
		w.last, w.commit = effects.Reset.LSN, effects.Reset.LSN
		if c.Standing() != chunk.Syncing {
			t.Fatalf("a member that is %v goes on behind %d", c.Standing(), effects.Reset.LSN)
		}
	}
	if _, _, round, ok := c.Pulling(); len(effects.Copies) > 0 && !ok {
		t.Fatalf("takes copies in round %d, and does not pull", round)
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

// anyEvent draws an event, from near what a core may expect at the time.
func anyEvent(t *rapid.T, c *Core, ticket Ticket) Event {
	op := write(rapid.IntRange(0, 3).Draw(t, "block"))
	op.Token.Attachment += rapid.Uint64Range(0, 1).Draw(t, "token")
	epoch := anyEpoch(t, c)
	node := chunk.NodeID(rapid.Uint32Range(1, 3).Draw(t, "node"))
	round := rapid.Uint64Range(0, 3).Draw(t, "round")
	switch rapid.IntRange(0, 20).Draw(t, "kind") {
	case 0:
		return Configure{anyConfig(t, c.promised+chunk.Epoch(rapid.Uint64Range(0, 1).Draw(t, "later")))}
	case 1:
		return Seal{ticket, epoch}
	case 2, 3, 4:
		return Submit{ticket, epoch, op}
	case 5:
		return Read{ticket, epoch, op.Ref, op.Off, op.Len}
	case 6, 7:
		return Durable{min(anyLSN(t, c), c.tail.last())}
	case 8:
		return PeerUp{node}
	case 9:
		return Tick{}
	case 10, 11:
		return Hold{ticket, epoch, node, round, op.Ref, op.Off, op.Len}
	case 12:
		return Release{Ticket(rapid.Uint64Range(0, uint64(ticket)).Draw(t, "hold")), &chunk.Copy{}}
	case 13:
		return Need{ticket, epoch, node, round}
	}
	return Receive{node, anyMessage(t, c, epoch, op)}
}

// anyEpoch draws an epoch, mostly the present one.
func anyEpoch(t *rapid.T, c *Core) chunk.Epoch {
	if rapid.IntRange(0, 15).Draw(t, "other epoch") == 0 {
		return chunk.Epoch(rapid.Uint64Range(0, uint64(c.promised)+1).Draw(t, "epoch"))
	}
	return c.config.Epoch
}

// anyLSN draws an LSN, mostly one near the end of the history.
func anyLSN(t *rapid.T, c *Core) chunk.LSN {
	return chunk.LSN(rapid.OneOf(
		rapid.Uint64Range(uint64(c.commit), uint64(c.tail.next)+1),
		rapid.SampledFrom([]uint64{0, uint64(c.tail.next), ^uint64(0)}),
	).Draw(t, "lsn"))
}

// anyConfig draws a configuration, mostly one in which node 1 has a part.
func anyConfig(t *rapid.T, epoch chunk.Epoch) chunk.Copyset {
	state := rapid.SampledFrom([]chunk.MemberState{chunk.InSync, chunk.InSync, chunk.InSync, chunk.Syncing, chunk.Out})
	c := configuration(rapid.SliceOfN(state, 1, 3).Draw(t, "states")...)
	c.Epoch, c.Primary = epoch, rapid.SampledFrom([]chunk.NodeID{1, 1, 2, 3}).Draw(t, "primary")
	if m := c.Member(c.Primary); m != nil {
		m.State = chunk.InSync
	}
	return c
}

func anyMessage(t *rapid.T, c *Core, epoch chunk.Epoch, op chunk.Op) Message {
	m := Message{
		Kind:      MessageKind(rapid.Uint8Range(0, 9).Draw(t, "message")),
		Epoch:     epoch,
		Round:     rapid.Uint64Range(0, 3).Draw(t, "round"),
		LSN:       anyLSN(t, c),
		Last:      anyLSN(t, c),
		LastEpoch: c.lastEpoch,
		Entry:     chunk.Entry{Copyset: 9, Epoch: epoch, LSN: anyLSN(t, c), Commit: anyLSN(t, c), Op: op},
		Copy:      &chunk.Copy{},
		Tokens:    map[chunk.VolumeID]chunk.Token{op.Ref.Volume: op.Token},
	}
	if m.Kind == Reset {
		m.LSN = min(m.LSN, 1<<62) // nobody gets further
	}
	if rapid.IntRange(0, 7).Draw(t, "configured") == 0 {
		config := anyConfig(t, epoch)
		m.Config = &config
	}
	return m
}
