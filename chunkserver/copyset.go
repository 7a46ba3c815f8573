package chunkserver

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/replica"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// tickPeriod is the time between two replica.Ticks.
const tickPeriod = 250 * time.Millisecond

// copyset is the shell of one replica.Core: it feeds it events and carries
// out the effects of each before the next.
//
// mu is held while the store is waited for: for room in its queue, and for a
// promise to be durable. The store makes progress without mu, as its
// callbacks only leave word in durable and wake; so the wait ends.
type copyset struct {
	server *Server
	id     chunk.CopysetID

	serving atomic.Uint64 // the epoch in which this is the primary, or 0
	durable atomic.Uint64 // the last LSN that the store has reported
	wake    chan struct{} // holds a token when durable has grown

	mu      sync.Mutex
	core    *replica.Core
	waiting map[replica.Ticket]func(replica.Reply)
	last    replica.Ticket
	halted  error // why nothing is done any more, as chunk.ErrStopped

	// links are the connections to the peers. A copyset changes over to a
	// new one as it tells its core of it, so that nothing is sent there
	// before.
	links map[chunk.NodeID]*wire.Conn
}

func newCopyset(s *Server, state replica.State) *copyset {
	return &copyset{
		server:  s,
		id:      state.Copyset,
		wake:    make(chan struct{}, 1),
		core:    replica.New(s.node, s.incarnation, state),
		waiting: make(map[replica.Ticket]func(replica.Reply)),
		links:   make(map[chunk.NodeID]*wire.Conn),
	}
}

// run tells the core of time, and of what the store has made durable, until
// the server stops.
func (c *copyset) run() {
	tick := time.NewTicker(tickPeriod)
	defer tick.Stop()
	for {
		select {
		case <-c.wake:
			c.step(replica.Durable{LSN: chunk.LSN(c.durable.Load())})
		case <-tick.C:
			c.step(replica.Tick{})
		case <-c.server.ctx.Done():
			return
		}
	}
}

// step takes in an event that needs no answer.
func (c *copyset) step(e replica.Event) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.halted != nil {
		return c.halted
	}
	c.carryOut(c.core.Step(e))
	return c.halted
}

// ask takes in the event that request makes of a ticket. answer is called
// once, under mu, now or later: it must not block.
func (c *copyset) ask(request func(replica.Ticket) replica.Event, answer func(replica.Reply)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.halted != nil {
		answer(replica.Reply{Err: c.halted})
		return
	}
	c.last++
	c.waiting[c.last] = answer
	c.carryOut(c.core.Step(request(c.last)))
}

// promised is the epoch below which everything is refused.
func (c *copyset) promised() chunk.Epoch {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.core.Promised()
}

// linked changes over to a new connection to a peer.
func (c *copyset) linked(node chunk.NodeID, conn *wire.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.halted != nil {
		return
	}
	c.links[node] = conn
	c.carryOut(c.core.Step(replica.PeerUp{Node: node}))
}

// carryOut does what the core has answered to an event. mu must be held.
func (c *copyset) carryOut(e replica.Effects) {
	c.serving.Store(uint64(c.core.Serving()))
	if e.Promise != 0 {
		if err := c.promise(e.Promise); err != nil {
			c.halt(fmt.Errorf("promise epoch %d: %w", e.Promise, err))
			return
		}
	}
	if len(e.Journal) > 0 {
		if err := c.journal(slices.Clone(e.Journal)); err != nil {
			c.halt(fmt.Errorf("journal: %w", err))
			return
		}
	}
	for i := range e.Send {
		c.send(&e.Send[i])
	}
	for _, r := range e.Reply {
		answer := c.waiting[r.Ticket]
		delete(c.waiting, r.Ticket)
		answer(r)
	}
	if e.Commit != 0 {
		c.server.store.Committed(c.id, e.Commit)
	}
	for _, node := range e.Suspects {
		c.server.log.Error("member of copyset contradicts what it acknowledged", "copyset", c.id, "node", node)
	}
}

// promise returns when the promise is durable, and with it everything that
// was journaled before.
func (c *copyset) promise(epoch chunk.Epoch) error {
	done := make(chan error, 1)
	if err := c.server.store.Promise(c.server.ctx, c.id, epoch, func(err error) { done <- err }); err != nil {
		return err
	}
	return <-done // the store answers in any case
}

// journal returns when the store has accepted the entries.
func (c *copyset) journal(entries []chunk.Entry) error {
	last := entries[len(entries)-1].LSN
	return c.server.store.Append(c.server.ctx, entries, func(err error) {
		if err != nil {
			return // the store has failed, which ends the server
		}
		c.durable.Store(uint64(last))
		select {
		case c.wake <- struct{}{}:
		default:
		}
	})
}

func (c *copyset) send(e *replica.Envelope) {
	if conn := c.links[e.To]; conn != nil {
		conn.Tell(wire.KindReplica, wire.AppendMessage(nil, &e.Message), e.Message.Entry.Op.Data)
	}
}

// halt ends the copyset, whose core is ahead of the store from now on, and
// with it the server. mu must be held.
func (c *copyset) halt(err error) {
	c.halted = fmt.Errorf("%w: copyset %d: %w", chunk.ErrStopped, c.id, err)
	c.serving.Store(0)
	for _, answer := range c.waiting {
		answer(replica.Reply{Err: c.halted})
	}
	clear(c.waiting)
	c.server.stop(c.halted)
}
