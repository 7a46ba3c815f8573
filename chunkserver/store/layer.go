package store

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// layerID names a layer. Its blocks are in a sparse file of that name, block
// b at b times the block size, and nothing else is:
//
//	layers/<volume, 16 digits>/<chunk index, 8>.<sequence number, 16>	in hexadecimal
//
// Which blocks hold data, and their checksums, is in the database. What the
// file has in the places of the others is not defined; it may end before them.
type layerID struct {
	ref chunk.Ref
	seq chunk.Seq
}

const layerDir = "layers"

func volumeDir(v chunk.VolumeID) string { return fmt.Sprintf("%s/%016x", layerDir, uint64(v)) }

// parseVolumeDir is the inverse of volumeDir, for a name within layerDir.
func parseVolumeDir(name string) (chunk.VolumeID, bool) {
	id, err := strconv.ParseUint(name, 16, 64)
	return chunk.VolumeID(id), err == nil && volumeDir(chunk.VolumeID(id)) == layerDir+"/"+name
}

func (id layerID) name() string {
	return fmt.Sprintf("%s/%08x.%016x", volumeDir(id.ref.Volume), id.ref.Index, uint64(id.seq))
}

func (id layerID) String() string {
	return fmt.Sprintf("layer %d of chunk %v", id.seq, id.ref)
}

// parseLayerName is the inverse of name, for a file in the directory of volume.
func parseLayerName(volume chunk.VolumeID, file string) (id layerID, ok bool) {
	left, right, ok := strings.Cut(file, ".")
	if !ok {
		return layerID{}, false
	}
	index, err1 := strconv.ParseUint(left, 16, 32)
	seq, err2 := strconv.ParseUint(right, 16, 64)
	id = layerID{chunk.Ref{Volume: volume, Index: uint32(index)}, chunk.Seq(seq)}
	return id, err1 == nil && err2 == nil && id.name() == volumeDir(volume)+"/"+file
}

// mix is what the checksum of a block is combined with, by xor, before it is
// stored, so that the content of another block, layer or chunk, written or read
// by mistake, does not pass. It is part of the format.
func (id layerID) mix(block int) uint32 {
	var h uint64
	for _, x := range [...]uint64{uint64(id.ref.Volume), uint64(id.ref.Index), uint64(id.seq), uint64(block)} {
		h = (h ^ x) * 0x9e3779b97f4a7c15
		h ^= h >> 29
	}
	return uint32(h >> 32)
}

// partBlocks is the number of blocks of which the metadata is stored together.
const (
	partBlocks = 64
	parts      = chunk.Blocks / partBlocks
)

// A part says of 64 blocks of a layer which of them hold data, with what
// checksum, and which are zeros that hide what lies below. The others are
// absent: what lies below shows.
type part struct {
	data, zero uint64             // Invariant: no bit is in both
	sums       [partBlocks]uint32 // Invariant: 0 for blocks that are zeros
	changed    chunk.LSN          // Invariant: no later operation has changed it
}

func (p *part) has() uint64 { return p.data | p.zero }

// A layer is the metadata of what was written to a chunk at one sequence
// number. The shard's mu guards it.
type layer struct {
	id    layerID
	parts [parts]*part // nil if all blocks are absent
	kept  uint64       // Invariant: the parts that are not nil
	dirty uint64       // parts that differ from the database
	lent  uint64       // parts that a cut refers to: replaced instead of changed
	sum   digest       // Invariant: of all blocks that are there
	last  stamp        // of the last change; never of an earlier one than it was
	fresh uint64       // parts that have been changed and not stamped
	size  int64        // as counted in shard.bytes
}

// each calls fn for the parts that are there.
func (l *layer) each(fn func(i int, p *part)) {
	for m := l.kept; m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m)
		fn(i, l.parts[i])
	}
}

// state tells about one block.
func (l *layer) state(block int) (data, zero bool, sum uint32) {
	p := l.parts[block/partBlocks]
	if p == nil {
		return false, false, 0
	}
	bit := uint64(1) << (block % partBlocks)
	return p.data&bit != 0, p.zero&bit != 0, p.sums[block%partBlocks]
}

func (l *layer) empty() bool { return l.kept == 0 }

// blocks counts the blocks that hold data.
func (l *layer) blocks() int {
	n := 0
	l.each(func(_ int, p *part) { n += bits.OnesCount64(p.data) })
	return n
}

// put makes p, or nil, part i.
func (l *layer) put(i int, p *part) {
	l.parts[i] = p
	if p != nil {
		l.kept |= 1 << i
	} else {
		l.kept &^= 1 << i
	}
}

// restore makes p, as it was saved, part i, which there is none of.
func (l *layer) restore(i int, p *part) {
	l.put(i, p)
	l.sum.toggle(p.digest(i, p.has()))
}

// change returns part i, to be changed.
func (l *layer) change(i int) *part {
	if p := l.parts[i]; p == nil {
		l.put(i, new(part))
	} else if l.lent&(1<<i) != 0 {
		own := *p
		l.put(i, &own)
	}
	l.lent &^= 1 << i
	l.dirty |= 1 << i
	l.fresh |= 1 << i
	return l.parts[i]
}

func (l *layer) setData(block int, sum uint32) {
	i, bit := block/partBlocks, uint64(1)<<(block%partBlocks)
	p := l.change(i)
	l.sum.toggle(p.digest(i, bit))
	p.data |= bit
	p.zero &^= bit
	p.sums[block%partBlocks] = sum
	l.sum.toggle(p.digest(i, bit))
}

func (l *layer) setZero(block int) {
	i, bit := block/partBlocks, uint64(1)<<(block%partBlocks)
	p := l.change(i)
	l.sum.toggle(p.digest(i, bit))
	p.zero |= bit
	p.data &^= bit
	p.sums[block%partBlocks] = 0
	l.sum.toggle(p.digest(i, bit))
}

// stamped notes what has changed the layer.
func (l *layer) stamped(by stamp) {
	l.last = stamp{by.copyset, max(l.last.lsn, by.lsn)}
	for m := l.fresh & l.kept; m != 0; m &= m - 1 {
		p := l.parts[bits.TrailingZeros64(m)]
		p.changed = max(p.changed, by.lsn)
	}
	l.fresh = 0
}

// setAbsent makes one block absent.
func (l *layer) setAbsent(block int) {
	i, bit := block/partBlocks, uint64(1)<<(block%partBlocks)
	if old := l.parts[i]; old == nil || old.has()&bit == 0 {
		return
	}
	p := l.change(i)
	l.sum.toggle(p.digest(i, bit))
	p.data &^= bit
	p.zero &^= bit
	p.sums[block%partBlocks] = 0
	if p.has() == 0 {
		l.put(i, nil)
	}
}

// keepOnly makes all other blocks absent, and reports whether there were any.
func (l *layer) keepOnly(keep *blockSet) bool {
	left, gone := 0, 0
	l.each(func(i int, p *part) {
		n := bits.OnesCount64(p.has() & keep[i])
		left, gone = left+n, gone+bits.OnesCount64(p.has())-n
	})
	afresh := left < gone // the sum is computed from the fewer
	l.each(func(i int, p *part) {
		out := p.has() &^ keep[i]
		if out == 0 {
			return
		}
		if !afresh {
			l.sum.toggle(p.digest(i, out))
		}
		if out == p.has() {
			l.put(i, nil)
			l.dirty |= 1 << i
			return
		}
		p = l.change(i)
		p.data &^= out
		p.zero &^= out
	})
	if afresh {
		l.sum = l.summed()
	}
	return gone > 0
}

// blockSet is a set of the blocks of a chunk.
type blockSet [parts]uint64

func (s *blockSet) add(block int)    { s[block/partBlocks] |= 1 << (block % partBlocks) }
func (s *blockSet) remove(block int) { s[block/partBlocks] &^= 1 << (block % partBlocks) }

// each is an iterator over the set, ascending.
func (s *blockSet) each(yield func(block int) bool) {
	for i := range s {
		for m := s[i]; m != 0; m &= m - 1 {
			if !yield(i*partBlocks + bits.TrailingZeros64(m)) {
				return
			}
		}
	}
}

func allBlocks() *blockSet {
	s := new(blockSet)
	for i := range s {
		s[i] = ^uint64(0)
	}
	return s
}

// runs calls fn for each maximal run of blocks in the set, in order.
func (s *blockSet) runs(fn func(first, n int) error) error {
	first, n := 0, 0
	for b := range s.each {
		if n > 0 && b == first+n {
			n++
			continue
		}
		if n > 0 {
			if err := fn(first, n); err != nil {
				return err
			}
		}
		first, n = b, 1
	}
	if n == 0 {
		return nil
	}
	return fn(first, n)
}
