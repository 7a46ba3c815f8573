package replica

import (
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// A pull is a member that brings itself up to date, as its shell does.
type pull struct {
	run     chunk.Incarnation
	primary chunk.NodeID
	epoch   chunk.Epoch
	round   uint64

	end      chunk.LSN // of the primary's history when it was asked what there is; 0 before
	surveyed bool
	todo     []int    // parts to be compared
	busy     []*asked // for parts
	need     *supply  // word that all is here, under way
	done     bool     // it has been heard
}

// asked is a part that was asked for.
type asked struct {
	part   int
	has    [partBlocks]content
	copies int  // of it that were stored when it was asked for
	sent   bool // the primary has answered
	equal  bool // that nothing differs
}

// A supply is a pull of one part, as the primary's shell works on it, or word
// that all was pulled. It may lie about for long before it does.
type supply struct {
	from    *node
	run     chunk.Incarnation // of from
	to      chunk.NodeID
	ticket  Ticket
	request Event // a Hold or a Need
	pull    *pull
	part    *asked // of a Hold

	slow    bool // the shell is busy with something else
	open    bool // the core has been asked
	granted bool
	read    bool // what differs is known, and is released next
	differs bool
	copied  copied
}

// pull goes one step on with bringing a member up to date.
func (s *sim) pull(n *node) {
	if !s.alive(n) {
		return
	}
	primary, epoch, round, ok := n.core.Pulling()
	if !ok {
		delete(s.pulls, n.id)
		return
	}
	p := s.pulls[n.id]
	if p == nil || p.run != n.run || p.epoch != epoch || p.round != round {
		s.pulls[n.id] = &pull{run: n.run, primary: primary, epoch: epoch, round: round}
		return
	}
	from := s.node(p.primary)
	switch {
	case !s.alive(from) || from.core.Serving() != p.epoch || p.done:
	case !p.surveyed:
		s.survey(p, n, from)
	case len(p.todo) > 0 && len(p.busy) < 2:
		s.request(p, n, from)
	case len(p.busy) > 0:
		s.collect(p, n)
	case p.need == nil || s.rng.IntN(64) == 0: // it seems to be lost
		s.logf("node %d has pulled everything in round %d", n.id, p.round)
		p.need = s.send(p, n, from, nil)
	}
}

// survey finds out which parts may differ, when all that was ordered before
// can be seen.
func (s *sim) survey(p *pull, n, from *node) {
	if p.end == 0 {
		p.end = from.last()
	}
	if chunk.LSN(len(from.disk.entries)) < p.end {
		return
	}
	p.surveyed = true
	trusted := n.disk.trusted
	for part := range simParts {
		theirs, ours := from.disk.outline(part), n.disk.outline(part)
		for i := range partBlocks {
			if theirs[i].changed > trusted || ours[i].changed > trusted {
				p.todo = append(p.todo, part)
				break
			}
		}
	}
	s.logf("node %d is to compare %d parts, trusting %d", n.id, len(p.todo), trusted)
}

// request asks for a part.
func (s *sim) request(p *pull, n, from *node) {
	part := p.todo[0]
	p.todo = p.todo[1:]
	a := &asked{part: part, has: n.disk.outline(part), copies: n.disk.copies[part]}
	p.busy = append(p.busy, a)
	s.send(p, n, from, a)
}

// send sends the primary's shell what it is asked for: a part, or to take in
// that there is nothing left to ask for.
func (s *sim) send(p *pull, n, from *node, a *asked) *supply {
	s.tickets++
	y := &supply{from: from, run: from.run, to: n.id, ticket: s.tickets, pull: p, part: a, slow: s.rng.IntN(4) == 0}
	if a == nil {
		y.request = Need{Ticket: y.ticket, Epoch: p.epoch, Node: n.id, Round: p.round}
	} else {
		first := blockOf(a.part * partBlocks)
		y.request = Hold{
			Ticket: y.ticket, Epoch: p.epoch, Node: n.id, Round: p.round,
			Ref: first.ref, Off: uint32(first.index) * chunk.BlockSize, Len: partBlocks * chunk.BlockSize,
		}
	}
	s.supplies = append(s.supplies, y)
	return y
}

// collect lets go of the parts that have come, and asks again for those that
// seem to be lost.
func (s *sim) collect(p *pull, n *node) {
	lost := s.rng.IntN(64) == 0
	busy := p.busy[:0]
	for _, a := range p.busy {
		switch {
		case a.sent && (a.equal || n.disk.copies[a.part] > a.copies):
		case lost:
			p.todo = append(p.todo, a.part)
		default:
			busy = append(busy, a)
		}
	}
	p.busy = busy
}

// supplyOne goes one step on with a pull at a primary.
func (s *sim) supplyOne() {
	if len(s.supplies) == 0 {
		return
	}
	y := s.supplies[s.rng.IntN(len(s.supplies))]
	switch {
	case y.from.core == nil || y.from.run != y.run:
		s.forgo(y)
	case !s.alive(y.from), y.slow && !s.quiet && s.rng.IntN(32) > 0:
	case !y.open:
		y.open = true
		s.ask(y.from, y.ticket, y.request)
	case y.read:
		s.forgo(y)
		s.release(y)
	case y.granted:
		y.read = true
		y.copied, y.differs = y.from.disk.differ(y.part.part, &y.part.has)
	}
}

// answeredSupply takes in the answer to a Hold or a Need.
func (w *world) answeredSupply(n *node, y *supply, err error) {
	if _, ok := y.request.(Hold); ok && err == nil {
		y.granted = true
		return
	}
	w.forgo(y)
	if y.part != nil {
		return // it is asked for again
	}
	if err == nil {
		y.pull.done = true
		w.needs[n.core] = n.core.config.Epoch
	}
	y.pull.need = nil
}

// release has the primary send what differs.
func (s *sim) release(y *supply) {
	r := Release{Ticket: y.ticket}
	if y.differs {
		r.Copy = s.sendable(y.copied)
	}
	y.part.sent, y.part.equal = true, !y.differs
	s.logf("node %d sends %d part %d: %v of %v", y.from.id, y.to, y.copied.part, y.copied.sent, y.copied.blocks)
	s.step(y.from, r)
}

// sendable wraps up what a Copy is to say.
func (c *cluster) sendable(of copied) *chunk.Copy {
	c.copied = append(c.copied, of)
	return &chunk.Copy{Data: uint64(len(c.copied) - 1)}
}
