package replica

import (
	"fmt"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// A cluster is a copyset's chunkservers with disks and connections that only
// do something when they are told to. Scripts and the simulator drive it.
type cluster struct {
	nodes []*node
	links map[[2]chunk.NodeID]*link

	// copied is what copies say, by number: their Data.
	copied []copied

	// stepped is told of every step of a core, after its effects.
	stepped func(*node, Event, Effects)
}

// A node is a chunkserver: a disk, and a process unless core is nil.
type node struct {
	id   chunk.NodeID
	run  chunk.Incarnation
	core *Core

	disk    disk
	pending []pending
	shelf   *disk // what an earlier disk had, or nil
}

// A link carries messages in one direction.
type link struct {
	queue []Message // on the present connection, in order
	late  []Message // of earlier connections, or copies: in any order, or never
}

func newCluster(n int) *cluster {
	c := &cluster{links: make(map[[2]chunk.NodeID]*link), stepped: func(*node, Event, Effects) {}}
	for i := range n {
		c.nodes = append(c.nodes, &node{id: chunk.NodeID(i + 1), disk: newDisk()})
	}
	for _, from := range c.nodes {
		for _, to := range c.nodes {
			if from != to {
				c.links[[2]chunk.NodeID{from.id, to.id}] = &link{}
			}
		}
	}
	return c
}

func (c *cluster) node(id chunk.NodeID) *node { return c.nodes[id-1] }

func (c *cluster) link(from, to chunk.NodeID) *link { return c.links[[2]chunk.NodeID{from, to}] }

// last is the end of the history, durable or not.
func (n *node) last() chunk.LSN { return chunk.LSN(len(n.disk.entries) + len(n.journaled())) }

// journaled are the entries that are pending.
func (n *node) journaled() (entries []*chunk.Entry) {
	for _, p := range n.pending {
		if p.entry != nil {
			entries = append(entries, p.entry)
		}
	}
	return entries
}

// entry returns an entry of the history, durable or not.
func (n *node) entry(lsn chunk.LSN) *chunk.Entry {
	if i := int(lsn) - 1; i < len(n.disk.entries) {
		return &n.disk.entries[i]
	} else if journaled := n.journaled(); i-len(n.disk.entries) < len(journaled) {
		return journaled[i-len(n.disk.entries)]
	}
	return nil
}

// start runs a process, which connects to those that run.
func (c *cluster) start(n *node) {
	n.run++
	n.core = New(n.id, n.run, n.disk.state())
	for _, peer := range c.nodes {
		if peer != n && peer.core != nil {
			c.connect(n.id, peer.id)
			c.connect(peer.id, n.id)
		}
	}
}

// crash ends a process: of what was not durable, survives the first.
func (c *cluster) crash(n *node, survives int) {
	n.flush(survives)
	n.core, n.pending = nil, nil
	for _, peer := range c.nodes {
		if peer != n {
			l := c.link(peer.id, n.id)
			l.queue, l.late = nil, nil // nobody is there to receive it
		}
	}
}

// connect replaces the connection in one direction. What was on the old one
// may arrive late.
func (c *cluster) connect(from, to chunk.NodeID) {
	l := c.link(from, to)
	l.late = append(l.late, l.queue...)
	l.queue = nil
	c.step(c.node(from), PeerUp{to})
}

// deliver has the oldest message of a connection received.
func (c *cluster) deliver(from, to chunk.NodeID) {
	l := c.link(from, to)
	m := l.queue[0]
	l.queue = l.queue[1:]
	c.step(c.node(to), Receive{from, m})
}

// sync makes the first k pending entries durable.
func (c *cluster) sync(n *node, k int) {
	n.flush(k)
	c.step(n, Durable{chunk.LSN(len(n.disk.entries))})
}

func (n *node) flush(k int) {
	for _, p := range n.pending[:k] {
		n.disk.apply(p)
	}
	n.pending = slices.Clone(n.pending[k:])
}

// step is the shell.
func (c *cluster) step(n *node, e Event) {
	effects := n.core.Step(e)
	if effects.Promise != 0 {
		n.flush(len(n.pending)) // as the journal keeps its order
		n.disk.promised = effects.Promise
	}
	if effects.Reset != nil {
		n.flush(len(n.pending))
		n.disk.reset(effects.Reset)
	}
	for _, e := range effects.Journal {
		if e.LSN != n.last()+1 {
			panic(fmt.Sprintf("node %d journals entry %d after %d", n.id, e.LSN, n.last()))
		}
		n.pending = append(n.pending, pending{entry: &e})
	}
	for _, sent := range effects.Copies {
		n.pending = append(n.pending, pending{copied: &c.copied[sent.Data]})
	}
	if effects.Trust {
		n.pending = append(n.pending, pending{trust: true})
	}
	for _, s := range effects.Send {
		if c.node(s.To).core != nil {
			l := c.link(n.id, s.To)
			l.queue = append(l.queue, s.Message)
		}
	}
	if effects.Commit != 0 {
		n.disk.commit = max(n.disk.commit, min(effects.Commit, chunk.LSN(len(n.disk.entries))))
	}
	c.stepped(n, e, effects)
}
