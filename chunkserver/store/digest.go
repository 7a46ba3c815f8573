package store

import (
	"encoding/binary"
	"math/bits"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// LayerDigest sums up the content of one layer of a chunk. Two stores with
// the same layer have the same digest for it. Two with different layers have
// different ones unless the checksums of all blocks that differ agree by
// chance: one in 2^32 for a single block.
type LayerDigest struct {
	Seq    chunk.Seq
	Digest [16]byte
}

// Digest returns the digests of the layers of a chunk, in ascending order of
// Seq. They are kept up to date by what changes the layers: nothing has to be
// computed here, and the metadata of chunks that is not in memory stays where
// it is.
func (s *Store) Digest(ref chunk.Ref) ([]LayerDigest, error) {
	if err := s.failure(); err != nil {
		return nil, stopped(err)
	}
	sh := s.table.shard(ref.Index)
	sh.mu.RLock()
	c := sh.columns[ref]
	if c == nil {
		sh.mu.RUnlock()
		saved, err := s.meta.layers(ref) // as of now or later: what is in no column is saved
		var digests []LayerDigest
		for _, l := range saved {
			digests = append(digests, LayerDigest{l.id.seq, l.sum.encode()})
		}
		return digests, err
	}
	defer sh.mu.RUnlock()
	var digests []LayerDigest
	for _, l := range c.layers {
		if !l.empty() {
			digests = append(digests, LayerDigest{l.id.seq, l.sum.encode()})
		}
	}
	return digests, nil
}

// digest is the sum, without carries, of a hash of each block that is there:
// of its number, of its being data or zeros, and of its checksum. So it can be
// kept up as blocks come and go, in any order.
type digest [2]uint64

func (d digest) encode() (b [16]byte) {
	binary.LittleEndian.PutUint64(b[:], d[0])
	binary.LittleEndian.PutUint64(b[8:], d[1])
	return b
}

// toggle takes what sums up some blocks into d, or out again.
func (d *digest) toggle(some digest) {
	d[0] ^= some[0]
	d[1] ^= some[1]
}

// digest sums up those of some blocks of p, which is part i of its layer, that
// are there.
func (p *part) digest(i int, some uint64) (d digest) {
	for m := p.has() & some; m != 0; m &= m - 1 {
		in := bits.TrailingZeros64(m)
		x := uint64(i*partBlocks+in)<<33 | p.zero>>in&1<<32 | uint64(p.sums[in])
		d[0] ^= mix64(x)
		d[1] ^= mix64(^x)
	}
	return d
}

// summed computes the sum of a layer anew.
func (l *layer) summed() digest {
	fresh := &layer{id: l.id}
	l.each(fresh.restore)
	return fresh.sum
}

// mix64 spreads x over all bits: the finalizer of SplitMix64.
func mix64(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Block is what a layer has in the place of a block: data, with the
// [chunk.Checksum] of it; zeros, which hide what lies below; or neither.
type Block struct {
	Data bool
	Zero bool
	Sum  uint32
}

// Blocks tells what a layer has of each block of a chunk; nil if there is no
// such layer. What it has as data can be read through a view of the lineage
// {seq, seq}, which shows nothing else.
func (s *Store) Blocks(ref chunk.Ref, seq chunk.Seq) ([]Block, error) {
	var blocks []Block
	err := s.inspect(ref, func(c *column) {
		l := c.layer(seq)
		if l == nil || l.empty() {
			return
		}
		blocks = make([]Block, chunk.Blocks)
		for b := range blocks {
			data, zero, sum := l.state(b)
			blocks[b] = Block{Data: data, Zero: zero}
			if data {
				blocks[b].Sum = sum ^ l.id.mix(b)
			}
		}
	})
	return blocks, err
}
