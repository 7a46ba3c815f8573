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
func (s *Store) flatten(op *chunk.Op, by stamp) error {
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
		err := sh.change(base, by, r.first, len(r.sums), func(l *layer) {
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
	left := new(blockSet) // of the range, what is not planned yet
	for b, end := int(op.Off/chunk.BlockSize), int((op.Off+op.Len)/chunk.BlockSize); b < end; b++ {
		left.add(b)
	}
	for _, v := range op.Views {
		if v.Parent() == nil {
			continue
		}
		r, err := s.resolution(v.Parent(), op.Ref.Index)
		if err != nil {
			return nil, err
		}
		missing := missingFrom(c, v.Lineage(), left)
		for b := range missing.each {
			if from := r.source(b); from != nil {
				_, _, sum := from.state(b)
				runs = appendRun(runs, from.id, b, sum)
			}
			left.remove(b)
		}
	}
	return runs, nil
}

// missingFrom returns those of some blocks that a lineage does not find in c,
// and so reads from the parent. Every lineage sees layer 0, so what has been
// copied is not among them.
func missingFrom(c *column, lineage chunk.Lineage, some *blockSet) *blockSet {
	missing := *some
	eachSeen(c, lineage, func(l *layer) {
		l.each(func(i int, p *part) { missing[i] &^= p.has() })
	})
	return &missing
}

// appendRun appends a block to runs, to the last run if it continues that.
func appendRun(runs []copyRun, from layerID, block int, sum uint32) []copyRun {
	if n := len(runs); n > 0 {
		if last := &runs[n-1]; last.from == from && last.first+len(last.sums) == block {
			last.sums = append(last.sums, sum)
			return runs
		}
	}
	return append(runs, copyRun{from, block, []uint32{sum}})
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
