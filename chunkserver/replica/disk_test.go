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

	content contents
	whole   bool      // the content is what the history says
	trusted chunk.LSN // if it isn't: what neither side changed since is

	copies [simParts]int // that came since it was put on the stream
}

func newDisk() disk { return disk{tokens: make(map[chunk.VolumeID]chunk.Token)} }

func (d *disk) clone() *disk {
	c := *d
	c.entries, c.tokens = slices.Clone(d.entries), maps.Clone(d.tokens)
	return &c
}

// contents is what all blocks have.
type contents [simVolumes * simChunks * chunkBlocks]content

const (
	simVolumes  = 2
	simChunks   = 2             // of a volume
	chunkBlocks = simBlocks + 1 // that operations reach
	partBlocks  = 2             // that are compared and copied together
	simParts    = simVolumes * simChunks * chunkBlocks / partBlocks
)

// at returns what a block has.
func (c *contents) at(b block) *content { return &c[b.number()] }

// number numbers the blocks. Scripts name others, too.
func (b block) number() int {
	chunkNo := int(b.ref.Volume-1)%simVolumes*simChunks + int(b.ref.Index)%simChunks
	return chunkNo*chunkBlocks + b.index%chunkBlocks
}

// partOf returns the part that a block is in. Its first block is partBlocks
// times that.
func partOf(b block) int { return b.number() / partBlocks }

// blockOf is the inverse of number.
func blockOf(number int) block {
	chunkNo := number / chunkBlocks
	ref := chunk.Ref{Volume: chunk.VolumeID(chunkNo/simChunks + 1), Index: uint32(chunkNo % simChunks)}
	return block{ref, number % chunkBlocks}
}

// content is what a block has: who wrote it, and a second version that
// depends on the first, as layers made by flattening depend on others.
type content struct {
	shown, base *chunk.Entry
	changed     chunk.LSN
}

// equal reports whether two blocks have the same.
func (c *content) equal(o *content) bool {
	return sameOrNone(c.shown, o.shown) && sameOrNone(c.base, o.base)
}

func sameOrNone(a, b *chunk.Entry) bool { return a == b || a != nil && b != nil && same(a, b) }

// execute applies an operation to whatever there is.
func (c *contents) execute(e *chunk.Entry) {
	for _, b := range touched(&e.Op) {
		c := c.at(b)
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
	}
}

// touched lists the blocks that an operation may change: a purge is for the
// whole chunk.
func touched(op *chunk.Op) []block {
	whole := *op
	if op.Kind == chunk.OpPurge {
		whole.Off, whole.Len = 0, chunkBlocks*chunk.BlockSize
	}
	return blocksOf(&whole)
}

// apply makes what was pending durable.
func (d *disk) apply(p pending) {
	switch {
	case p.trust:
		d.whole = true
	case p.copied != nil:
		d.copy(p.copied)
	default:
		d.entries = append(d.entries, *p.entry)
		d.commit = max(d.commit, p.entry.Commit)
		d.take(p.entry)
		d.content.execute(p.entry)
	}
}

func (d *disk) take(e *chunk.Entry) {
	if e.Op.Token.Compare(d.tokens[e.Op.Ref.Volume]) > 0 {
		d.tokens[e.Op.Ref.Volume] = e.Op.Token
	}
}

// copy makes a part what a Copy says: what was not sent is here already.
func (d *disk) copy(c *copied) {
	for i := range c.blocks {
		b := &d.content[c.part*partBlocks+i]
		if c.sent[i] {
			b.shown, b.base = c.blocks[i].shown, c.blocks[i].base
		}
		b.changed = chunk.LSN(len(d.entries)) + 1
	}
	d.copies[c.part]++
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
	d.tokens = make(map[chunk.VolumeID]chunk.Token)
	maps.Copy(d.tokens, h.Tokens)
	d.copies = [simParts]int{}
}

// drop forgets the copyset, but not what was promised.
func (d *disk) drop() {
	promised := d.promised
	*d = newDisk()
	d.promised = promised
}

// forget takes a disk back to when it had n entries, of those that it has.
func (d *disk) forget(n int) {
	d.entries = slices.Clone(d.entries[:n])
	d.commit = min(d.commit, chunk.LSN(n))
	d.promised = 0
	if n > 0 {
		d.promised = d.entries[n-1].Epoch
	}
	d.tokens, d.content = make(map[chunk.VolumeID]chunk.Token), contents{}
	for i := range d.entries {
		d.take(&d.entries[i])
		d.content.execute(&d.entries[i])
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
	part   int
	blocks [partBlocks]content
	sent   [partBlocks]bool
}

// outline is what a member has in a part.
func (d *disk) outline(part int) (blocks [partBlocks]content) {
	copy(blocks[:], d.content[part*partBlocks:])
	return blocks
}

// differ returns what a member that has theirs in a part must be sent, and
// whether that is anything.
func (d *disk) differ(part int, theirs *[partBlocks]content) (c copied, differs bool) {
	c.part, c.blocks = part, d.outline(part)
	for i := range c.blocks {
		c.sent[i] = !c.blocks[i].equal(&theirs[i])
		differs = differs || c.sent[i]
	}
	return c, differs
}
