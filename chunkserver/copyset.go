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
	durable atomic.Uint64 // the last LSN that the store has reported, now or when it was opened
	wake    chan struct{} // holds a token when durable has grown

	mu      sync.Mutex
	core    *replica.Core
	waiting map[replica.Ticket]func(replica.Reply)
	last    replica.Ticket
	halted  error       // why nothing is done any more, as chunk.ErrStopped
	told    wire.Report // what the leader was rung about

	pull *pull // what is under way to bring the copyset up to date, or nil

	// links are the connections to the peers. A copyset changes over to a
	// new one as it tells its core of it, so that nothing is sent there
	// before.
	links map[chunk.NodeID]*wire.Conn
}

func newCopyset(s *Server, state replica.State) *copyset {
	c := &copyset{
		server:  s,
		id:      state.Copyset,
		wake:    make(chan struct{}, 1),
		core:    replica.New(s.node, s.incarnation, state),
		waiting: make(map[replica.Ticket]func(replica.Reply)),
		links:   make(map[chunk.NodeID]*wire.Conn),
	}
	c.durable.Store(uint64(state.Last))
	return c
}

// run tells the core of time, and of what the store has made durable, until
// the server stops.
func (c *copyset) run() {
	tick := time.NewTicker(tickPeriod)
	defer tick.Stop()
	for {
		select {
		case <-c.wake:
			c.madeDurable()
		case <-tick.C:
			c.step(replica.Tick{})
			c.report()
		case <-c.server.ctx.Done():
			return
		}
	}
}

// madeDurable tells the core what the store has reported. Both are looked at
// under mu: a reset may have put the history back in between.
func (c *copyset) madeDurable() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.halted == nil {
		c.carryOut(c.core.Step(replica.Durable{LSN: chunk.LSN(c.durable.Load())}))
	}
}

// report has the leader told when there is something new about members.
func (c *copyset) report() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if report := c.reported(); !report.Equal(c.told) {
		c.told = report
		c.server.ring()
	}
}

// reported is what the leader is to know about the members. mu must be held.
func (c *copyset) reported() wire.Report {
	synced, lagging := c.core.Report()
	return wire.Report{Copyset: c.id, Epoch: c.core.Config().Epoch, Synced: synced, Lagging: lagging}
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
func (c *copyset) ask(request func(replica.Ticket) replica.Event, answer func(replica.Reply)) replica.Ticket {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	ticket := c.last
	if c.halted != nil {
		answer(replica.Reply{Err: c.halted})
		return ticket
	}
	c.waiting[ticket] = answer
	c.carryOut(c.core.Step(request(ticket)))
	return ticket
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
	if e.Reset != nil {
		if err := c.reset(e.Reset); err != nil {
			c.halt(fmt.Errorf("go on behind %d: %w", e.Reset.LSN, err))
			return
		}
	}
	if len(e.Journal) > 0 {
		if err := c.journal(slices.Clone(e.Journal)); err != nil {
			c.halt(fmt.Errorf("journal: %w", err))
			return
		}
	}
	for i := range e.Copies {
		copied := e.Copies[i] // the effects' room is used again
		if err := c.keep(&copied); err != nil {
			c.halt(fmt.Errorf("copy: %w", err))
			return
		}
	}
	if e.Trust {
		if err := c.trust(); err != nil {
			c.halt(fmt.Errorf("trust: %w", err))
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
	c.follow()
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

// reset returns when the history goes on behind another end, durably. All that
// was journaled before has been reported then.
func (c *copyset) reset(r *replica.History) error {
	done := make(chan error, 1)
	if err := c.server.store.Reset(c.server.ctx, c.id, r.LastEpoch, r.LSN, r.Tokens, func(err error) { done <- err }); err != nil {
		return err
	}
	err := <-done // the store answers in any case
	c.durable.Store(uint64(r.LSN))
	return err
}

// trust has the store note that what it has is what the history says.
func (c *copyset) trust() error {
	return c.server.store.Trust(c.server.ctx, c.id, func(error) {}) // a store that fails ends the server
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
		conn.Tell(wire.KindReplica, wire.AppendMessage(nil, &e.Message), wire.MessageData(&e.Message))
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

// drop forgets what is here of the copyset, unless a configuration behind that
// of epoch has come meanwhile.
func (c *copyset) drop(epoch chunk.Epoch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if last, _ := c.core.End(); c.halted != nil || last == 0 || c.core.Config().Epoch != epoch {
		return c.halted
	}
	return c.server.store.Drop(c.server.ctx, c.id, func(error) {}) // a store that fails ends the server
}
