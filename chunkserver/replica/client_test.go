package replica

import (
	"encoding/binary"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// A client is an attachment of a volume.
type client struct {
	volume   chunk.VolumeID
	token    chunk.Token
	attached bool // its fence is in place
	replaced bool // so is that of a later one
	fenced   bool // it has been told
	config   chunk.Copyset
	requests []*request
}

// A request is what a client wants until it has it.
type request struct {
	client *client
	id     uint64
	op     chunk.Op // for a read, only where
	isRead bool
	floor  chunk.LSN // what was certain about the block when a read began
	ticket Ticket    // of the last attempt; 0 if there is to be another
}

// data tells the request's operation, whatever its kind, from all others.
func (r *request) data() []byte { return binary.LittleEndian.AppendUint64(nil, r.id) }

// A wait is an attempt under way.
type wait struct {
	request *request
	node    *node
	run     chunk.Incarnation
	epoch   chunk.Epoch
	value   *chunk.Entry // of a read: who wrote what it found
}

// reset has a client give up its connections, get the map, and try again.
func (w *world) reset(c *client) {
	for _, r := range c.requests {
		w.again(r)
	}
	c.config = w.config
}

// again has a request tried once more.
func (w *world) again(r *request) {
	delete(w.waiting, r.ticket)
	r.ticket = 0
	r.client.config = w.config
}

// ask hands a request to a node.
func (w *world) ask(n *node, t Ticket, e Event) {
	w.open[t] = n.core
	w.step(n, e)
}

// disconnect tells the clients that a node's process is gone.
func (w *world) disconnect(n *node) {
	for _, c := range w.clients {
		for _, r := range c.requests {
			if wait := w.waiting[r.ticket]; wait != nil && wait.node == n {
				w.again(r)
			}
		}
	}
}

// attach replaces the writer of a volume, which is not told.
func (s *sim) attach(volume chunk.VolumeID) {
	attachment := uint64(1)
	for _, c := range s.clients {
		if c.volume == volume {
			attachment = max(attachment, c.token.Attachment+1)
		}
	}
	if attachment > maxWriters {
		return
	}
	s.logf("attachment %d of volume %d", attachment, volume)
	c := &client{volume: volume, token: chunk.Token{Attachment: attachment, Seq: 1}}
	r := &request{client: c, id: s.newID()}
	r.op = chunk.Op{Kind: chunk.OpFence, Ref: chunk.Ref{Volume: volume}, Token: c.token, Data: r.data()}
	c.requests = append(c.requests, r)
	s.clients = append(s.clients, c)
}

// issue has a client begin with an operation or a read of a range that no
// write of its own is under way for.
func (s *sim) issue(c *client) {
	if s.quiet || c.fenced || !c.attached || len(c.requests) >= 4 {
		return
	}
	if len(c.requests) == 0 && s.rng.IntN(8) == 0 {
		c.token.Seq++ // a snapshot
	}
	first, n := s.rng.IntN(simBlocks), 1+s.rng.IntN(2)
	r := &request{client: c, id: s.newID(), isRead: s.rng.IntN(3) == 0}
	r.op = chunk.Op{
		Kind:  chunk.OpWrite,
		Ref:   chunk.Ref{Volume: c.volume, Index: uint32(s.rng.IntN(2))},
		Token: c.token,
		Off:   uint32(first * chunk.BlockSize),
		Len:   uint32(n * chunk.BlockSize),
	}
	switch s.rng.IntN(16) {
	case 0:
		r.op.Kind = chunk.OpZero
	case 1:
		r.op = chunk.Op{Kind: chunk.OpPurge, Ref: r.op.Ref}
	case 2:
		r.op = chunk.Op{Kind: chunk.OpFlatten, Ref: r.op.Ref, Off: r.op.Off, Len: r.op.Len}
	}
	r.op.Data = r.data()
	if r.isRead {
		r.op.Off, r.op.Len = uint32(first*chunk.BlockSize), chunk.BlockSize
		r.floor = s.floor(&r.op)
	}
	if !slices.ContainsFunc(c.requests, r.collides) {
		c.requests = append(c.requests, r)
	}
}

// collides reports whether two writes are for the same blocks.
func (r *request) collides(other *request) bool {
	a, b := &r.op, &other.op
	return !r.isRead && !other.isRead && a.Ref == b.Ref && a.Off < b.Off+b.Len && b.Off < a.Off+a.Len
}

// pump hands the oldest request that a client has not sent to the node that
// it takes for the primary.
func (s *sim) pump(c *client) {
	for _, r := range c.requests {
		if r.ticket != 0 {
			continue
		}
		if c.config.Primary == 0 || !s.alive(s.node(c.config.Primary)) {
			s.reset(c)
			return
		}
		n := s.node(c.config.Primary)
		s.tickets++
		r.ticket = s.tickets
		s.waiting[r.ticket] = &wait{request: r, epoch: c.config.Epoch, node: n, run: n.run}
		if r.isRead {
			s.beginRead(n, r)
			return
		}
		s.logf("client %d.%d submits %d: %v", c.volume, c.token.Attachment, r.id, shownOp(r.op))
		s.ask(n, r.ticket, Submit{Ticket: r.ticket, Epoch: c.config.Epoch, Op: r.op})
		return
	}
}

// beginRead reads from the node's disk; finishRead asks whether that may be
// answered.
func (s *sim) beginRead(n *node, r *request) {
	w := s.waiting[r.ticket]
	if n.core.Serving() != w.epoch {
		s.again(r)
		return
	}
	w.value = n.read(&r.op)
	s.reads = append(s.reads, r.ticket)
}

func (s *sim) finishRead() {
	if len(s.reads) == 0 {
		return
	}
	i := s.rng.IntN(len(s.reads))
	t := s.reads[i]
	w := s.waiting[t]
	if w != nil && s.paused[w.node.id] {
		return
	}
	s.reads = slices.Delete(s.reads, i, i+1)
	if w == nil || w.node.core == nil || w.node.run != w.run {
		return
	}
	op := &w.request.op
	s.ask(w.node, t, Read{Ticket: t, Epoch: w.epoch, Ref: op.Ref, Off: op.Off, Len: op.Len})
}

// read returns the entry that a block's content, as the store shows it, is
// from.
func (n *node) read(op *chunk.Op) *chunk.Entry { return n.disk.content.at(blocksOf(op)[0]).shown }
