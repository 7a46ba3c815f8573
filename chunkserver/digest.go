package chunkserver

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// digest sums up the copies of all copysets here. One that was written
// meanwhile, or that journals something, is not settled.
func (s *Server) digest(ctx context.Context, req wire.Digest) ([]wire.Digested, error) {
	if err := s.awaitJoin(ctx); err != nil {
		return nil, err
	}
	sums := make([]wire.Digested, req.Copysets)
	for i := range sums {
		sums[i].Copyset = chunk.CopysetID(i)
		sums[i].LSN, sums[i].Settled = s.end(chunk.CopysetID(i))
	}
	volumes, err := s.store.Volumes()
	if err != nil {
		return nil, err
	}
	for _, volume := range volumes {
		root, ok := req.Roots[volume]
		if !ok {
			continue // it is being purged
		}
		indices, err := s.store.Chunks([]chunk.VolumeID{volume})
		if err != nil {
			return nil, err
		}
		for _, index := range indices {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			sum := &sums[chunk.Locate(root, index, len(sums))]
			if err := s.addLayers(sum, chunk.Ref{Volume: volume, Index: index}); err != nil {
				return nil, err
			}
		}
	}
	for i := range sums {
		lsn, settled := s.end(chunk.CopysetID(i))
		sums[i].Settled = sums[i].Settled && settled && lsn == sums[i].LSN
	}
	return slices.DeleteFunc(sums, func(d wire.Digested) bool { return s.known(d.Copyset) == nil }), nil
}

// end is where the history of a copyset ends, and whether all of it can be
// seen in the store.
func (s *Server) end(id chunk.CopysetID) (lsn chunk.LSN, settled bool) {
	c := s.known(id)
	if c == nil {
		return 0, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.core.End()
}

// addLayers adds what a chunk has to the digest of its copyset. The order in
// which chunks are added makes no difference.
func (s *Server) addLayers(sum *wire.Digested, ref chunk.Ref) error {
	layers, err := s.store.Digest(ref)
	if err != nil {
		return err
	}
	for _, l := range layers {
		b := binary.LittleEndian.AppendUint64(nil, uint64(ref.Volume))
		b = binary.LittleEndian.AppendUint32(b, ref.Index)
		b = binary.LittleEndian.AppendUint64(b, uint64(l.Seq))
		h := sha256.Sum256(append(b, l.Digest[:]...))
		for i := range sum.Sum {
			sum.Sum[i] ^= h[i]
		}
		sum.Layers++
	}
	return nil
}
