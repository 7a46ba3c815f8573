package store

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// LayerDigest sums up the content of one layer of a chunk: two stores hold
// the same layer if they have the same digest for it.
type LayerDigest struct {
	Seq    chunk.Seq
	Digest [16]byte
}

// Digest sums up the layers of a chunk, in ascending order of Seq. It is
// computed from the metadata: no block is read.
func (s *Store) Digest(ref chunk.Ref) ([]LayerDigest, error) {
	var digests []LayerDigest
	err := s.inspect(ref, func(c *column) {
		for _, l := range c.layers {
			if !l.empty() {
				digests = append(digests, LayerDigest{l.id.seq, l.digest()})
			}
		}
	})
	return digests, err
}

// digest is the front of a SHA-256 over which blocks are there and what their
// checksums are.
func (l *layer) digest() (d [16]byte) {
	h := sha256.New()
	l.each(func(i int, p *part) {
		h.Write(binary.LittleEndian.AppendUint32(nil, uint32(i)))
		h.Write(p.encode())
	})
	copy(d[:], h.Sum(nil))
	return d
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
