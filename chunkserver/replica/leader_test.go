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
	if s.rng.IntN(2) == 0 {
		s.mend()
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
// answer: when another one has, but not often.
func (s *sim) mayDrop(ch *change) bool {
	return !s.quiet && s.forgetful == 0 && len(ch.answers) >= 1 && s.rng.IntN(8) == 0
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
		} else if m.State != chunk.Syncing || s.rng.IntN(2) == 0 {
			m.State = chunk.Out
		}
		next.Members = append(next.Members, m)
	}
	s.logf("configuration %+v", next)
	s.reconfigured(next)
}

// A report is what a leader has heard of a primary, which may be long ago.
type report struct {
	epoch           chunk.Epoch
	synced, lagging []chunk.NodeID
}

// mend hears of a primary, or does one thing about a member that is not in
// sync, or should not be, while the primary goes on. Leaders act on what they
// have heard whenever they like, as long as it is about the configuration that
// they replace.
func (s *sim) mend() {
	if s.config.Primary == 0 {
		return
	}
	r := &s.reports[s.rng.IntN(len(s.reports))]
	if p := s.node(s.config.Primary); s.rng.IntN(2) == 0 {
		if s.alive(p) {
			r.epoch = p.core.Config().Epoch
			r.synced, r.lagging = p.core.Report()
		}
		return
	}
	i := s.rng.IntN(len(s.config.Members))
	m := s.config.Members[i]
	if s.swapDisk(m) {
		return
	}
	next := s.mended(m, r)
	if next == m {
		return
	}
	if next.Node == s.forgetful && next.State == chunk.Syncing || m.Node == s.forgetful && next.Node != m.Node {
		s.forgetful, s.suspect = 0, 0
	}
	if next.State == chunk.InSync {
		s.tally.joins++
	}
	config := s.config
	config.Epoch++
	config.Members = slices.Clone(config.Members)
	config.Members[i] = next
	s.logf("configuration %+v", config)
	s.reconfigured(config)
}

// mended is what a leader makes of a member, having heard r.
func (s *sim) mended(m chunk.Member, r *report) chunk.Member {
	n := s.node(m.Node)
	fresh := r.epoch == s.config.Epoch
	synced, lagging := fresh && slices.Contains(r.synced, n.id), fresh && slices.Contains(r.lagging, n.id)
	switch m.State {
	case chunk.Out:
		if spare := s.spare(); spare != nil && s.rng.IntN(8) == 0 {
			s.tally.replaced++
			return chunk.Member{Node: spare.id, Incarnation: spare.run, State: chunk.Syncing}
		}
		if s.alive(n) {
			m.State, m.Incarnation = chunk.Syncing, n.run
		}
	case chunk.Syncing:
		switch {
		case n.core != nil && n.run != m.Incarnation:
			m.Incarnation = n.run
		case synced:
			m.State = chunk.InSync
		case lagging, !s.quiet && s.rng.IntN(256) == 0:
			m.State = chunk.Out
		}
	case chunk.InSync:
		if n.id != s.config.Primary && inSync(&s.config) > 2 && (lagging || !s.quiet && s.rng.IntN(16) == 0) {
			m.State = chunk.Out
		}
	}
	return m
}

// spare returns a node that is no member, and runs; or nil.
func (s *sim) spare() *node {
	for _, n := range s.nodes {
		if s.config.Member(n.id) == nil && s.alive(n) {
			return n
		}
	}
	return nil
}

// swapDisk may put another disk into a member that is out and does not run: a
// new one, or one that it once had.
func (s *sim) swapDisk(m chunk.Member) bool {
	n := s.node(m.Node)
	if m.State != chunk.Out || n.core != nil || s.quiet || s.rng.IntN(16) > 0 {
		return false
	}
	now := n.disk.clone()
	if n.shelf == nil || s.rng.IntN(2) == 0 {
		s.logf("node %d gets a new disk", n.id)
		n.disk = newDisk()
	} else {
		s.logf("node %d gets an old disk, which ends at %d", n.id, len(n.shelf.entries))
		n.disk = *n.shelf
	}
	n.shelf = now
	return true
}

// drop has a node that is not a member forget the copyset.
func (s *sim) drop(n *node) {
	if s.alive(n) && n.core.Standing() == 0 && n.core.Config().Epoch > 0 && n.core.config.Member(n.id) == nil && n.last() > 0 {
		s.logf("node %d drops the copyset", n.id)
		n.flush(len(n.pending))
		n.disk.drop()
	}
}
