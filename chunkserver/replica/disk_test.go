package replica

import (
	"maps"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// A disk is what a node has durably, and shows to readers.
type disk struct {
	promised chunk.Epoch

	// entries is the history; LSN 1 comes first. Those up to joined are
	// blank: it was put on a stream there, and has their effects only.
	entries []chunk.Entry
	joined  chunk.LSN
	commit  chunk.LSN
	tokens  map[chunk.VolumeID]chunk.Token

	content map[block]content
	whole   bool      // the content is what the history says
	trusted chunk.LSN // if it isn't: what neither side changed since is

	copies map[block]int // that came since it was put on the stream
}

func newDisk() disk {
	return disk{tokens: make(map[chunk.VolumeID]chunk.Token), content: make(map[block]content), copies: make(map[block]int)}
}

// content is what a block has: who wrote it, and a second version that
// depends on the first, as layers made by flattening depend on others.
type content struct {
	shown, base *chunk.Entry
	changed     chunk.LSN
}

// equal reports whether two blocks have the same.
func (c content) equal(o content) bool {
	return sameOrNone(c.shown, o.shown) && sameOrNone(c.base, o.base)
}

func sameOrNone(a, b *chunk.Entry) bool { return a == b || a != nil && b != nil && same(a, b) }

// execute applies an operation to the content.
func execute(to map[block]content, e *chunk.Entry) {
	for _, b := range touched(&e.Op) {
		c := to[b]
		switch e.Op.Kind {
		case chunk.OpWrite, chunk.OpZero:
			c.shown = e
		case chunk.OpFlatten:
			if c.base == nil {
				c.base = c.shown
			}
		case chunk.OpPurge:
			if !sameOrNone(c.base, c.shown) {
				c.base = nil
			}
		}
		c.changed = e.LSN
		to[b] = c
	}
}

// touched lists the blocks that an operation may change: a purge is for the
// whole chunk.
func touched(op *chunk.Op) []block {
	whole := *op
	if op.Kind == chunk.OpPurge {
		whole.Off, whole.Len = 0, simBlocks*chunk.BlockSize
	}
	return blocksOf(&whole)
}

// apply makes what was pending durable.
func (d *disk) apply(p pending) {
	switch {
	case p.trust:
		d.whole = true
	case p.copied != nil:
		b, c := p.copied.block, p.copied.content
		c.changed = chunk.LSN(len(d.entries)) + 1
		d.content[b] = c
		d.copies[b]++
	default:
		e := p.entry
		d.entries = append(d.entries, *e)
		d.commit = max(d.commit, e.Commit)
		d.take(e)
		execute(d.content, e)
	}
}

func (d *disk) take(e *chunk.Entry) {
	if e.Op.Token.Compare(d.tokens[e.Op.Ref.Volume]) > 0 {
		d.tokens[e.Op.Ref.Volume] = e.Op.Token
	}
}

// reset has the history go on elsewhere.
func (d *disk) reset(h *History) {
	if d.whole {
		d.whole, d.trusted = false, d.commit
	}
	d.entries = make([]chunk.Entry, h.LSN)
	for i := range d.entries {
		d.entries[i].LSN = chunk.LSN(i + 1)
	}
	if h.LSN > 0 {
		d.entries[h.LSN-1].Epoch = h.LastEpoch
	}
	d.joined, d.commit = h.LSN, h.LSN
	d.tokens = maps.Clone(h.Tokens)
	if d.tokens == nil {
		d.tokens = make(map[chunk.VolumeID]chunk.Token)
	}
	d.copies = make(map[block]int)
}

// forget takes a disk back to when it had n entries, of those that it has.
func (d *disk) forget(n int) {
	d.entries = slices.Clone(d.entries[:n])
	d.commit = min(d.commit, chunk.LSN(n))
	d.promised = 0
	if n > 0 {
		d.promised = d.entries[n-1].Epoch
	}
	d.tokens, d.content = make(map[chunk.VolumeID]chunk.Token), make(map[block]content)
	for i := range d.entries {
		d.take(&d.entries[i])
		execute(d.content, &d.entries[i])
	}
}

func (d *disk) state() State {
	s := State{Promised: d.promised, Last: chunk.LSN(len(d.entries)), Commit: d.commit, Tokens: maps.Clone(d.tokens)}
	s.Tail = slices.Clone(d.entries[d.commit:])
	if n := len(d.entries); n > 0 {
		s.LastEpoch = d.entries[n-1].Epoch
	}
	return s
}

// pending is something that was handed to the journal and is not durable: an
// entry, a copy, or word that the content is to be trusted.
type pending struct {
	entry  *chunk.Entry
	copied *copied
	trust  bool
}

// copied is what a Copy says, in the simulator.
type copied struct {
	block   block
	content content
}
