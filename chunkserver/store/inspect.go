package store

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime/debug"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// An Inspection is a look at a store that no process runs. It shows what Open
// would find, and changes nothing in the directory: what the journal holds
// beyond the last checkpoint is executed in memory, which takes as much of it
// as that data.
//
// Its methods are for one goroutine.
type Inspection struct {
	ID      string // the store's
	Cluster string // that it is bound to; "" if none yet
	Version int    // of the directory

	Journal  Journal
	Copysets []State // without Tail
	Used     uint64  // bytes of the blocks of layers

	// Damage is why the journal can't be executed to its end, or nil. All
	// else is as of the place that it names.
	Damage error

	store *Store
}

// Journal tells what a journal holds.
type Journal struct {
	First, Last  uint64 // numbers of the segments in use
	SegmentBytes int64
	Spares       int // unused segments
	Pending      int // records since the last checkpoint
}

// LayerInfo tells what a layer of a chunk holds.
type LayerInfo struct {
	Ref   chunk.Ref
	Seq   chunk.Seq
	Data  int // blocks with data
	Zeros int // blocks that hide what lies below
}

// Inspect looks at the store in dir. It refuses a directory that is in use,
// that is not a store's, or that another version has written.
func Inspect(dir string) (*Inspection, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("inspect store: %w", err)
	}
	fs := newOverlay(dir)
	unlock, err := fs.Lock(lockFile)
	if err != nil {
		return nil, fmt.Errorf("inspect store: %w", err)
	}
	i, err := inspect(fs)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("inspect store %s: %w", dir, err), unlock())
	}
	i.store.unlock = unlock
	return i, nil
}

func inspect(fs *overlay) (*Inspection, error) {
	f, found, err := readFormat(fs)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("not a store: it has no file %q", formatFile)
	}
	var m *meta
	if err := trusting(func() (err error) { m, err = openMeta(fs, f.store, true); return err }); err != nil {
		return nil, err
	}
	s := newStore(Options{FS: fs}.withDefaults(""), f, m)
	i := &Inspection{ID: f.store.String(), Version: formatVersion, store: s}
	if f.cluster != (uuid{}) {
		i.Cluster = f.cluster.String()
	}
	if err := trusting(i.replay); err != nil {
		return nil, errors.Join(err, s.files.close(), m.close())
	}
	return i, nil
}

// replay executes the journal, and tells what it has found.
func (i *Inspection) replay() error {
	s := i.store
	saved, err := s.meta.load()
	if err != nil {
		return err
	}
	r, numbers, err := s.replay(saved)
	if err != nil && !errors.Is(err, ErrDamaged) {
		return err
	}
	i.Damage = err
	i.Journal = Journal{First: saved.first, SegmentBytes: s.format.segments, Spares: len(s.journal.free), Pending: r.replayed}
	if len(numbers) > 0 {
		i.Journal.Last = numbers[len(numbers)-1]
	}
	i.Used = uint64(s.used.Load()) * chunk.BlockSize
	i.Copysets = s.histories.states()
	return nil
}

// Layers calls fn for each layer, in the order of volume, chunk and sequence
// number. The error is [ErrDamaged] if the metadata of some can't be read; the
// others are shown nevertheless.
func (i *Inspection) Layers(fn func(LayerInfo)) error {
	return trusting(func() error {
		volumes, err := i.store.Volumes()
		for _, volume := range volumes {
			indices, unreadable := i.store.Chunks([]chunk.VolumeID{volume})
			err = errors.Join(err, unreadable)
			for _, index := range indices {
				ref := chunk.Ref{Volume: volume, Index: index}
				if unreadable := i.store.inspect(ref, func(c *column) { c.describe(fn) }); unreadable != nil {
					err = errors.Join(err, fmt.Errorf("chunk %v: %w", ref, unreadable))
				}
			}
		}
		return err
	})
}

func (c *column) describe(fn func(LayerInfo)) {
	for _, l := range c.layers {
		if l.empty() {
			continue
		}
		info := LayerInfo{Ref: c.ref, Seq: l.id.seq, Data: l.blocks()}
		l.each(func(_ int, p *part) { info.Zeros += bits.OnesCount64(p.zero) })
		fn(info)
	}
}

// Verify reads everything and compares it with its checksums: the database,
// the journal, which [Inspect] has read already, and every block as the medium
// has it; and it looks for files that nothing refers to. It calls report for
// what is wrong, and progress now and then with the number of bytes that it
// has read, which grows to Used. Its error is about Verify itself.
func (i *Inspection) Verify(ctx context.Context, report func(Finding), progress func(done uint64)) error {
	damaged := func(err error) { report(Finding{Block: -1, Reason: err.Error()}) }
	if i.Damage != nil {
		damaged(i.Damage)
	}
	if intact, err := i.verifyDatabase(damaged); err != nil || !intact {
		return err // nothing else can be relied on
	}
	for _, state := range i.Copysets {
		if err := i.store.readTail(&state); err != nil {
			damaged(err)
		}
	}
	var done uint64
	err := trusting(func() error {
		return i.store.check(ctx, report, func(ctx context.Context, blocks int) error {
			done += uint64(blocks) * chunk.BlockSize
			progress(done)
			return ctx.Err()
		})
	})
	if errors.Is(err, ErrDamaged) {
		damaged(err)
		return nil
	}
	return err
}

// verifyDatabase reports whether all pages of the database fit together.
func (i *Inspection) verifyDatabase(damaged func(error)) (intact bool, err error) {
	tx, err := i.store.meta.db.Begin(false)
	if err != nil {
		return false, fmt.Errorf("verify %s: %w", metaFile, err)
	}
	defer tx.Rollback()
	intact = true
	for err := range tx.Check() {
		intact = false
		damaged(fmt.Errorf("%w: %s: %w", ErrDamaged, metaFile, err))
	}
	return intact, nil
}

// trusting calls fn, which reads the database. That trusts its pages: where
// they are damaged it panics, or follows them out of the file.
func trusting(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %s: %v", ErrDamaged, metaFile, p)
		}
	}()
	return fn()
}

// Close releases the directory.
func (i *Inspection) Close() error {
	s := i.store
	return errors.Join(s.files.close(), s.meta.close(), s.unlock())
}
