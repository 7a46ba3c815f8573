package store

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// applyBatches executes what has been journaled, in order, and tells those
// who wait for it. The journal writes the next batch meanwhile.
func (s *Store) applyBatches(written <-chan batch) {
	for b := range written {
		var bytes int64
		for _, it := range b.items {
			bytes += it.size()
			err := b.err
			if err == nil {
				err = s.applyItem(it)
			}
			if it.done != nil {
				if err != nil {
					err = stopped(err)
				}
				it.done(err)
			}
		}
		s.journal.queue.release(bytes)
		s.considerCheckpoint()
	}
}

// applyItem executes one record that is durable.
func (s *Store) applyItem(it *item) error {
	if err := s.failure(); err != nil {
		return err
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	err := s.apply(&it.record, &it.body, it.at)
	if err != nil && !errors.Is(err, ErrNotReady) {
		s.fail(err)
	}
	return err
}

// apply executes the record at a place of the journal: when it has become
// durable, and when the journal is replayed. An error that is ErrNotReady says
// that the record asks for what can't be, and has changed nothing. applying must
// be held.
func (s *Store) apply(r *record, b *body, at position) error {
	var err error
	switch {
	case b.op != nil:
		if err = s.execute(b.op, stamp{r.copyset, r.lsn}); err != nil {
			return fmt.Errorf("%v of chunk %v, entry %d of copyset %d: %w", b.op.Kind, b.op.Ref, r.lsn, r.copyset, err)
		}
	case b.copied != nil:
		// It shows what every operation up to here has done.
		by := stamp{r.copyset, s.histories.end(r.copyset) + 1}
		if err = s.replace(b.copied, by); err != nil && !errors.Is(err, ErrNotReady) {
			return fmt.Errorf("copy of %v, of copyset %d: %w", b.copied.Part, r.copyset, err)
		}
	case r.kind == recordDrop:
		if err = s.drop(r.copyset); err != nil {
			return fmt.Errorf("drop copyset %d: %w", r.copyset, err)
		}
	}
	s.histories.record(r, b, at)
	s.applied, s.appliedBatch = position{at.segment, at.off + r.size()}, r.batch
	return err
}

// A stamp says which operation changes a layer.
type stamp struct {
	copyset chunk.CopysetID
	lsn     chunk.LSN
}

func (s *Store) execute(op *chunk.Op, by stamp) error {
	switch op.Kind {
	case chunk.OpWrite:
		return s.write(op, by)
	case chunk.OpZero:
		return s.zero(op, by)
	case chunk.OpPurge:
		return s.purge(op, by)
	case chunk.OpFlatten:
		return s.flatten(op, by)
	case chunk.OpFence:
		return nil // its token is all
	}
	return fmt.Errorf("%w: operation of unknown kind %d", chunk.ErrInvalid, op.Kind)
}

// blocks returns the range of an operation in blocks.
func blocks(off, n uint32) (first, count int) {
	return int(off / chunk.BlockSize), int(n / chunk.BlockSize)
}

// layerRun is how much is written to a layer at once. As with segmentRun, larger
// pieces make it slower to overwrite a block; but smaller ones make it slower
// to read one. With pieces of 256 KiB, overwriting takes half as long as with
// those of 1 MiB, and reading 4 % longer; with 64 KiB, a quarter and 25 %.
const layerRun = 256 << 10

// write puts the blocks into the layer's file, then into its metadata. A
// reader in between finds that block and checksum don't match, and looks
// again when the shard's io is free.
func (s *Store) write(op *chunk.Op, by stamp) error {
	id := layerID{op.Ref, op.Token.Seq}
	sh := s.table.shard(op.Ref.Index)
	sh.io.Lock()
	defer sh.io.Unlock()
	file, err := s.files.writing(id) // under io: before, the file might yet be deleted
	if err != nil {
		return err
	}
	defer s.files.wrote(file)
	off := int64(op.Off)
	for run := range slices.Chunk(op.Data, layerRun) {
		if err := file.WriteAt(off, run); err != nil {
			return err
		}
		off += layerRun
	}
	first, n := blocks(op.Off, op.Len)
	return sh.change(id, by, first, n, func(l *layer) {
		for i, sum := range op.Sums {
			if data, _, _ := l.state(first + i); !data {
				s.used.Add(1)
			}
			l.setData(first+i, sum^id.mix(first+i))
		}
	})
}

// zero marks the blocks as zeros, which hide what older layers and the parent
// have. What the layer itself had there is freed after the next checkpoint.
func (s *Store) zero(op *chunk.Op, by stamp) error {
	id := layerID{op.Ref, op.Token.Seq}
	sh := s.table.shard(op.Ref.Index)
	sh.io.Lock()
	defer sh.io.Unlock()
	first, n := blocks(op.Off, op.Len)
	return sh.change(id, by, first, n, func(l *layer) {
		for b := first; b < first+n; b++ {
			if data, _, _ := l.state(b); data {
				s.freeLater(id, b/partBlocks, 1<<(b%partBlocks))
			}
			l.setZero(b)
		}
	})
}

// change lets fn change n blocks of a layer, which is made if need be, and
// keeps everything right that depends on them. io must be held.
func (s *shard) change(id layerID, by stamp, first, n int, fn func(*layer)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.column(id.ref)
	if err != nil {
		return err
	}
	l := c.makeLayer(id.seq)
	fn(l)
	l.stamped(by)
	s.touched(c, l, first, n)
	s.trim()
	return nil
}

// freeLater notes that blocks with data of part i of a layer are needed no
// more. They must not be freed before the metadata that no longer refers to
// them is durable: until then a replay of the journal may still have to copy
// from them. applying must be held.
func (s *Store) freeLater(id layerID, i int, blocks uint64) {
	if blocks == 0 {
		return
	}
	set := s.needless[id]
	if set == nil {
		set = new(blockSet)
		s.needless[id] = set
	}
	set[i] |= blocks
	s.used.Add(-int64(bits.OnesCount64(blocks)))
}
