package replica

import (
	"maps"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// maxBehind is the number of entries by which a member that is syncing may be
// behind before operations wait for it: it is not waited for otherwise, and
// what is on its way to it takes memory.
const maxBehind = 64

// A hold keeps a range as it is while it is read for a peer.
type hold struct {
	Hold
	until   chunk.LSN // to be durable before the range is read
	granted bool
}

// syncing reports whether any member is syncing.
func (l *lead) syncing() bool {
	return slices.ContainsFunc(l.peers, func(p peer) bool { return p.syncing })
}

// physical reports whether what an operation does depends on nothing that a
// member that is syncing may lack.
func physical(op *chunk.Op) bool {
	return op.Kind != chunk.OpFlatten && op.Kind != chunk.OpPurge
}

// mustWait reports whether an operation can't be ordered yet: a hold keeps what
// it writes to as it is, or it overlaps with one that waits, or a member that
// is syncing is to catch up first.
func (c *Core) mustWait(op *chunk.Op) bool {
	if c.behind() {
		return true
	}
	if op.Kind != chunk.OpWrite && op.Kind != chunk.OpZero {
		return false
	}
	for i := range c.lead.holds {
		if h := &c.lead.holds[i]; op.Ref == h.Ref && overlap(op.Off, op.Len, h.Off, h.Len) {
			return true
		}
	}
	for i := range c.lead.deferred {
		if d := &c.lead.deferred[i].Op; op.Ref == d.Ref && overlap(op.Off, op.Len, d.Off, d.Len) {
			return true
		}
	}
	return false
}

func overlap(off1, len1, off2, len2 uint32) bool { return off1 < off2+len2 && off2 < off1+len1 }

// behind reports whether a member that is syncing has too much on its way.
func (c *Core) behind() bool {
	for i := range c.lead.peers {
		p := &c.lead.peers[i]
		if p.syncing && p.streaming && c.tail.last() >= max(p.acked, p.joined)+maxBehind {
			return true
		}
	}
	return false
}

// resume submits again what has waited.
func (c *Core) resume() {
	if len(c.lead.deferred) == 0 || c.behind() {
		return
	}
	deferred := c.lead.deferred
	c.lead.deferred = nil
	for i := range deferred {
		c.submit(deferred[i])
	}
}

// reset puts a peer that is syncing on the stream: it is sent every entry from
// now on. What it has missed up to here it pulls; none of it is sent, so that
// it executes nothing that depends on what it lacks.
func (c *Core) reset(p *peer) {
	p.joined, p.acked, p.idle = c.tail.last(), 0, 0
	p.trusted, p.streaming, p.told = true, true, c.commit
	volumes := slices.Sorted(maps.Keys(c.tokens))
	for some := range slices.Chunk(volumes, maxTokens) {
		tokens := make(map[chunk.VolumeID]chunk.Token, len(some))
		for _, v := range some {
			tokens[v] = c.tokens[v]
		}
		c.send(p.node, Message{Kind: Tokens, Round: p.round, Tokens: tokens})
	}
	c.send(p.node, Message{Kind: Reset, Round: p.round, LSN: p.joined, LastEpoch: c.lastEpoch})
}

// giveUp ends the stream of a peer that is syncing and does not keep up.
func (c *Core) giveUp(p *peer) {
	c.mayRelease(p)
	p.streaming, p.gaveUp = false, true
}

// mayRelease ends the need for a peer that is syncing, whose stream ends,
// unless it is synced: as the metadata leader may have been told, only a
// configuration can release it then. Until then it goes on with the history
// that it has, like a member in sync. Any other begins anew on its next stream,
// and so what it has acknowledged is no longer what it has.
func (c *Core) mayRelease(p *peer) {
	if p.syncing && p.needed && !c.synced(p) {
		p.needed = false
		c.advance()
	}
}

// synced reports whether a peer that is syncing has all that is committed, and
// will have all that ever is. It stays so until the epoch ends: what is needed
// acknowledges before anything is committed.
func (c *Core) synced(p *peer) bool {
	return p.needed && p.acked >= c.commit && c.commit >= p.joined
}

func (c *Core) hold(e Hold) {
	if _, err := c.onStream(e.Epoch, e.Node, e.Round); err != nil {
		c.refuse(e.Ticket, err)
		return
	}
	c.lead.holds = append(c.lead.holds, hold{Hold: e, until: c.tail.last()})
	c.answerHolds()
}

// answerHolds grants the holds for which all is durable that was ordered
// before.
func (c *Core) answerHolds() {
	for i := range c.lead.holds {
		if h := &c.lead.holds[i]; !h.granted && h.until <= c.durable {
			h.granted = true
			c.reply(Reply{Ticket: h.Ticket})
		}
	}
}

// onStream returns the peer that is syncing on the stream of a round.
func (c *Core) onStream(epoch chunk.Epoch, node chunk.NodeID, round uint64) (*peer, error) {
	if err := c.check(epoch); err != nil {
		return nil, err
	}
	p := c.lead.peer(node)
	if p == nil || !p.syncing || !p.streaming || p.round != round {
		return nil, chunk.ErrNotReady
	}
	return p, nil
}

func (c *Core) release(e Release) {
	if c.lead == nil {
		return
	}
	i := slices.IndexFunc(c.lead.holds, func(h hold) bool { return h.Ticket == e.Ticket })
	if i < 0 {
		return // it ended with its epoch
	}
	h := c.lead.holds[i]
	c.lead.holds = slices.Delete(c.lead.holds, i, i+1)
	if p, err := c.onStream(h.Epoch, h.Node, h.Round); err == nil && e.Copy != nil {
		c.send(p.node, Message{Kind: Copy, Round: h.Round, LSN: c.tail.last(), Copy: e.Copy})
	}
	c.resume()
}

func (c *Core) need(e Need) {
	p, err := c.onStream(e.Epoch, e.Node, e.Round)
	if err != nil {
		c.refuse(e.Ticket, err)
		return
	}
	p.needed = true
	c.reply(Reply{Ticket: e.Ticket})
	c.advance()
}

// Report tells what the metadata leader should know of the other members:
// which of those that are syncing may be in sync from the next configuration
// on, and which keep others waiting, or can't be what they were.
func (c *Core) Report() (synced, lagging []chunk.NodeID) {
	if c.lead == nil {
		return nil, nil
	}
	for i := range c.lead.peers {
		switch p := &c.lead.peers[i]; {
		case p.suspect, p.idle >= maxIdle:
			lagging = append(lagging, p.node)
		case p.syncing && p.streaming && c.synced(p):
			synced = append(synced, p.node)
		}
	}
	return synced, lagging
}
