package replica

import (
	"maps"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

func (c *Core) receive(from chunk.NodeID, m *Message) {
	if m.Kind == Probe && m.Config != nil && m.Config.Primary == from {
		c.configure(*m.Config)
	}
	if m.Epoch != c.config.Epoch {
		return
	}
	if c.lead != nil {
		c.receiveAsPrimary(from, m)
	} else if c.follows(from) {
		c.receiveAsSecondary(m)
	}
}

func (c *Core) receiveAsPrimary(from chunk.NodeID, m *Message) {
	p := c.lead.peer(from)
	if p == nil {
		return
	}
	switch m.Kind {
	case Status:
		c.heard(p, m)
	case Ack:
		c.acked(p, m.LSN)
	}
}

// follows reports whether this is a secondary of the primary node.
func (c *Core) follows(node chunk.NodeID) bool {
	return (c.standing == chunk.InSync || c.standing == chunk.Syncing) && c.config.Primary == node
}

func (c *Core) receiveAsSecondary(m *Message) {
	switch m.Kind {
	case Probe:
		if m.Round > c.round {
			c.round, c.arrived = m.Round, nil
		}
		if m.Round == c.round {
			c.sendStatus()
		}
	case Append:
		// What was sent again is here already; behind a gap, the primary
		// is about to probe.
		if m.Entry.LSN == c.tail.next && c.reliable() {
			c.accept(slot{entry: m.Entry})
			c.commitTo(m.Entry.Commit)
		}
	case Commit:
		if c.reliable() {
			c.commitTo(m.LSN)
		}
	case Tokens, Reset, Copy:
		if c.standing == chunk.Syncing && c.round != 0 && m.Round == c.round {
			c.receiveSyncing(m)
		}
	}
}

// receiveSyncing takes in what only a member that is syncing is told, on the
// stream of this round.
func (c *Core) receiveSyncing(m *Message) {
	switch joined := c.joined == c.round; {
	case m.Kind == Copy:
		// Behind another entry it would be late, and undo that.
		if joined && m.LSN == c.tail.last() {
			c.effects.Copies = append(c.effects.Copies, *m.Copy)
		}
	case joined: // it was sent again
	case m.Kind == Tokens:
		if c.arrived == nil {
			c.arrived = make(map[chunk.VolumeID]chunk.Token)
		}
		maps.Copy(c.arrived, m.Tokens)
	case m.Kind == Reset:
		c.join(m)
	}
}

// join leaves the history that is here for the primary's, whose content up to
// the message's LSN is to be pulled.
func (c *Core) join(m *Message) {
	c.tail = newTail(m.LSN, nil)
	c.lastEpoch, c.durable, c.commit = m.LastEpoch, m.LSN, m.LSN
	c.tokens = make(map[chunk.VolumeID]chunk.Token, len(c.arrived))
	maps.Copy(c.tokens, c.arrived)
	c.effects.Reset = &History{LastEpoch: m.LastEpoch, LSN: m.LSN, Tokens: c.arrived}
	c.joined, c.arrived = c.round, nil
	c.send(c.config.Primary, Message{Kind: Ack, LSN: c.durable})
}

// sendStatus answers the last probe.
func (c *Core) sendStatus() {
	m := Message{Kind: Status, Round: c.round, Last: c.tail.last(), LastEpoch: c.lastEpoch}
	if c.reliable() {
		m.LSN = c.durable
	}
	c.send(c.config.Primary, m)
}
