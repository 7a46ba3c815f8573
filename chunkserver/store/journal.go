package store

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// position is a place in the journal: a byte of a segment.
type position struct {
	segment uint64
	off     int64
}

func (p position) before(q position) bool {
	return p.segment < q.segment || p.segment == q.segment && p.off < q.off
}

const (
	// maxBatch bounds what is written and synced at once, so that those who
	// come last do not wait long for the first.
	maxBatch = 4 << 20
	// minSegment is the length of a segment that holds a few blocks.
	minSegment = 32 << 10
	// maxSegment bounds the memory that reading a segment takes.
	maxSegment = 1 << 30
)

// journal is the write-ahead log of all copysets: segments, written one after
// the other by the one goroutine that runs write.
//
// Commit point: a batch is durable when the one Sync after its one write has
// returned. There is never more than one batch under way, so after a crash
// only the last batch may be torn.
type journal struct {
	fs     FS
	store  uuid
	length int64 // of a segment
	spared int   // how many unused segments are kept for reuse
	queue  *queue
	spares chan spare    // the segments that follow, made ahead by makeSegments
	stop   chan struct{} // closed to end makeSegments

	backlog atomic.Int64 // bytes written since the last checkpoint

	writer struct { // belongs to the goroutine that writes
		segment *segment
		off     int64  // Invariant: where the next batch begins; a multiple of the block size
		chain   uint32 // header checksum of the last record
		batch   uint64 // number of the last batch
	}

	mu   sync.Mutex
	live []uint64 // segments in use, ascending; the last is being written
	free []string // files that may become segments
}

type spare struct {
	segment *segment
	err     error
}

// batch is what was written together, with the outcome.
type batch struct {
	items []*item
	end   position // of the journal, after it
	err   error
}

// run writes what the queue accepts, batch by batch, until the queue is
// closed and empty, and hands the batches on. After an error nothing is
// written any more, and every later batch has that error.
func (j *journal) run(fail func(error), written chan<- batch) {
	defer close(written)
	var failure error
	for {
		items, ok := j.queue.take(min(maxBatch, j.queue.longest))
		if !ok {
			return
		}
		if failure == nil {
			if failure = j.write(items); failure != nil {
				fail(failure)
			}
		}
		w := &j.writer
		written <- batch{items, position{w.segment.number, w.off}, failure}
	}
}

// write makes items durable as one batch.
func (j *journal) write(items []*item) error {
	var bytes int64
	for _, it := range items {
		bytes += it.size()
	}
	bytes = align(bytes, chunk.BlockSize)
	w := &j.writer
	if w.off+bytes > j.length {
		if err := j.roll(); err != nil {
			return err
		}
	}
	w.batch++
	items[len(items)-1].flags |= flagLast
	buffers := make([][]byte, 0, 3*len(items)+1)
	end := w.off
	for _, it := range items {
		it.batch, it.chain = w.batch, w.chain
		it.at = position{w.segment.number, end}
		w.chain = it.put(it.head, w.segment.seed)
		buffers = append(buffers, it.head)
		if len(it.data) > 0 {
			buffers = append(buffers, it.data)
		}
		if gap := it.size() - recordHeader - int64(it.payloadLen); gap > 0 {
			buffers = append(buffers, zeroBlock[:gap])
		}
		end += it.size()
	}
	if gap := align(end, chunk.BlockSize) - end; gap > 0 {
		buffers = append(buffers, zeroBlock[:gap])
	}
	if err := w.segment.file.WriteAt(w.off, buffers...); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := w.segment.file.Sync(); err != nil {
		return fmt.Errorf("sync journal: %w", err)
	}
	w.off += bytes
	j.backlog.Add(bytes)
	return nil
}

var zeroBlock [chunk.BlockSize]byte

// roll goes on with the next segment.
func (j *journal) roll() error {
	next := <-j.spares
	if next.err != nil {
		return next.err
	}
	w := &j.writer
	if w.segment != nil {
		if err := w.segment.file.Close(); err != nil {
			next.segment.file.Close()
			return fmt.Errorf("close journal segment: %w", err)
		}
	}
	w.segment, w.off = next.segment, segmentHeader
	j.mu.Lock()
	j.live = append(j.live, next.segment.number)
	j.mu.Unlock()
	return nil
}

// makeSegments makes one segment ahead, from number on, until stop is closed.
func (j *journal) makeSegments(number uint64) {
	for ; ; number++ {
		segment, err := makeSegment(j.fs, j.store, number, j.length, j.reusable())
		select {
		case j.spares <- spare{segment, err}:
			if err != nil {
				return
			}
		case <-j.stop:
			if err == nil {
				segment.file.Close()
			}
			return
		}
	}
}

// reusable returns the name of a file that may become a segment, or "".
func (j *journal) reusable() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.free) == 0 {
		return ""
	}
	name := j.free[len(j.free)-1]
	j.free = j.free[:len(j.free)-1]
	return name
}

// release frees the segments before number. The metadata must say already
// that the journal begins there.
func (j *journal) release(number uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.live) > 1 && j.live[0] < number {
		if err := j.discard(j.live[0]); err != nil {
			return err
		}
		j.live = j.live[1:]
	}
	return nil
}

// discard takes segment number out of use. mu must be held.
func (j *journal) discard(number uint64) error {
	name := segmentName(number)
	free := strings.TrimSuffix(name, segmentSuffix) + freeSuffix
	if len(j.free) >= j.spared || slices.Contains(j.free, free) {
		if err := j.fs.Remove(name); err != nil {
			return fmt.Errorf("free journal segment: %w", err)
		}
		return nil
	}
	if err := j.fs.Rename(name, free); err != nil {
		return fmt.Errorf("free journal segment: %w", err)
	}
	j.free = append(j.free, free)
	return nil
}

// read returns the record at a place where an entry is known to be, with its
// payload.
func (j *journal) read(at position) (record, []byte, error) {
	name := segmentName(at.segment)
	file, err := j.fs.Open(name)
	if err != nil {
		return record{}, nil, fmt.Errorf("read journal: %w", err)
	}
	defer file.Close()
	header := make([]byte, recordHeader)
	if err := file.ReadAt(header, at.off); err != nil {
		return record{}, nil, fmt.Errorf("read journal: %w", err)
	}
	r, _, ok := parseRecord(header, segmentSeed(j.store, at.segment))
	if !ok || at.off+r.size() > j.length {
		return record{}, nil, damagedAt(name, at.off)
	}
	payload := make([]byte, r.payloadLen)
	if err := file.ReadAt(payload, at.off+recordHeader); err != nil {
		return record{}, nil, fmt.Errorf("read journal: %w", err)
	}
	if !r.holds(payload) {
		return record{}, nil, damagedAt(name, at.off)
	}
	return r, payload, nil
}

func damagedAt(name string, off int64) error {
	return fmt.Errorf("%w: record at offset %d of %s", ErrDamaged, off, name)
}
