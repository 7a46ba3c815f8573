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
	if err := s.failure(); err != nil {
		return nil, stopped(err)
	}
	sh := s.table.shard(ref.Index)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c, err := sh.column(ref)
	if err != nil {
		return nil, err
	}
	defer sh.trim()
	var digests []LayerDigest
	for _, l := range c.layers {
		if !l.empty() {
			digests = append(digests, LayerDigest{l.id.seq, l.digest()})
		}
	}
	return digests, nil
}

// digest is the front of a SHA-256 over which blocks are there and what their
// checksums are.
func (l *layer) digest() (d [16]byte) {
	h := sha256.New()
	for i, p := range l.parts {
		if p != nil {
			h.Write(binary.LittleEndian.AppendUint32(nil, uint32(i)))
			h.Write(p.encode())
		}
	}
	copy(d[:], h.Sum(nil))
	return d
}
