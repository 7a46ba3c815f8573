package store

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// piece is the number of blocks that are looked up at a time.
const piece = 32

// located is where a block is to be read: nowhere, for zeros, or in a layer.
type located struct {
	from *layer // its id only: the rest may change
	sum  uint32
}

// ReadAt fills p with what the view shows of chunk ref from off on. ref names
// a chunk of the view's volume; off and len(p) are multiples of a block and
// lie in the chunk. The error is [ErrDamaged] if a block does not match its
// checksum; p is then undefined.
func (s *Store) ReadAt(view *chunk.View, ref chunk.Ref, p []byte, off uint32) error {
	if err := s.checkRead(view, ref, off, len(p)); err != nil {
		return err
	}
	sh := s.table.shard(ref.Index)
	first := int(off / chunk.BlockSize)
	var places [piece]located
	for len(p) > 0 {
		n := min(len(p)/chunk.BlockSize, piece)
		if err := sh.locate(view, ref.Index, first, places[:n]); err != nil {
			return err
		}
		if err := s.readPiece(view, ref, p[:n*chunk.BlockSize], first, places[:n]); err != nil {
			return err
		}
		first, p = first+n, p[n*chunk.BlockSize:]
	}
	return nil
}

func (s *Store) checkRead(view *chunk.View, ref chunk.Ref, off uint32, n int) error {
	if err := s.failure(); err != nil {
		return stopped(err)
	}
	if n > chunk.Size || !chunk.InChunk(off, uint32(n), chunk.Size) || view.Volume() != ref.Volume {
		return fmt.Errorf("%w: %d bytes at %d of chunk %v in a view of volume %d", chunk.ErrInvalid, n, off, ref, view.Volume())
	}
	return nil
}

// locate tells where blocks of a view are, from first on.
func (s *shard) locate(view *chunk.View, index uint32, first int, places []located) error {
	s.mu.RLock()
	r := s.resolutions[resolutionKey{view.Key(), index}]
	if r != nil {
		if !r.used.Load() { // or readers would take the cache line from each other
			r.used.Store(true)
		}
		r.locate(first, places)
		s.mu.RUnlock()
		return nil
	}
	s.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.resolution(view, index)
	if err != nil {
		return err
	}
	r.locate(first, places)
	return nil
}

func (r *resolution) locate(first int, places []located) {
	for i := range places {
		places[i] = located{}
		if l := r.source(first + i); l != nil {
			places[i] = located{l, r.sums[first+i]}
		}
	}
}

// readPiece reads the blocks at their places, a run of one layer at a time.
func (s *Store) readPiece(view *chunk.View, ref chunk.Ref, p []byte, first int, places []located) error {
	for len(places) > 0 {
		from, n := places[0].from, 1
		for n < len(places) && places[n].from == from {
			n++
		}
		run := p[:n*chunk.BlockSize]
		if from == nil {
			clear(run)
		} else if err := s.readRun(view, ref, run, first, from.id, places[:n]); err != nil {
			return err
		}
		first, p, places = first+n, p[n*chunk.BlockSize:], places[n:]
	}
	return nil
}

func (s *Store) readRun(view *chunk.View, ref chunk.Ref, p []byte, first int, id layerID, places []located) error {
	ok := make([]bool, 0, piece)[:len(places)]
	if err := s.readBlocks(id, p, first, places, ok); err != nil {
		return err
	}
	for i := range ok {
		if ok[i] {
			continue
		}
		if err := s.readAgain(view, ref, p[i*chunk.BlockSize:][:chunk.BlockSize], first+i); err != nil {
			return err
		}
	}
	return nil
}

// readBlocks reads blocks of a layer, and tells of each whether it matches.
func (s *Store) readBlocks(id layerID, p []byte, first int, places []located, ok []bool) error {
	file, err := s.files.reading(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		defer s.files.release(file)
		err = file.ReadAt(p, int64(first)*chunk.BlockSize)
	}
	if err != nil {
		return fmt.Errorf("%w: read %v: %w", ErrDamaged, id, err)
	}
	for i := range places {
		ok[i] = id.matches(p[i*chunk.BlockSize:][:chunk.BlockSize], first+i, places[i].sum)
	}
	return nil
}

// matches compares the content of a block with its stored checksum.
func (id layerID) matches(content []byte, block int, sum uint32) bool {
	return chunk.Checksum(content)^id.mix(block) == sum
}

// readAgain reads a block that did not match while nothing is being changed:
// if it does not match now, it is damaged.
func (s *Store) readAgain(view *chunk.View, ref chunk.Ref, p []byte, block int) error {
	sh := s.table.shard(ref.Index)
	sh.io.Lock()
	defer sh.io.Unlock()
	var places [1]located
	if err := sh.locate(view, ref.Index, block, places[:]); err != nil {
		return err
	}
	from := places[0].from
	if from == nil {
		clear(p)
		return nil
	}
	var ok [1]bool
	if err := s.readBlocks(from.id, p, block, places[:], ok[:]); err != nil {
		return err
	}
	if !ok[0] {
		return &DamageError{from.id.ref, from.id.seq, block}
	}
	return nil
}

// Extent is a run of blocks of a view that hold data, or that read as zeros.
type Extent struct {
	Off, Len uint32
	Data     bool
}

// Extents tells which blocks of a range hold data in the view; neighbours
// differ in Data, and together they cover the range.
func (s *Store) Extents(view *chunk.View, ref chunk.Ref, off, n uint32) ([]Extent, error) {
	if err := s.checkRead(view, ref, off, int(n)); err != nil {
		return nil, err
	}
	places := make([]located, n/chunk.BlockSize)
	if err := s.table.shard(ref.Index).locate(view, ref.Index, int(off/chunk.BlockSize), places); err != nil {
		return nil, err
	}
	var extents []Extent
	for i, p := range places {
		data := p.from != nil
		if last := len(extents) - 1; last >= 0 && extents[last].Data == data {
			extents[last].Len += chunk.BlockSize
		} else {
			extents = append(extents, Extent{off + uint32(i)*chunk.BlockSize, chunk.BlockSize, data})
		}
	}
	return extents, nil
}
