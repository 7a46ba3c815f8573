package store

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// flatten copies into layer 0 the blocks of a range that some view of the
// clone reads from its parent, and that the parent has. The parent's zeros
// need no copy: without a parent, absent blocks are zeros too.
func (s *Store) flatten(op *chunk.Op) error {
	sh := s.table.shard(op.Ref.Index)
	sh.io.Lock()
	defer sh.io.Unlock()
	runs, err := sh.planFlatten(op)
	if err != nil || len(runs) == 0 {
		return err
	}
	base := layerID{op.Ref, 0}
	to, err := s.files.writing(base)
	if err != nil {
		return err
	}
	defer s.files.wrote(to)
	for _, r := range runs {
		if err := s.copyRun(to, r); err != nil {
			return err
		}
		err := sh.change(base, r.first, len(r.sums), func(l *layer) {
			for i, sum := range r.sums {
				// The checksum of the content moves from one place to
				// another; it is not computed from what was copied.
				b := r.first + i
				l.setData(b, sum^r.from.mix(b)^base.mix(b))
				s.used.Add(1)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// copyRun is a run of blocks to be copied from one layer, with their stored
// checksums.
type copyRun struct {
	from  layerID
	first int
	sums  []uint32
}

// planFlatten tells what has to be copied.
func (s *shard) planFlatten(op *chunk.Op) ([]copyRun, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.column(op.Ref)
	if err != nil {
		return nil, err
	}
	var runs []copyRun
	first, n := blocks(op.Off, op.Len)
	for b := first; b < first+n; b++ {
		parent := readsParent(c, op.Views, b)
		if parent == nil {
			continue
		}
		r, err := s.resolution(parent, op.Ref.Index)
		if err != nil {
			return nil, err
		}
		from := r.source(b)
		if from == nil {
			continue
		}
		_, _, sum := from.state(b)
		if last := len(runs) - 1; last >= 0 && runs[last].from == from.id && runs[last].first+len(runs[last].sums) == b {
			runs[last].sums = append(runs[last].sums, sum)
		} else {
			runs = append(runs, copyRun{from.id, b, []uint32{sum}})
		}
	}
	return runs, nil
}

// readsParent returns the parent that some view reads the block from, or nil.
// Every view sees layer 0, so none does if the block is there already.
func readsParent(c *column, views []*chunk.View, block int) *chunk.View {
views:
	for _, v := range views {
		if v.Parent() == nil {
			continue
		}
		for _, l := range c.layers {
			if l.has(block) && v.Lineage().Sees(l.id.seq) {
				continue views
			}
		}
		return v.Parent()
	}
	return nil
}

// copyRun copies the blocks of a run. Those that don't match their checksums
// are copied like the others: under the old checksum they stay what they
// are, damaged, and are never returned.
func (s *Store) copyRun(to *layerFile, r copyRun) error {
	from, err := s.files.reading(r.from)
	if errors.Is(err, fs.ErrNotExist) {
		s.log.Error("block to be flattened is lost", "layer", r.from, "block", r.first)
		return nil
	}
	if err != nil {
		return err
	}
	defer s.files.release(from)
	off, n := int64(r.first)*chunk.BlockSize, int64(len(r.sums))*chunk.BlockSize
	content := make([]byte, n)
	if err := from.ReadAt(content, off); err != nil {
		return fmt.Errorf("read %v: %w", r.from, err)
	}
	for i, sum := range r.sums {
		if !r.from.matches(content[i*chunk.BlockSize:][:chunk.BlockSize], r.first+i, sum) {
			s.log.Error("block to be flattened is damaged", "layer", r.from, "block", r.first+i)
		}
	}
	return from.CopyTo(to.File, off, n)
}
