package replica

import (
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// A pull is a member that brings itself up to date, as its shell does.
type pull struct {
	member  *node
	run     chunk.Incarnation
	primary chunk.NodeID
	epoch   chunk.Epoch
	round   uint64

	end  chunk.LSN       // of the primary's history when it was asked what there is; 0 before
	todo []block         // to be compared
	busy map[block]*part // asked for
}

// A part is a block that was asked for.
type part struct {
	has    content
	copies int  // of it that were stored when it was asked for
	sent   bool // the primary has sent another
}

// A supply is a pull of one block, as the primary's shell works on it, or word
// that all was pulled. It may lie about for long before it does.
type supply struct {
	from, to *node
	run      chunk.Incarnation // of from
	need     Need              // or else
	hold     Hold
	block    block
	part     *part
	asked    bool
	granted  bool
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
		p = &pull{member: n, run: n.run, primary: primary, epoch: epoch, round: round}
		s.pulls[n.id] = p
		return
	}
	from := s.node(p.primary)
	switch {
	case !s.alive(from) || from.core.Serving() != p.epoch:
	case p.busy == nil:
		s.survey(p, from)
	case len(p.todo) > 0 && len(p.busy) < 2:
		s.request(p, from)
	case len(p.busy) > 0:
		s.collect(p, from)
	default:
		s.logf("node %d has pulled everything in round %d", n.id, p.round)
		s.tickets++
		s.supplies[s.tickets] = &supply{from: from, to: n, run: from.run, need: Need{Ticket: s.tickets, Epoch: p.epoch, Node: n.id, Round: p.round}}
	}
}

// survey finds out which blocks may differ, when all that was ordered before
// can be seen.
func (s *sim) survey(p *pull, from *node) {
	if p.end == 0 {
		p.end = from.last()
	}
	if chunk.LSN(len(from.disk.entries)) < p.end {
		return
	}
	p.busy = make(map[block]*part)
	trusted := p.member.disk.trusted
	for volume := range chunk.VolumeID(2) {
		for i := range uint32(2) {
			for index := range simBlocks + 1 {
				b := block{chunk.Ref{Volume: volume + 1, Index: i}, index}
				if from.disk.content[b].changed > trusted || p.member.disk.content[b].changed > trusted {
					p.todo = append(p.todo, b)
				}
			}
		}
	}
	s.logf("node %d is to compare %d blocks, trusting %d", p.member.id, len(p.todo), trusted)
}

// request asks for a block.
func (s *sim) request(p *pull, from *node) {
	b := p.todo[0]
	p.todo = p.todo[1:]
	c := &part{has: p.member.disk.content[b], copies: p.member.disk.copies[b]}
	p.busy[b] = c
	s.tickets++
	s.supplies[s.tickets] = &supply{
		from: from, to: p.member, run: from.run, block: b, part: c,
		hold: Hold{Ticket: s.tickets, Epoch: p.epoch, Node: p.member.id, Round: p.round, Ref: b.ref, Off: uint32(b.index) * chunk.BlockSize, Len: chunk.BlockSize},
	}
}

// collect lets go of the blocks that have come, and asks again for those that
// seem to be lost.
func (s *sim) collect(p *pull, from *node) {
	for b, c := range p.busy {
		if c.sent && p.member.disk.copies[b] > c.copies {
			delete(p.busy, b)
		}
	}
	if len(p.busy) > 0 && s.rng.IntN(64) == 0 {
		for _, b := range sortedBlocks(p.busy) {
			delete(p.busy, b)
			p.todo = append(p.todo, b)
		}
	}
}

func sortedBlocks(of map[block]*part) (blocks []block) {
	for volume := range chunk.VolumeID(2) {
		for i := range uint32(2) {
			for index := range simBlocks + 1 {
				if b := (block{chunk.Ref{Volume: volume + 1, Index: i}, index}); of[b] != nil {
					blocks = append(blocks, b)
				}
			}
		}
	}
	return blocks
}

// supplyOne goes one step on with a pull at a primary.
func (s *sim) supplyOne() {
	tickets := make([]Ticket, 0, len(s.supplies))
	for t := range s.supplies {
		tickets = append(tickets, t)
	}
	if len(tickets) == 0 {
		return
	}
	slices.Sort(tickets)
	t := tickets[s.rng.IntN(len(tickets))]
	y := s.supplies[t]
	switch {
	case y.from.core == nil || y.from.run != y.run:
		delete(s.supplies, t)
	case !s.alive(y.from):
	case y.need.Ticket != 0:
		s.open[t] = y.from.core
		s.step(y.from, y.need)
	case !y.asked:
		y.asked = true
		s.ask(y.from, t, y.hold)
	case y.granted:
		delete(s.supplies, t)
		s.release(y)
	}
}

// granted takes in the answer to a Hold.
func (w *world) granted(y *supply, err error) {
	if err != nil || y.need.Ticket != 0 {
		delete(w.supplies, y.hold.Ticket)
		delete(w.supplies, y.need.Ticket)
		return
	}
	y.granted = true
}

// release has the primary send what it has, if that differs.
func (s *sim) release(y *supply) {
	has := y.from.disk.content[y.block]
	r := Release{Ticket: y.hold.Ticket}
	if has.equal(y.part.has) {
		y.part.copies = -1 // nothing will come
	} else {
		s.copied = append(s.copied, copied{y.block, has})
		r.Copy = &chunk.Copy{Data: uint64(len(s.copied) - 1)}
	}
	y.part.sent = true
	s.logf("node %d sends %d block %d of %v: %v", y.from.id, y.to.id, y.block.index, y.block.ref, r.Copy != nil)
	s.step(y.from, r)
}
