package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Options tune a store. The zero value is meant for production; what is zero
// is replaced by the default named at the field.
type Options struct {
	FS  FS           // default OSFS of the directory
	Log *slog.Logger // told of recovery, checkpoints and failure; default discards

	QueueBytes      int64 // of entries accepted but not yet applied, before Append blocks; default 64 MiB
	SegmentBytes    int64 // length of a journal segment; default 64 MiB; fixed when the directory is made
	CheckpointBytes int64 // journal written before a checkpoint starts by itself; default 128 MiB; negative: none ever does
	CacheBytes      int64 // memory for clean metadata and resolutions; default 256 MiB
	OpenFiles       int   // layer files held open; default half of what the process may open, at most 8192
	ReserveBytes    int64 // kept free for journal, checkpoint and deletes; default 1 GiB

	FreeEvery time.Duration // a checkpoint starts by itself this often while there is anything to free; default 5 s

	ScrubBytes  int64         // read per second in search of damage; default 16 MiB; negative: none
	ScrubPeriod time.Duration // from the start of one search to that of the next; default a week
	// Damaged is told of what the search finds, by the goroutine that
	// searches and waits for it.
	Damaged func(Finding)
}

func (o Options) withDefaults(dir string) Options {
	if o.FS == nil {
		o.FS = OSFS(dir)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.QueueBytes = cmp.Or(o.QueueBytes, 64<<20)
	o.SegmentBytes = cmp.Or(o.SegmentBytes, 64<<20)
	o.CheckpointBytes = cmp.Or(o.CheckpointBytes, 128<<20)
	o.CacheBytes = cmp.Or(o.CacheBytes, 256<<20)
	o.OpenFiles = cmp.Or(o.OpenFiles, min(8192, maxOpenFiles()/2))
	o.ReserveBytes = cmp.Or(o.ReserveBytes, 1<<30)
	o.FreeEvery = cmp.Or(o.FreeEvery, 5*time.Second)
	o.ScrubBytes = cmp.Or(o.ScrubBytes, 16<<20)
	o.ScrubPeriod = cmp.Or(o.ScrubPeriod, 7*24*time.Hour)
	return o
}

// Store is the chunkserver's directory of layers and its journal. All methods
// may be called concurrently.
//
// Five goroutines belong to it: one writes the journal, one makes segments for
// that ahead, one applies what is durable, one takes checkpoints, one searches
// for damage.
type Store struct {
	opts     Options
	fs       FS
	log      *slog.Logger
	unlock   func() error // of the directory
	meta     *meta
	table    *table
	files    *files
	journal  *journal
	scrubber scrubber

	histories *histories
	used      atomic.Int64 // blocks with data

	// applying is held while a record is applied and while a cut is made.
	// It guards what follows; after it come the locks of shards, files and
	// histories.
	applying     sync.Mutex
	applied      position // behind the last record that was applied
	appliedBatch uint64
	needless     map[layerID]*blockSet // freed by what was applied since the last cut

	checkpointing chan struct{} // holds a token while a checkpoint is under way
	due           chan struct{} // holds a token when a checkpoint is due

	formatMu sync.Mutex
	format   format

	foundMu sync.Mutex
	found   []State // for Copysets

	cause  atomic.Pointer[error] // why the store has failed or is closed; set once
	failed chan struct{}         // closed when it has failed

	stop      chan struct{}  // closed to end the goroutines
	pipeline  sync.WaitGroup // the two that end when the queue is closed and empty
	helpers   sync.WaitGroup // the two that end with stop
	closeOnce sync.Once
	closeErr  error
}

const lockFile = "lock"

// Open opens the store in dir, which it creates if it does not exist or is
// empty, and brings it to the end of its journal. It refuses a directory that
// is in use, that is not a store's, or that a newer version has written; and
// reports [ErrDamaged] with file and offset if the journal is broken before
// its end.
func Open(dir string, opts Options) (*Store, error) {
	if opts.FS == nil {
		if err := makeDir(dir); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	opts = opts.withDefaults(dir)
	unlock, err := opts.FS.Lock(lockFile)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s, err := open(opts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", dir, err), unlock())
	}
	s.unlock = unlock
	return s, nil
}

// makeDir makes dir and its parents, durably.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return OSFS(parent).SyncDir(".")
}

func open(opts Options) (*Store, error) {
	f, found, err := readFormat(opts.FS)
	if err != nil {
		return nil, err
	}
	if !found {
		if f, err = create(opts); err != nil {
			return nil, fmt.Errorf("create: %w", err)
		}
	}
	m, err := openMeta(opts.FS, f.store, false)
	if err != nil {
		return nil, err
	}
	s := newStore(opts, f, m)
	if err := s.start(); err != nil {
		return nil, errors.Join(err, s.journal.close(), s.files.close(), m.close())
	}
	return s, nil
}

// create makes a store's directory. The format file comes last: without it
// there is no store, and whatever is there is made anew.
func create(opts Options) (format, error) {
	fs := opts.FS
	f := format{store: newUUID(), segments: align(opts.SegmentBytes, chunk.BlockSize)}
	if f.segments < minSegment || f.segments > maxSegment {
		return format{}, fmt.Errorf("%w: journal segments of %d bytes", chunk.ErrInvalid, opts.SegmentBytes)
	}
	for _, dir := range []string{journalDir, layerDir} {
		if err := fs.Mkdir(dir); err != nil {
			return format{}, err
		}
	}
	leftovers, err := fs.List(journalDir)
	if err != nil {
		return format{}, err
	}
	for i := range leftovers {
		leftovers[i] = journalDir + "/" + leftovers[i]
	}
	for _, name := range append(leftovers, metaFile) {
		if err := fs.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return format{}, err
		}
	}
	segment, err := makeSegment(fs, f.store, 1, f.segments, "")
	if err != nil {
		return format{}, err
	}
	if err := segment.file.Close(); err != nil {
		return format{}, err
	}
	m, err := openMeta(fs, f.store, false)
	if err != nil {
		return format{}, err
	}
	err = m.save(&cut{first: 1, applied: position{1, segmentHeader}})
	if err := errors.Join(err, m.close()); err != nil {
		return format{}, err
	}
	return f, f.write(fs)
}

func newStore(opts Options, f format, m *meta) *Store {
	return &Store{
		opts:  opts,
		fs:    opts.FS,
		log:   opts.Log,
		meta:  m,
		table: newTable(opts.CacheBytes, m.column),
		files: newFiles(opts.FS, opts.OpenFiles),
		journal: &journal{
			fs: opts.FS, store: f.store, length: f.segments,
			spared: 2 + int(max(0, opts.CheckpointBytes)/f.segments), // what a checkpoint frees, and the next
			queue:  newQueue(opts.QueueBytes, f.segments-segmentHeader-chunk.BlockSize),
			spares: make(chan spare),
		},
		scrubber:      scrubber{rate: opts.ScrubBytes, period: opts.ScrubPeriod, damaged: opts.Damaged},
		histories:     newHistories(),
		needless:      make(map[layerID]*blockSet),
		checkpointing: make(chan struct{}, 1),
		due:           make(chan struct{}, 1),
		format:        f,
		failed:        make(chan struct{}),
		stop:          make(chan struct{}),
	}
}

// start recovers the store and starts its goroutines.
func (s *Store) start() error {
	saved, err := s.meta.load()
	if err != nil {
		return err
	}
	if err := s.recover(saved); err != nil {
		return err
	}
	s.scrubber.state = saved.scrub
	s.found = s.histories.states()
	for i := range s.found {
		state := &s.found[i]
		if err := s.readTail(state); err != nil {
			return err
		}
		s.journal.queue.ends[state.Copyset] = state.Last
	}
	next := s.journal.last() + 1
	s.journal.stop = s.stop
	s.helpers.Go(func() { s.journal.makeSegments(next) })
	if err := s.journal.write([]*item{wordItem(record{kind: recordMark})}); err != nil {
		close(s.stop)
		s.helpers.Wait()
		return err
	}
	written := make(chan batch, 16)
	s.pipeline.Go(func() { s.journal.run(s.fail, written) })
	s.pipeline.Go(func() { s.applyBatches(written) })
	s.helpers.Go(s.runCheckpoints)
	if s.scrubber.rate > 0 {
		s.helpers.Go(s.runScrub)
	}
	return nil
}

var errClosed = errors.New("store is closed")

// Close stops the store: it waits for what was accepted, takes a checkpoint,
// so that the next Open has nothing to replay, and releases the directory.
// Nobody may be reading.
func (s *Store) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	s.journal.queue.close(stopped(errClosed))
	s.pipeline.Wait()
	close(s.stop)
	s.helpers.Wait()
	var err error
	if s.failure() == nil {
		err = s.checkpoint()
	}
	s.cause.CompareAndSwap(nil, &errClosed)
	return errors.Join(err, s.journal.close(), s.files.close(), s.meta.close(), s.unlock())
}

// close closes the segment that is written, if there is one.
func (j *journal) close() error {
	if j.writer.segment == nil {
		return nil
	}
	return j.writer.segment.file.Close()
}

// ID is the UUID that the directory got when it was made.
func (s *Store) ID() string { return s.format.store.String() }

// Bind ties the store to a cluster for good, durably; it refuses any but the
// first.
func (s *Store) Bind(cluster string) error {
	id, err := parseUUID(cluster)
	if err != nil {
		return fmt.Errorf("%w: cluster: %w", chunk.ErrInvalid, err)
	}
	s.formatMu.Lock()
	defer s.formatMu.Unlock()
	switch s.format.cluster {
	case id:
		return nil
	case uuid{}:
		f := s.format
		f.cluster = id
		if err := f.write(s.fs); err != nil {
			s.fail(err)
			return stopped(err)
		}
		s.format = f
		return nil
	}
	return fmt.Errorf("%w: store %v belongs to cluster %v, not to %v", chunk.ErrInvalid, s.format.store, s.format.cluster, id)
}

// Append makes entries part of the history of their copysets. It returns once
// they are accepted, blocking while the queue is full, and then calls done
// exactly once: with nil as soon as they are durable and applied, so that
// every later ReadAt sees them, or with the error that ended the store. done
// is called in the order of acceptance, by a goroutine of the store that
// waits for it: it must neither take long nor wait for the store.
//
// The LSN of an entry must follow on the last one of its copyset; otherwise,
// and for an entry that is malformed, Append returns an error that is
// [chunk.ErrInvalid], and nothing was accepted. Entries and their data must
// not be changed before done. The data of a write must match its sums: the
// caller has verified them.
func (s *Store) Append(ctx context.Context, entries []chunk.Entry, done func(error)) error {
	if len(entries) == 0 {
		return fmt.Errorf("%w: no entries", chunk.ErrInvalid)
	}
	items := make([]*item, len(entries))
	for i := range entries {
		if err := entries[i].Op.Validate(); err != nil {
			return err
		}
		items[i] = entryItem(&entries[i])
	}
	q := s.journal.queue
	return q.accept(ctx, items, done, func() error { return q.extend(entries) })
}

// Promise records that the copyset will refuse epochs smaller than epoch,
// and calls done as Append does when that is durable.
func (s *Store) Promise(ctx context.Context, copyset chunk.CopysetID, epoch chunk.Epoch, done func(error)) error {
	it := wordItem(record{kind: recordPromise, copyset: copyset, epoch: epoch})
	return s.journal.queue.accept(ctx, []*item{it}, done, func() error { return nil })
}

// Committed tells the store that every in-sync member of the copyset is
// durable up to lsn, so that it need not keep the entries up to there.
func (s *Store) Committed(copyset chunk.CopysetID, lsn chunk.LSN) {
	s.histories.mu.Lock()
	defer s.histories.mu.Unlock()
	s.histories.of(copyset).committed(lsn)
}

// fail makes err the end of the store. What is not acknowledged by now will
// not be: after a failed sync nobody knows what the disk has.
func (s *Store) fail(err error) {
	if !s.cause.CompareAndSwap(nil, &err) {
		return
	}
	close(s.failed)
	s.log.Error("store has failed", "err", err)
	s.journal.queue.close(stopped(err))
}

// failure is why the store is no longer usable, or nil.
func (s *Store) failure() error {
	if cause := s.cause.Load(); cause != nil {
		return *cause
	}
	return nil
}

// stopped is what callers get when err has ended the store.
func stopped(err error) error {
	if err == nil || errors.Is(err, ErrStopped) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrStopped, err)
}

// Failed is closed when the store has failed: a write or sync went wrong, and
// nothing can be relied on any more but what was acknowledged.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Err is why the store has failed or was closed, as [ErrStopped]; nil while
// it works.
func (s *Store) Err() error { return stopped(s.failure()) }
