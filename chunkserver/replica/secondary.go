package replica

import "github.com/localsnap/localsnap/chunkserver/chunk"

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
	return c.standing == chunk.InSync && c.config.Primary == node
}

func (c *Core) receiveAsSecondary(m *Message) {
	switch m.Kind {
	case Probe:
		if m.Round >= c.round {
			c.round = m.Round
			c.sendStatus()
		}
	case Append:
		// What was sent again is here already; behind a gap, the primary
		// is about to probe.
		if m.Entry.LSN == c.tail.next {
			c.accept(slot{entry: m.Entry})
			c.commitTo(m.Entry.Commit)
		}
	case Commit:
		c.commitTo(m.LSN)
	}
}

// sendStatus answers the last probe.
func (c *Core) sendStatus() {
	c.send(c.config.Primary, Message{
		Kind:      Status,
		Round:     c.round,
		LSN:       c.durable,
		Last:      c.tail.last(),
		LastEpoch: c.lastEpoch,
	})
}
