package volume

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// maxExtentPieces bounds how much of a range one call of Extents describes.
const maxExtentPieces = 64

// Extent is a run of bytes that either hold data or read as zeros.
type Extent struct {
	Len  uint64 // at least 1
	Data bool
}

// read fills dst, which is as long as the piece.
func (v *Volume) read(ctx context.Context, p piece, dst []byte) error {
	off, n := p.blocks()
	blocks, err := v.fetch(ctx, p.index, off, n)
	if err != nil {
		return err
	}
	copy(dst, blocks[p.in-off:])
	return nil
}

// fetch reads whole blocks of a chunk into fresh memory.
func (v *Volume) fetch(ctx context.Context, index, off, n uint32) ([]byte, error) {
	blocks, err := v.ask(ctx, wire.KindRead, index, off, n)
	if err != nil {
		return nil, err
	}
	if len(blocks) != int(n) {
		return nil, fmt.Errorf("chunk %d/%d: asked for %d bytes and got %d", v.volume.ID, index, n, len(blocks))
	}
	return blocks, nil
}

// ask makes a request about blocks of a chunk as the newest view sees them.
func (v *Volume) ask(ctx context.Context, kind wire.Kind, index, off, n uint32) ([]byte, error) {
	reply, _, err := v.route(ctx, kind, index, nil, func(copyset chunk.CopysetID, epoch chunk.Epoch) []byte {
		view := v.attachment.now().View
		r := wire.Read{Copyset: copyset, Epoch: epoch, Index: index, Off: off, Len: n, View: view}
		return r.Append(make([]byte, 0, 32+len(view)))
	})
	return reply, err
}

// Extents describes the range from off on, in order and without gaps. It may
// stop early, after at least one extent.
func (v *Volume) Extents(ctx context.Context, off, n uint64) ([]Extent, error) {
	end, err := v.begin(off, n)
	if err != nil {
		return nil, fmt.Errorf("extents of %d bytes at %d: %w", n, off, err)
	}
	defer v.requests.end()
	var (
		mu     sync.Mutex
		pieces []piece
		found  = make(map[piece][]wire.Extent)
	)
	for p := range split(v.volume.Layout, off, off, end, chunk.Size) {
		if pieces = append(pieces, p); len(pieces) == maxExtentPieces {
			break
		}
	}
	err = each(slices.Values(pieces), func(p piece) error {
		in, n := p.blocks()
		reply, err := v.ask(ctx, wire.KindExtents, p.index, in, n)
		if err != nil {
			return err
		}
		extents, err := wire.ParseExtents(reply, n)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		found[p] = extents
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("extents of %d bytes at %d: %w", n, off, err)
	}
	var extents []Extent
	for _, p := range pieces {
		extents = appendExtents(extents, p, found[p])
	}
	return extents, nil
}

// appendExtents appends the part of a piece's blocks that is in the piece.
func appendExtents(to []Extent, p piece, blocks []wire.Extent) []Extent {
	at, _ := p.blocks()
	for _, e := range blocks {
		from, end := max(at, p.in), min(at+e.Len, p.in+p.n)
		at += e.Len
		switch {
		case from >= end:
		case len(to) > 0 && to[len(to)-1].Data == e.Data:
			to[len(to)-1].Len += uint64(end - from)
		default:
			to = append(to, Extent{uint64(end - from), e.Data})
		}
	}
	return to
}
