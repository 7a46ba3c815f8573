package replica

import "github.com/localsnap/localsnap/chunkserver/chunk"

// State is what a store has kept of a copyset.
type State struct {
	Copyset   chunk.CopysetID
	Promised  chunk.Epoch                    // smaller epochs are refused
	LastEpoch chunk.Epoch                    // of the entry at Last
	Last      chunk.LSN                      // the end of the history, all of it durable
	Commit    chunk.LSN                      // the largest commit point known
	Tail      []chunk.Entry                  // every entry above Commit, in order
	Tokens    map[chunk.VolumeID]chunk.Token // the largest seen of each volume
}

// Core is one copyset at one chunkserver. It is not safe for concurrent use.
type Core struct {
	self     chunk.NodeID
	run      chunk.Incarnation
	promised chunk.Epoch // Invariant: at least config.Epoch

	config   chunk.Copyset     // its Epoch is 0 before the first
	standing chunk.MemberState // of this run under config; 0 if it isn't named, or promised is larger
	lead     *lead             // nil unless this is the primary of config
	round    uint64            // of the last probe heard under config

	// Of a member that is syncing.
	joined  uint64                         // the round in which it was last put on the stream, or 0
	arrived map[chunk.VolumeID]chunk.Token // told in round, before it is put there

	tail      tail        // entries above commit
	lastEpoch chunk.Epoch // of the entry at the end of the history
	durable   chunk.LSN
	commit    chunk.LSN
	tokens    map[chunk.VolumeID]chunk.Token // the largest in the history

	effects Effects // of the present Step
}

// New returns the core of a copyset at the chunkserver self, whose process is
// run, with what its store has kept. It serves nothing and takes part in
// nothing before it is configured. It owns s from then on.
func New(self chunk.NodeID, run chunk.Incarnation, s State) *Core {
	c := &Core{
		self:      self,
		run:       run,
		promised:  s.Promised,
		config:    chunk.Copyset{ID: s.Copyset},
		tail:      newTail(s.Last, s.Tail),
		lastEpoch: s.LastEpoch,
		durable:   s.Last,
		commit:    s.Commit,
		tokens:    s.Tokens,
	}
	if c.tokens == nil {
		c.tokens = make(map[chunk.VolumeID]chunk.Token)
	}
	return c
}

// Step takes in an event and returns what is to be done about it. The result
// is valid until the next Step.
func (c *Core) Step(e Event) Effects {
	c.effects.clear()
	switch e := e.(type) {
	case Configure:
		c.configure(e.Config)
	case Seal:
		c.seal(e)
	case Submit:
		c.submit(e)
	case Read:
		c.read(e)
	case Hold:
		c.hold(e)
	case Release:
		c.release(e)
	case Need:
		c.need(e)
	case Receive:
		c.receive(e.From, &e.Message)
	case Durable:
		c.madeDurable(e.LSN)
	case PeerUp:
		c.peerUp(e.Node)
	case Tick:
		c.tick()
	default:
		panic("replica: unknown event")
	}
	return c.effects
}

// Serving returns the epoch in which this chunkserver serves as the primary
// of the copyset, or 0 while it doesn't.
func (c *Core) Serving() chunk.Epoch {
	if c.lead == nil || !c.lead.active {
		return 0
	}
	return c.config.Epoch
}

// End returns the end of the history, and whether it is durable.
func (c *Core) End() (last chunk.LSN, durable bool) {
	return c.tail.last(), c.durable == c.tail.last()
}

// Promised returns the epoch below which the copyset refuses everything here.
func (c *Core) Promised() chunk.Epoch { return c.promised }

// Config returns the last configuration taken in, which nobody may change. Its
// Epoch is 0 before the first.
func (c *Core) Config() chunk.Copyset { return c.config }

// Standing returns what this run of the chunkserver is under the last
// configuration; 0 if that does not name it, or a larger epoch is promised.
func (c *Core) Standing() chunk.MemberState { return c.standing }

// Pulling tells whether this member is on a stream of the primary as one that
// is to pull what it has missed: it can do so as long as epoch and round stay.
func (c *Core) Pulling() (primary chunk.NodeID, epoch chunk.Epoch, round uint64, ok bool) {
	return c.config.Primary, c.config.Epoch, c.round, c.standing == chunk.Syncing && c.joined == c.round && c.joined != 0
}

func (c *Core) configure(config chunk.Copyset) {
	if config.Epoch < c.promised || config.Epoch <= c.config.Epoch {
		return
	}
	c.promise(config.Epoch)
	c.config, c.standing, c.round = config, 0, 0
	c.joined, c.arrived = 0, nil
	if m := config.Member(c.self); m != nil && m.Incarnation == c.run {
		c.standing = m.State
	}
	c.effects.Trust = c.standing == chunk.InSync
	if config.Primary == c.self && c.standing == chunk.InSync {
		c.takeLead()
	}
}

func (c *Core) seal(e Seal) {
	if e.Epoch < c.promised || e.Epoch == c.config.Epoch {
		c.refuse(e.Ticket, chunk.ErrStaleEpoch)
		return
	}
	c.promise(e.Epoch)
	c.reply(Reply{Ticket: e.Ticket, LastEpoch: c.lastEpoch, Last: c.tail.last()})
}

// promise ends everything of epochs smaller than epoch.
func (c *Core) promise(epoch chunk.Epoch) {
	if epoch <= c.promised {
		return
	}
	c.promised, c.standing = epoch, 0
	c.effects.Promise = epoch
	if c.lead != nil {
		c.resign()
	}
}

func (c *Core) madeDurable(lsn chunk.LSN) {
	if lsn <= c.durable {
		return
	}
	c.durable = lsn
	if c.lead != nil {
		c.advance()
		c.answerHolds()
		return
	}
	if c.round != 0 && c.reliable() {
		c.send(c.config.Primary, Message{Kind: Ack, LSN: c.durable})
	}
}

// reliable reports whether what is here is part of the history under config.
func (c *Core) reliable() bool {
	return c.standing == chunk.InSync || c.standing == chunk.Syncing && c.joined != 0
}

func (c *Core) peerUp(node chunk.NodeID) {
	switch {
	case c.lead != nil:
		if p := c.lead.peer(node); p != nil {
			c.probe(p)
			c.resume() // there is no stream that it may be behind on
		}
	case c.round != 0 && c.follows(node):
		c.sendStatus()
	}
}

// accept puts an entry at the end of the history.
func (c *Core) accept(s slot) {
	e := &s.entry
	c.tail.push(s)
	c.lastEpoch = e.Epoch
	if e.Op.Token.Compare(c.tokens[e.Op.Ref.Volume]) > 0 {
		c.tokens[e.Op.Ref.Volume] = e.Op.Token
	}
	c.effects.Journal = append(c.effects.Journal, *e)
}

// commitTo moves the commit point forward, and answers those who waited.
func (c *Core) commitTo(lsn chunk.LSN) {
	lsn = min(lsn, c.tail.last())
	if lsn <= c.commit {
		return
	}
	for c.tail.first <= lsn {
		if s := c.tail.at(c.tail.first); s.asked {
			c.reply(Reply{Ticket: s.ticket})
		}
		c.tail.drop()
	}
	c.commit = lsn
	c.effects.Commit = lsn
}

// send has a message sent under the present configuration.
func (c *Core) send(to chunk.NodeID, m Message) {
	m.Copyset, m.Epoch = c.config.ID, c.config.Epoch
	c.effects.Send = append(c.effects.Send, Envelope{To: to, Message: m})
}

func (c *Core) reply(r Reply) { c.effects.Reply = append(c.effects.Reply, r) }

func (c *Core) refuse(t Ticket, err error) { c.reply(Reply{Ticket: t, Err: err}) }
