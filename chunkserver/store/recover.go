package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// recover brings the state that the last checkpoint saved to the end of the
// journal, and the journal to where it can be written.
func (s *Store) recover(saved *cut) error {
	r, numbers, err := s.replay(saved)
	if err != nil {
		return err
	}
	s.log.Info("journal replayed", "records", r.replayed, "end", r.end)
	return s.journal.resume(r, numbers)
}

// replay executes the journal, of whose segments it returns the numbers. If it
// fails, everything is as of where it came to.
func (s *Store) replay(saved *cut) (*replay, []uint64, error) {
	s.applied, s.appliedBatch = saved.applied, saved.batch
	s.used.Store(saved.used)
	s.needless = saved.needless
	s.histories.restore(saved.copysets)
	r := &replay{
		store:     s,
		from:      saved.applied,
		lastBatch: saved.batch,
		ended:     true,
		end:       position{saved.first, segmentHeader},
	}
	numbers, err := s.journal.list(saved.first)
	for i := 0; err == nil && i < len(numbers); i++ {
		err = r.segment(numbers[i])
	}
	s.histories.trim()
	if err == nil && r.end.before(saved.applied) {
		err = r.damage()
	}
	return r, numbers, err
}

// list returns the numbers of the segments from first on, and takes files
// that are none of them out of use.
func (j *journal) list(first uint64) ([]uint64, error) {
	names, err := j.fs.List(journalDir)
	if err != nil {
		return nil, fmt.Errorf("list journal: %w", err)
	}
	var numbers []uint64
	for _, name := range names {
		if strings.HasSuffix(name, freeSuffix) {
			if err := j.adopt(journalDir + "/" + name); err != nil {
				return nil, err
			}
			continue
		}
		number, ok := parseSegmentName(name)
		switch {
		case !ok:
			return nil, fmt.Errorf("%s/%s is not a file of a store", journalDir, name)
		case number < first:
			if err := j.fs.Remove(segmentName(number)); err != nil {
				return nil, fmt.Errorf("free journal segment: %w", err)
			}
		default:
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	for i, number := range numbers {
		if number != first+uint64(i) {
			return nil, fmt.Errorf("%w: %s is missing", ErrDamaged, segmentName(first+uint64(i)))
		}
	}
	if len(numbers) == 0 {
		return nil, fmt.Errorf("%w: %s is missing", ErrDamaged, segmentName(first))
	}
	return numbers, nil
}

// adopt keeps a file that a segment may be made of, or removes it if it is not
// complete.
func (j *journal) adopt(name string) error {
	file, err := j.fs.Open(name)
	if err != nil {
		return fmt.Errorf("open unused journal segment: %w", err)
	}
	size, err := file.Size()
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("open unused journal segment: %w", err)
	}
	if size == j.length && len(j.free) < j.spared {
		j.free = append(j.free, name)
		return nil
	}
	if err := j.fs.Remove(name); err != nil {
		return fmt.Errorf("free journal segment: %w", err)
	}
	return nil
}

// replay reads the journal from its beginning to its end.
type replay struct {
	store    *Store
	from     position // where the saved state ends: what lies behind is executed
	replayed int

	any       bool     // a record was read
	chain     uint32   // header checksum of the last record
	lastBatch uint64   // its batch
	ended     bool     // and whether it was the last of that
	end       position // behind it; when done, of the journal
	done      bool     // the journal has ended
}

// segment replays the next segment, or, behind the end of the journal, makes
// sure that it is the end.
func (r *replay) segment(number uint64) error {
	s := r.store
	segment, content, err := openSegment(s.fs, s.format.store, number)
	if err != nil {
		return err
	}
	defer segment.file.Close()
	if !r.done {
		if err := r.records(segment, content); err != nil {
			return err
		}
		r.done = r.end.segment != number
	}
	rest := int64(segmentHeader)
	if !r.done {
		rest = align(r.end.off, chunk.BlockSize)
	}
	if r.lost(segment, content, rest) {
		return r.damage()
	}
	return nil
}

// damage says that there is no good record where one must be.
func (r *replay) damage() error {
	off := r.end.off
	if r.ended {
		off = align(off, chunk.BlockSize)
	}
	return damagedAt(segmentName(r.end.segment), off)
}

// records takes in the records of a segment, up to the first place where
// there is none.
func (r *replay) records(segment *segment, content []byte) error {
	for off := int64(segmentHeader); ; {
		rec, sum, ok := r.at(segment, content, off)
		if !ok {
			return nil
		}
		at := position{segment.number, rec.off}
		if err := r.take(&rec.record, at, rec.payload); err != nil {
			return fmt.Errorf("%s, offset %d: %w", segmentName(at.segment), at.off, err)
		}
		off = rec.off + rec.size()
		r.any, r.chain, r.lastBatch = true, sum, rec.batch
		r.ended = rec.flags&flagLast != 0
		r.end = position{segment.number, off}
	}
}

type found struct {
	record
	off     int64
	payload []byte
}

// at returns the record that follows on the last one, at off or, as the first
// of a batch, at the next block.
func (r *replay) at(segment *segment, content []byte, off int64) (found, uint32, bool) {
	block := align(off, chunk.BlockSize)
	if !r.ended {
		if rec, sum, ok := readRecord(segment, content, off); ok && rec.chain == r.chain && rec.batch == r.lastBatch {
			return rec, sum, true
		}
	}
	rec, sum, ok := readRecord(segment, content, block)
	return rec, sum, ok && (!r.any || rec.chain == r.chain)
}

// lost reports whether a batch begins at or behind off that was written when
// the place where the journal seems to end had been durable.
func (r *replay) lost(segment *segment, content []byte, off int64) bool {
	torn := r.lastBatch
	if r.ended {
		torn++
	}
	for ; off+recordHeader <= int64(len(content)); off += chunk.BlockSize {
		if rec, _, ok := parseRecord(content[off:], segment.seed); ok && rec.batch > torn {
			return true
		}
	}
	return false
}

// readRecord returns the record at off, if there is one that is whole.
func readRecord(segment *segment, content []byte, off int64) (found, uint32, bool) {
	if off+recordHeader > int64(len(content)) {
		return found{}, 0, false
	}
	rec, sum, ok := parseRecord(content[off:], segment.seed)
	if !ok || off+rec.size() > int64(len(content)) {
		return found{}, 0, false
	}
	payload := content[off+recordHeader:][:rec.payloadLen:rec.payloadLen]
	return found{rec, off, payload}, sum, rec.holds(payload)
}

// take executes one record, or notes it if that was done before the last
// checkpoint.
func (r *replay) take(rec *record, at position, payload []byte) error {
	s := r.store
	if rec.flags&^knownFlags != 0 || rec.kind < recordEntry || rec.kind > recordDrop {
		return fmt.Errorf("record of kind %d with flags %x: this program does not know it", rec.kind, rec.flags)
	}
	if at.before(r.from) {
		s.histories.retained(rec, at)
		return nil
	}
	r.replayed++
	b, err := rec.body(payload)
	if err != nil {
		return err
	}
	if err := s.apply(rec, &b, at); !errors.Is(err, ErrNotReady) {
		return err
	}
	return nil // as it was when it was applied first
}

// resume makes the journal go on behind what r has found, and marks the place.
func (j *journal) resume(r *replay, numbers []uint64) error {
	w := &j.writer
	w.chain, w.batch, w.off = r.chain, r.lastBatch, align(r.end.off, chunk.BlockSize)
	file, err := j.fs.Open(segmentName(r.end.segment))
	if err != nil {
		return fmt.Errorf("open journal segment: %w", err)
	}
	w.segment = &segment{r.end.segment, file, segmentSeed(j.store, r.end.segment)}
	for i, number := range numbers {
		if number > r.end.segment {
			return j.discardFrom(numbers[i:])
		}
		j.live = append(j.live, number)
	}
	return nil
}

// discardFrom takes the segments behind the end of the journal out of use,
// the last one first: a crash must not leave a gap in the numbers.
func (j *journal) discardFrom(numbers []uint64) error {
	for _, number := range slices.Backward(numbers) {
		if err := j.discard(number); err != nil {
			return err
		}
		if err := j.fs.SyncDir(journalDir); err != nil {
			return fmt.Errorf("free journal segment: %w", err)
		}
	}
	return nil
}
