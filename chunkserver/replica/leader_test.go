package replica

import (
	"errors"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// A change is a metadata leader's attempt at a new configuration. Another
// leader may be at it too.
type change struct {
	base    chunk.Copyset // the configuration that it is to replace
	answers map[chunk.NodeID]answer
}

type answer struct {
	run       chunk.Incarnation
	lastEpoch chunk.Epoch
	last      chunk.LSN
}

func (s *sim) beginChange() {
	if len(s.changes) < 2 {
		s.changes = append(s.changes, &change{base: s.config, answers: make(map[chunk.NodeID]answer)})
	}
}

// lead does one thing that the metadata leader does.
func (s *sim) lead() {
	if s.rng.IntN(3) == 0 {
		if n := s.nodes[s.rng.IntN(len(s.nodes))]; s.alive(n) {
			s.step(n, Configure{s.config})
		}
		return
	}
	if len(s.changes) == 0 {
		if s.mustChange() {
			s.beginChange()
		}
		return
	}
	i := s.rng.IntN(len(s.changes))
	if s.sealAndCommit(s.changes[i]) {
		s.changes = slices.Delete(s.changes, i, i+1)
	}
}

// mustChange reports whether a member is another process by now, or is not to
// be relied on.
func (s *sim) mustChange() bool {
	for _, m := range s.config.Members {
		n := s.node(m.Node)
		if m.State == chunk.InSync && (n.core != nil && n.run != m.Incarnation || n.id == s.suspect) {
			return true
		}
	}
	return s.config.Epoch == 0
}

// sealAndCommit goes one step on with a change, and reports when it is over.
func (s *sim) sealAndCommit(ch *change) bool {
	if ch.base.Epoch != s.config.Epoch {
		// Another leader was faster, which this one hears late.
		if n := s.nodes[s.rng.IntN(len(s.nodes))]; s.alive(n) && s.rng.IntN(2) == 0 {
			s.seal(ch, n)
		}
		return true
	}
	for _, m := range ch.base.Members {
		n := s.node(m.Node)
		a, answered := ch.answers[m.Node]
		if m.State == chunk.InSync && m.Node != s.suspect && (!answered || a.run != n.run) {
			if s.alive(n) {
				s.seal(ch, n)
				return false
			}
			if !s.mayDrop(ch) {
				return false
			}
		}
	}
	s.commit(ch)
	return true
}

// mayDrop reports whether the change goes on without a member that doesn't
// answer: when two others are there, but not often.
func (s *sim) mayDrop(ch *change) bool {
	return !s.quiet && s.forgetful == 0 && len(ch.answers) >= 2 && s.rng.IntN(4) == 0
}

// seal asks a node, whose answer comes at once.
func (s *sim) seal(ch *change, n *node) {
	epoch, promised := ch.base.Epoch+1, n.disk.promised
	s.step(n, Seal{Ticket: sealTicket, Epoch: epoch})
	r := s.sealed
	if r.Err != nil {
		if !errors.Is(r.Err, chunk.ErrStaleEpoch) {
			s.fail("seal: %v", r.Err)
		}
		return
	}
	if epoch < promised {
		s.fail("node %d is sealed for %d, having promised %d", n.id, epoch, promised)
	}
	if n.last() != 0 && (r.Last != n.last() || r.LastEpoch != n.entry(r.Last).Epoch) {
		s.fail("node %d says that it ends at %d.%d", n.id, r.LastEpoch, r.Last)
	}
	s.logf("node %d sealed for %d: %d.%d", n.id, epoch, r.LastEpoch, r.Last)
	ch.answers[n.id] = answer{n.run, r.LastEpoch, r.Last}
}

// commit makes the members that answered the configuration, with the one of
// the longest history as primary.
func (s *sim) commit(ch *change) {
	next := chunk.Copyset{ID: ch.base.ID, Epoch: ch.base.Epoch + 1}
	var best answer
	for _, m := range ch.base.Members {
		a, ok := ch.answers[m.Node]
		if m.State == chunk.InSync && m.Node != s.suspect && ok {
			m.Incarnation = a.run
			if next.Primary == 0 || a.lastEpoch > best.lastEpoch || a.lastEpoch == best.lastEpoch && a.last > best.last ||
				a == best && s.rng.IntN(2) == 0 {
				next.Primary, best = m.Node, a
			}
		} else {
			m.State = chunk.Out
		}
		next.Members = append(next.Members, m)
	}
	s.logf("configuration %+v", next)
	s.reconfigured(next)
}
