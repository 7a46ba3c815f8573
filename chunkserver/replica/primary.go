package replica

import "github.com/localsnap/localsnap/chunkserver/chunk"

// minInSync is how many members must be in sync for writes to be accepted: a
// write on the last copy would be lost with it. A copyset of one member makes
// no such promise.
const minInSync = 2

// maxIdle is the number of ticks for which a member may keep the primary
// waiting, without any progress, before it lags.
const maxIdle = 8

// lead is what a primary knows. It begins and ends with one epoch.
type lead struct {
	peers    []peer    // the other members that are in sync or syncing
	start    chunk.LSN // the end of the history when the epoch began
	active   bool      // all of it is durable at all in-sync members
	writable bool      // enough members are in sync
	reads    []waiting // in no order
	holds    []hold    // in the order in which they were asked for
	deferred []Submit  // what has to wait before it is ordered, as mustWait says; in order
}

// A peer is another member as the primary sees it.
type peer struct {
	node  chunk.NodeID
	round uint64    // of the last probe
	floor chunk.LSN // what it had for certain when the last probe was sent
	acked chunk.LSN // durable there
	told  chunk.LSN // the commit point that the last message told it

	trusted   bool // what it says of its history agrees with ours
	suspect   bool // it can't be what the configuration says
	streaming bool // it has answered the last probe, and is sent each entry since
	idle      int  // ticks since it made progress, while it is waited for

	// Of a member that is syncing.
	syncing bool
	joined  chunk.LSN // where it got on the stream; what lies before it pulls
	needed  bool      // it has pulled everything: nothing is committed without it
	gaveUp  bool      // its stream was ended for want of progress; a new connection begins another
}

// counts reports whether an operation must be durable at the peer to be
// committed.
func (p *peer) counts() bool { return !p.syncing || p.needed }

// owes reports whether something is expected of the peer, when the history
// ends at last.
func (p *peer) owes(last chunk.LSN) bool {
	return p.acked < last || !p.trusted || p.syncing && !p.streaming
}

// waiting is a read that may show entries up to lsn.
type waiting struct {
	ticket Ticket
	lsn    chunk.LSN
}

func (l *lead) peer(node chunk.NodeID) *peer {
	for i := range l.peers {
		if l.peers[i].node == node {
			return &l.peers[i]
		}
	}
	return nil
}

// takeLead begins an epoch as its primary.
func (c *Core) takeLead() {
	l := &lead{start: c.tail.last()}
	for _, m := range c.config.Members {
		if m.Node != c.self && m.State != chunk.Out {
			l.peers = append(l.peers, peer{node: m.Node, syncing: m.State == chunk.Syncing})
		}
	}
	l.writable = inSync(&c.config) >= minInSync || len(c.config.Members) == 1
	c.lead = l
	for i := range l.peers {
		c.probe(&l.peers[i])
	}
	c.advance()
}

func inSync(config *chunk.Copyset) (n int) {
	for _, m := range config.Members {
		if m.State == chunk.InSync {
			n++
		}
	}
	return n
}

// resign sends everybody away who waits for this primary.
func (c *Core) resign() {
	for lsn := c.tail.first; lsn < c.tail.next; lsn++ {
		if s := c.tail.at(lsn); s.asked {
			c.refuse(s.ticket, chunk.ErrStaleEpoch)
			s.asked = false
		}
	}
	for _, r := range c.lead.reads {
		c.refuse(r.ticket, chunk.ErrStaleEpoch)
	}
	for _, h := range c.lead.holds {
		if !h.granted {
			c.refuse(h.Ticket, chunk.ErrStaleEpoch)
		}
	}
	for _, s := range c.lead.deferred {
		c.refuse(s.Ticket, chunk.ErrStaleEpoch)
	}
	c.lead = nil
}

// check returns why a request made under epoch can't be served, or nil.
func (c *Core) check(epoch chunk.Epoch) error {
	switch {
	case epoch < c.promised, epoch == c.config.Epoch && c.lead == nil:
		return chunk.ErrStaleEpoch
	case epoch != c.Serving():
		return chunk.ErrNotReady
	}
	return nil
}

func (c *Core) submit(e Submit) {
	if err := c.check(e.Epoch); err != nil {
		c.refuse(e.Ticket, err)
		return
	}
	if !c.lead.writable {
		c.refuse(e.Ticket, chunk.ErrNotReady)
		return
	}
	if c.lead.syncing() && !physical(&e.Op) {
		c.refuse(e.Ticket, chunk.ErrNotReady)
		return
	}
	if c.fenced(&e.Op) {
		c.refuse(e.Ticket, chunk.ErrFenced)
		return
	}
	if c.mustWait(&e.Op) {
		c.lead.deferred = append(c.lead.deferred, e)
		return
	}
	entry := chunk.Entry{Copyset: c.config.ID, Epoch: c.config.Epoch, LSN: c.tail.next, Commit: c.commit, Op: e.Op}
	c.accept(slot{entry: entry, asked: true, ticket: e.Ticket})
	for i := range c.lead.peers {
		if p := &c.lead.peers[i]; p.streaming {
			c.sendEntry(p, entry)
		}
	}
}

// fenced reports whether a later writer than that of op has been ordered.
func (c *Core) fenced(op *chunk.Op) bool {
	switch op.Kind {
	case chunk.OpWrite, chunk.OpZero, chunk.OpFence:
		return op.Token.Compare(c.tokens[op.Ref.Volume]) < 0
	}
	return false
}

func (c *Core) read(e Read) {
	if err := c.check(e.Epoch); err != nil {
		c.refuse(e.Ticket, err)
		return
	}
	if lsn := c.tail.changes(e.Ref, e.Off, e.Len); lsn != 0 {
		c.lead.reads = append(c.lead.reads, waiting{e.Ticket, lsn})
		return
	}
	c.reply(Reply{Ticket: e.Ticket})
}

// probe asks a peer what it has, over a connection that may have lost what
// was sent before.
func (c *Core) probe(p *peer) {
	p.round++
	c.mayRelease(p)
	p.floor, p.told, p.streaming, p.gaveUp = max(p.acked, c.commit), 0, false, false
	config := c.config
	c.send(p.node, Message{Kind: Probe, Round: p.round, Config: &config})
}

// heard takes in what a peer says of its history.
func (c *Core) heard(p *peer, m *Message) {
	if m.Round != p.round || p.gaveUp {
		return // it answers this round, too; or is on no stream any more
	}
	if !p.streaming {
		if p.syncing && !p.needed {
			c.reset(p)
			return
		}
		if m.Last < p.floor || !c.extends(m.Last, m.LastEpoch) {
			p.trusted, p.suspect = false, true
			c.effects.Suspects = append(c.effects.Suspects, p.node)
			return
		}
		p.trusted, p.streaming, p.idle = true, true, 0
		// A delayed answer may be older than the commit point; what is
		// committed has been acknowledged since.
		for lsn := max(m.Last+1, c.tail.first); lsn < c.tail.next; lsn++ {
			c.sendEntry(p, c.tail.at(lsn).entry)
		}
	}
	c.acked(p, m.LSN)
}

// extends reports whether our history goes on, or ends, where one ends at
// last with an entry of epoch. What is committed agrees at all members.
func (c *Core) extends(last chunk.LSN, epoch chunk.Epoch) bool {
	switch {
	case last > c.tail.last():
		return false
	case last == c.tail.last():
		return epoch == c.lastEpoch
	case last > c.commit:
		return epoch == c.tail.at(last).entry.Epoch
	}
	return true
}

func (c *Core) sendEntry(p *peer, e chunk.Entry) {
	e.Commit, p.told = c.commit, c.commit
	c.send(p.node, Message{Kind: Append, Entry: e})
}

func (c *Core) acked(p *peer, lsn chunk.LSN) {
	if p.syncing && !p.streaming {
		return // of a stream that has ended
	}
	if lsn > p.acked {
		p.acked, p.idle = lsn, 0
	}
	c.advance()
	c.resume()
}

// advance commits what is durable at all in-sync members.
func (c *Core) advance() {
	l := c.lead
	lsn := c.durable
	for i := range l.peers {
		p := &l.peers[i]
		if !p.counts() {
			continue
		}
		if !p.trusted {
			return
		}
		lsn = min(lsn, p.acked)
	}
	c.commitTo(lsn)
	l.active = l.active || lsn >= l.start
	c.answerReads()
}

// answerReads answers the reads whose entries are committed.
func (c *Core) answerReads() {
	reads := c.lead.reads
	kept := reads[:0]
	for _, r := range reads {
		if r.lsn <= c.commit {
			c.reply(Reply{Ticket: r.ticket})
		} else {
			kept = append(kept, r)
		}
	}
	c.lead.reads = kept
}

// tick tells the commit point to peers that no entry has told, and notices
// those that keep others waiting.
func (c *Core) tick() {
	if c.lead == nil {
		return
	}
	for i := range c.lead.peers {
		p := &c.lead.peers[i]
		if p.streaming && p.told < c.commit {
			c.send(p.node, Message{Kind: Commit, LSN: c.commit})
			p.told = c.commit
		}
		if !p.owes(c.tail.last()) {
			p.idle = 0
		} else if p.idle++; p.idle == maxIdle && p.syncing && p.streaming {
			c.giveUp(p)
		}
	}
	c.resume()
}
