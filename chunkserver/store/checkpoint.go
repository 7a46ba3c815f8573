package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/bits"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// A checkpoint lets the journal begin later. Its order is what crash safety
// rests on:
//
//  1. cut: collect what has changed in memory, as of one place in the journal
//  2. sync the files of layers, and the directories in which files were made
//  3. save the cut in one transaction: the commit point
//  4. free the segments before the new beginning
//  5. free the blocks that were needless as of the cut
//
// A crash before 3 leaves the old state and a journal that leads on from it;
// files may be newer than the database then, but replay writes all of that
// again. A crash after 3 leaves segments below the saved beginning, which the
// next Open frees, and needless blocks, which are saved as such.

// Checkpoint makes everything applied so far durable outside the journal and
// frees the segments that are then needless. The store does so by itself too.
func (s *Store) Checkpoint(ctx context.Context) error {
	if err := s.lockCheckpoint(ctx); err != nil {
		return err
	}
	defer func() { <-s.checkpointing }()
	if err := s.failure(); err != nil {
		return stopped(err)
	}
	err := s.keepTails()
	if err == nil {
		err = s.checkpoint()
	}
	if err != nil {
		s.fail(err)
	}
	return stopped(err)
}

// lockCheckpoint waits until no other checkpoint is under way.
func (s *Store) lockCheckpoint(ctx context.Context) error {
	select {
	case s.checkpointing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("another checkpoint is under way: %w", ctx.Err())
	}
}

// checkpoint takes one. checkpointing must be held.
func (s *Store) checkpoint() error {
	backlog := s.journal.backlog.Load()
	c := s.cut()
	if err := s.files.sync(); err != nil {
		return err
	}
	if err := s.meta.save(c); err != nil {
		return err
	}
	for _, column := range c.columns {
		sh := s.table.shard(column.ref.Index)
		sh.mu.Lock()
		column.saving = false
		for _, l := range column.layers {
			l.lent = 0
		}
		sh.mu.Unlock()
	}
	if err := s.journal.release(c.first); err != nil {
		return err
	}
	s.journal.backlog.Add(-backlog)
	if s.journal.backlog.Load() <= s.maxBacklog() {
		s.journal.queue.hold(false)
	}
	s.log.Debug("checkpoint", "parts", len(c.parts), "first segment", c.first)
	return s.free(c.needless)
}

// cut collects what has changed. Nothing is applied meanwhile, so it only takes
// hold of the parts: whoever changes one before it is saved makes a copy.
func (s *Store) cut() *cut {
	s.applying.Lock()
	defer s.applying.Unlock()
	c := &cut{applied: s.applied, batch: s.appliedBatch, used: s.used.Load(), needless: s.needless, scrub: s.Scrub()}
	s.needless = make(map[layerID]*blockSet)
	for i := range s.table.shards {
		s.table.shards[i].cut(c)
	}
	c.copysets = s.histories.cut()
	c.first = s.histories.oldest(c.applied).segment
	return c
}

// cut adds the parts of the shard that have changed.
func (s *shard) cut(c *cut) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for column := range s.dirty {
		for _, l := range column.layers {
			if l.dirty == 0 {
				continue
			}
			for m := l.dirty; m != 0; m &= m - 1 {
				i := bits.TrailingZeros64(m)
				c.parts = append(c.parts, savedPart{l.id, i, l.parts[i]})
			}
			c.layers = append(c.layers, savedLayer{l.id, l.kept, l.sum, l.last})
			l.lent, l.dirty = l.dirty, 0
		}
		column.saving = true
		c.columns = append(c.columns, column)
		s.forgetEmpty(column)
	}
	clear(s.dirty)
}

// cut returns what is to be saved of the histories.
func (hs *histories) cut() map[chunk.CopysetID]savedCopyset {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	saved := make(map[chunk.CopysetID]savedCopyset, len(hs.byID))
	for id, h := range hs.byID {
		tokens := make(map[chunk.VolumeID]chunk.Token, len(h.changed))
		for volume := range h.changed {
			tokens[volume] = h.tokens[volume]
		}
		clear(h.changed)
		saved[id] = savedCopyset{h.promised, h.epoch, h.last, h.commit, h.whole, h.trusted, h.replaced, tokens}
		h.replaced = false
	}
	return saved
}

// free frees blocks in the files of layers that no durable metadata refers to
// any more, and the files of layers that are gone; then it records that they
// are freed.
func (s *Store) free(needless map[layerID]*blockSet) error {
	if len(needless) == 0 {
		return nil
	}
	for id, set := range needless {
		if err := s.freeBlocks(id, set); err != nil {
			return err
		}
	}
	if err := s.files.sync(); err != nil {
		return err
	}
	return s.meta.forgetNeedless()
}

// freeBlocks frees the needless blocks of one layer that have not got data
// again, part by part, so that operations never wait long for it.
func (s *Store) freeBlocks(id layerID, needless *blockSet) error {
	for i, blocks := range needless {
		if blocks == 0 {
			continue
		}
		if gone, err := s.freePart(id, i, blocks); gone || err != nil {
			return err
		}
	}
	return nil
}

// freePart frees blocks of one part, or the file if the layer is without data.
func (s *Store) freePart(id layerID, i int, needless uint64) (gone bool, err error) {
	sh := s.table.shard(id.ref.Index)
	sh.io.Lock()
	defer sh.io.Unlock()
	data, gone, err := sh.dataOf(id, i)
	if err != nil {
		return false, err
	}
	if gone {
		return true, s.files.remove(id)
	}
	file, err := s.files.reading(id)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer s.files.wrote(file)
	var unused blockSet
	unused[i] = needless &^ data
	return false, unused.runs(func(first, n int) error {
		return file.Punch(int64(first)*chunk.BlockSize, int64(n)*chunk.BlockSize)
	})
}

// dataOf returns which blocks of a part hold data, and whether the whole layer
// is without.
func (s *shard) dataOf(id layerID, i int) (data uint64, gone bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.column(id.ref)
	if err != nil {
		return 0, false, err
	}
	l := c.layer(id.seq)
	if l == nil || l.blocks() == 0 {
		return 0, true, nil
	}
	if p := l.parts[i]; p != nil {
		data = p.data
	}
	return data, false, nil
}

// considerCheckpoint asks for a checkpoint if one is due, and stops accepting
// entries while far too much waits for it.
func (s *Store) considerCheckpoint() {
	backlog := s.journal.backlog.Load()
	if s.opts.CheckpointBytes < 0 {
		return
	}
	if backlog > s.maxBacklog() {
		s.journal.queue.hold(true)
	}
	if backlog <= s.opts.CheckpointBytes && s.files.dirtyFiles() <= s.opts.OpenFiles/2 {
		return
	}
	select {
	case s.due <- struct{}{}:
	default:
	}
}

// maxBacklog bounds the journal, in bytes, when checkpoints are slow.
func (s *Store) maxBacklog() int64 { return 4 * s.opts.CheckpointBytes }

// runCheckpoints takes the checkpoints that are due: for what has been
// written, and, however little that is, for what has become needless.
func (s *Store) runCheckpoints() {
	tick := time.NewTicker(s.opts.FreeEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
			if !s.hasNeedless() {
				continue
			}
		case <-s.due:
		}
		if err := s.Checkpoint(context.Background()); err != nil {
			return
		}
	}
}

// hasNeedless reports whether there is anything that a checkpoint would free.
func (s *Store) hasNeedless() bool {
	s.applying.Lock()
	defer s.applying.Unlock()
	return s.opts.CheckpointBytes >= 0 && len(s.needless) > 0
}

// restore turns what a checkpoint saved into histories.
func (hs *histories) restore(saved map[chunk.CopysetID]savedCopyset) {
	for id, c := range saved {
		h := hs.of(id)
		h.promised, h.epoch, h.last, h.commit = c.promised, c.epoch, c.last, c.commit
		h.whole, h.trusted = c.whole, c.trusted
		maps.Copy(h.tokens, c.tokens)
	}
}
