package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// A member of a copyset that has missed operations leaves its history for
// that of the primary (Reset), compares what both have (Survey, Outline,
// Differ), takes in what differs (Copy) while it already executes new
// operations, and is whole again (Trust).
//
// What need not be compared is known by the LSN of the last change of a part.
// When a copyset that is whole leaves its history, its content is right as of
// the commit point: up to there it is trusted. A part that was changed by no
// later operation here, nor at the primary, is the same at both. A copyset
// that is not whole is trusted up to where it was before; and what has been
// copied meanwhile counts as changed just now, as a third member that returns
// later may have missed what it shows.

// Reset forgets where the history of the copyset ended and lets it go on
// behind lsn of epoch, with these tokens and no others: for a member that joins
// a history or has to leave its own. Layers stay as they are; there is no tail
// afterwards. done as for Append.
func (s *Store) Reset(ctx context.Context, copyset chunk.CopysetID, epoch chunk.Epoch, lsn chunk.LSN, tokens map[chunk.VolumeID]chunk.Token, done func(error)) error {
	it := resetItem(record{kind: recordReset, copyset: copyset, epoch: epoch, lsn: lsn}, tokens)
	q := s.journal.queue
	return q.accept(ctx, []*item{it}, done, func() error {
		q.ends[copyset] = lsn
		return nil
	})
}

// Trust says that what is here of the copyset is what its history says. done
// as for Append.
func (s *Store) Trust(ctx context.Context, copyset chunk.CopysetID, done func(error)) error {
	s.histories.mu.Lock()
	whole := s.histories.of(copyset).whole
	s.histories.mu.Unlock()
	if whole {
		done(nil)
		return nil
	}
	it := wordItem(record{kind: recordTrust, copyset: copyset})
	return s.journal.queue.accept(ctx, []*item{it}, done, func() error { return nil })
}

// Trusted returns, for a copyset that is not whole, the LSN up to which it is
// trusted.
func (s *Store) Trusted(copyset chunk.CopysetID) chunk.LSN {
	s.histories.mu.Lock()
	defer s.histories.mu.Unlock()
	return s.histories.of(copyset).trusted
}

// Copy makes a part of a layer what c says, in order with what is appended.
// done as for Append; its error is [chunk.ErrNotReady], and nothing was changed,
// if a block that c does not bring is not here. c must not be changed before
// done, and its content must match its sums: the caller has verified them.
func (s *Store) Copy(ctx context.Context, copyset chunk.CopysetID, c *chunk.Copy, done func(error)) error {
	if err := c.Validate(); err != nil {
		return err
	}
	return s.journal.queue.accept(ctx, []*item{copyItem(copyset, c)}, done, func() error { return nil })
}

// Drop forgets the copyset: its history, but for what it has promised, and its
// layers, whose space is freed like that of purged ones. done as for Append.
func (s *Store) Drop(ctx context.Context, copyset chunk.CopysetID, done func(error)) error {
	q := s.journal.queue
	return q.accept(ctx, []*item{wordItem(record{kind: recordDrop, copyset: copyset})}, done, func() error {
		q.ends[copyset] = 0
		return nil
	})
}

// replace executes a copy. What it does not bring must be here.
func (s *Store) replace(c *chunk.Copy, by stamp) error {
	id := layerID{c.Ref, c.Seq}
	i := int(c.Part.Part)
	sh := s.table.shard(c.Ref.Index)
	sh.io.Lock()
	defer sh.io.Unlock()
	has, err := s.part(id, i)
	if err != nil {
		return err
	}
	if missing := c.Data &^ c.Sent &^ has.data; missing != 0 {
		return fmt.Errorf("%w: copy of %v without the blocks %x, which are not here", ErrNotReady, c.Part, missing)
	}
	if err := s.writeSent(id, c); err != nil {
		return err
	}
	s.freeLater(id, i, has.data&^c.Data)
	s.used.Add(int64(bits.OnesCount64(c.Data &^ has.data)))
	first := i * partBlocks
	return sh.change(id, by, first, partBlocks, func(l *layer) {
		sums := c.Sums
		for in := range partBlocks {
			switch bit := uint64(1) << in; {
			case c.Sent&bit != 0:
				l.setData(first+in, sums[0]^id.mix(first+in))
				sums = sums[1:]
			case c.Data&bit != 0: // as it is
			case c.Zero&bit != 0:
				l.setZero(first + in)
			default:
				l.setAbsent(first + in)
			}
		}
	})
}

// writeSent puts the blocks that a copy brings into the layer's file. io must
// be held.
func (s *Store) writeSent(id layerID, c *chunk.Copy) error {
	if c.Sent == 0 {
		return nil
	}
	file, err := s.files.writing(id)
	if err != nil {
		return err
	}
	defer s.files.wrote(file)
	var sent blockSet
	sent[c.Part.Part] = c.Sent
	content := c.Content
	return sent.runs(func(first, n int) error {
		run := content[:n*chunk.BlockSize]
		content = content[len(run):]
		return file.WriteAt(int64(first)*chunk.BlockSize, run)
	})
}

// part returns what a layer has in one of its parts.
func (s *Store) part(id layerID, i int) (p part, err error) {
	err = s.inspect(id.ref, func(c *column) {
		if l := c.layer(id.seq); l != nil && l.parts[i] != nil {
			p = *l.parts[i]
		}
	})
	return p, err
}

// drop makes all layers of a copyset empty.
func (s *Store) drop(copyset chunk.CopysetID) error {
	for after := (chunk.Ref{}); ; {
		refs, err := s.chunksOf(copyset, after, 1024)
		if err != nil || len(refs) == 0 {
			return err
		}
		for _, ref := range refs {
			if err := s.dropChunk(ref); err != nil {
				return err
			}
		}
		after = refs[len(refs)-1]
	}
}

func (s *Store) dropChunk(ref chunk.Ref) error {
	sh := s.table.shard(ref.Index)
	sh.io.Lock()
	defer sh.io.Unlock()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c, err := sh.column(ref)
	if err != nil {
		return err
	}
	for _, l := range c.layers {
		l.each(func(i int, p *part) { s.freeLater(l.id, i, p.data) })
		l.keepOnly(new(blockSet))
		sh.changed(c, l)
	}
	sh.dropDependents(c)
	sh.trim()
	return nil
}

// chunksOf returns the chunks behind after that have layers of a copyset, in
// order, at most limit.
func (s *Store) chunksOf(copyset chunk.CopysetID, after chunk.Ref, limit int) ([]chunk.Ref, error) {
	// What is not in the database yet is in memory until it is, so memory
	// has to be looked at first.
	inMemory := s.table.chunksOf(copyset)
	var refs []chunk.Ref
	for ref, holds := range inMemory {
		if holds && ref.Compare(after) > 0 {
			refs = append(refs, ref)
		}
	}
	saved := 0
	err := s.meta.chunksOf(copyset, after, func(ref chunk.Ref) bool {
		if _, ok := inMemory[ref]; !ok {
			refs = append(refs, ref)
			saved++
		}
		return saved < limit
	})
	slices.SortFunc(refs, chunk.Ref.Compare)
	return refs[:min(len(refs), limit)], err
}

// chunksOf tells of the columns in memory whether they have layers of a
// copyset.
func (t *table) chunksOf(copyset chunk.CopysetID) map[chunk.Ref]bool {
	refs := make(map[chunk.Ref]bool)
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		for ref, c := range s.columns {
			refs[ref] = slices.ContainsFunc(c.layers, func(l *layer) bool { return !l.empty() && l.last.copyset == copyset })
		}
		s.mu.RUnlock()
	}
	return refs
}

// Survey tells which chunks of a copyset have layers: those behind after, in
// order, at most limit, and none only if there are none. Of their parts it
// tells which operations behind trusted have changed.
func (s *Store) Survey(copyset chunk.CopysetID, after chunk.Ref, limit int, trusted chunk.LSN) ([]chunk.Survey, error) {
	if err := s.failure(); err != nil {
		return nil, stopped(err)
	}
	for {
		refs, err := s.chunksOf(copyset, after, limit)
		if err != nil || len(refs) == 0 {
			return nil, err
		}
		var chunks []chunk.Survey
		for _, ref := range refs {
			layers, err := s.surveyChunk(ref, trusted)
			if err != nil {
				return nil, err
			}
			if len(layers) > 0 {
				chunks = append(chunks, chunk.Survey{Ref: ref, Layers: layers})
			}
		}
		if len(chunks) > 0 {
			return chunks, nil
		}
		after = refs[len(refs)-1] // all of these have vanished meanwhile
	}
}

// surveyChunk tells about the layers of one chunk. The parts of those that are
// not in memory are looked at only if some are fresh.
func (s *Store) surveyChunk(ref chunk.Ref, trusted chunk.LSN) ([]chunk.LayerSurvey, error) {
	sh := s.table.shard(ref.Index)
	sh.mu.RLock()
	c := sh.columns[ref]
	if c != nil {
		defer sh.mu.RUnlock()
		return c.survey(trusted), nil
	}
	sh.mu.RUnlock()
	saved, err := s.meta.layers(ref) // as of now or later: what is in no column is saved
	if err != nil {
		return nil, err
	}
	var layers []chunk.LayerSurvey
	for _, l := range saved {
		if l.last.lsn > trusted {
			err := s.inspect(ref, func(c *column) { layers = c.survey(trusted) })
			return layers, err
		}
		layers = append(layers, chunk.LayerSurvey{Seq: l.id.seq, Parts: l.kept, Digest: l.sum.encode()})
	}
	return layers, nil
}

func (c *column) survey(trusted chunk.LSN) (layers []chunk.LayerSurvey) {
	for _, l := range c.layers {
		if l.empty() {
			continue
		}
		s := chunk.LayerSurvey{Seq: l.id.seq, Parts: l.kept, Digest: l.sum.encode()}
		l.each(func(i int, p *part) {
			if p.changed > trusted {
				s.Fresh |= 1 << i
			}
		})
		layers = append(layers, s)
	}
	return layers
}

// Outline tells what a part has. A block that is damaged counts as not there.
func (s *Store) Outline(of chunk.Part) (chunk.Outline, error) {
	p, content, wrong, err := s.readPart(of)
	if err != nil {
		return chunk.Outline{}, err
	}
	o := chunk.Outline{Data: p.data &^ wrong, Zero: p.zero}
	for m := o.Data; m != 0; m &= m - 1 {
		o.Hashes = append(o.Hashes, chunk.HashBlock(blockOf(content, bits.TrailingZeros64(m))))
	}
	return o, nil
}

// Differ returns what somebody who has theirs must be copied to have the same
// as is here; false if that is nothing. Nobody may be changing the part. The
// error is a [DamageError] if a block that is needed is damaged.
func (s *Store) Differ(of chunk.Part, theirs chunk.Outline) (chunk.Copy, bool, error) {
	p, content, wrong, err := s.readPart(of)
	if err == nil && wrong != 0 {
		err = &DamageError{of.Ref, of.Seq, int(of.Part)*partBlocks + bits.TrailingZeros64(wrong)}
	}
	if err != nil {
		return chunk.Copy{}, false, err
	}
	id := layerID{of.Ref, of.Seq}
	c := chunk.Copy{Part: of, Data: p.data, Zero: p.zero}
	for m := p.data; m != 0; m &= m - 1 {
		in := bits.TrailingZeros64(m)
		bit, block := uint64(1)<<in, blockOf(content, in)
		if theirs.Data&bit != 0 && theirs.Hashes[bits.OnesCount64(theirs.Data&(bit-1))] == chunk.HashBlock(block) {
			continue
		}
		c.Sent |= bit
		c.Sums = append(c.Sums, p.sums[in]^id.mix(int(of.Part)*partBlocks+in))
		c.Content = append(c.Content, block...)
	}
	return c, c.Sent != 0 || c.Data != theirs.Data || c.Zero != theirs.Zero, nil
}

func blockOf(content []byte, in int) []byte {
	return content[in*chunk.BlockSize:][:chunk.BlockSize]
}

// readPart reads the blocks of a part, and tells which of them don't match
// their checksums.
func (s *Store) readPart(of chunk.Part) (p part, content []byte, wrong uint64, err error) {
	id := layerID{of.Ref, of.Seq}
	if p, content, wrong, err = s.tryPart(id, int(of.Part)); err != nil || wrong == 0 {
		return p, content, wrong, err
	}
	// It may have changed between the looks at metadata and file.
	sh := s.table.shard(of.Ref.Index)
	sh.io.Lock()
	defer sh.io.Unlock()
	return s.tryPart(id, int(of.Part))
}

func (s *Store) tryPart(id layerID, i int) (p part, content []byte, wrong uint64, err error) {
	if p, err = s.part(id, i); err != nil || p.data == 0 {
		return p, nil, 0, err
	}
	file, err := s.files.reading(id)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil, p.data, nil
	}
	if err != nil {
		return p, nil, 0, fmt.Errorf("read %v: %w", id, err)
	}
	defer s.files.release(file)
	content = make([]byte, chunk.PartSize)
	var data blockSet
	data[i] = p.data
	err = data.runs(func(first, n int) error {
		off := (first - i*partBlocks) * chunk.BlockSize
		run := content[off : off+n*chunk.BlockSize]
		if err := file.ReadAt(run, int64(first)*chunk.BlockSize); err != nil {
			clear(run) // one block can't be read: none of the run matches
		}
		return nil
	})
	for m := p.data; m != 0; m &= m - 1 {
		in := bits.TrailingZeros64(m)
		if !id.matches(blockOf(content, in), i*partBlocks+in, p.sums[in]) {
			wrong |= 1 << in
		}
	}
	return p, content, wrong, err
}

// Block returns the content of a block of a layer, for somebody whose copy is
// damaged.
func (s *Store) Block(ref chunk.Ref, seq chunk.Seq, block int) ([]byte, error) {
	if block < 0 || block >= chunk.Blocks {
		return nil, fmt.Errorf("%w: block %d of a chunk", chunk.ErrInvalid, block)
	}
	of := chunk.Part{Ref: ref, Seq: seq, Part: uint8(block / partBlocks)}
	p, content, wrong, err := s.readPart(of)
	bit := uint64(1) << (block % partBlocks)
	switch {
	case err != nil:
		return nil, err
	case p.data&bit == 0:
		return nil, fmt.Errorf("%w: %v has no data in block %d", chunk.ErrInvalid, layerID{ref, seq}, block)
	case wrong&bit != 0:
		return nil, &DamageError{ref, seq, block}
	}
	return blockOf(content, block%partBlocks), nil
}
