package nemesis

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// writerSectors are written over and over, spread over the volume so that all
// copysets take part.
const writerSectors = 1024

// A writer keeps some writes under way on a volume, each to another sector,
// reads between them what it wrote, and enters it all in its ledger.
type writer struct {
	t      *testing.T
	disk   *disk
	ledger *ledger
	volume uint64
	size   uint64

	stopped atomic.Bool
	workers sync.WaitGroup
	ops     atomic.Int64 // that have ended
	mayFail atomic.Bool  // the gateway is to die

	mu    sync.Mutex
	times []time.Duration // how long each op took since the last reset
}

// mostTimes bounds the memory for times: more ops than a story has.
const mostTimes = 4 << 20

// startWriter begins to write. It ends with stop, or with the gateway.
func startWriter(t *testing.T, d *disk, l *ledger, depth int) *writer {
	w := &writer{t: t, disk: d, ledger: l, volume: 1, size: d.size}
	for i := range depth {
		w.workers.Go(func() { w.work(uint64(i), uint64(depth)) })
	}
	return w
}

// offset is where a sector of the writer lies on the volume.
func (w *writer) offset(sector uint64) uint64 {
	stride := w.size / writerSectors / sectorSize
	return (sector*stride + sector%stride) * sectorSize
}

// work writes every step'th sector, beginning with the first.
func (w *writer) work(first, step uint64) {
	p := make([]byte, sectorSize)
	for !w.stopped.Load() {
		for sector := first; sector < writerSectors && !w.stopped.Load(); sector += step {
			err := w.timed(func() error { return w.write(p, sector) })
			if err == nil && sector%4 == 0 {
				err = w.timed(func() error { return w.check(p, sector) })
			}
			if err != nil {
				if !w.mayFail.Load() {
					w.t.Error(err)
				}
				return
			}
		}
	}
}

func (w *writer) timed(do func() error) error {
	began := time.Now()
	err := do()
	took := time.Since(began)
	w.mu.Lock()
	if len(w.times) < mostTimes {
		w.times = append(w.times, took)
	}
	w.mu.Unlock()
	w.ops.Add(1)
	return err
}

func (w *writer) write(p []byte, sector uint64) error {
	op := w.ledger.issue(sector)
	stamp{w.volume, sector, op}.fill(p)
	if err := w.disk.writeAt(p, w.offset(sector)); err != nil {
		return fmt.Errorf("write sector %d: %w", sector, err)
	}
	w.ledger.answered(op)
	return nil
}

// check compares a sector, which nobody is writing, with the ledger.
func (w *writer) check(p []byte, sector uint64) error {
	op, err := w.stampOf(w.disk, p, sector)
	if err != nil {
		return err
	}
	return w.ledger.read(sector, op)
}

// stampOf reads which op a sector of a disk is of: the volume, or a snapshot.
func (w *writer) stampOf(d *disk, p []byte, sector uint64) (op uint64, err error) {
	if err := d.readAt(p, w.offset(sector)); err != nil {
		return 0, fmt.Errorf("read sector %d: %w", sector, err)
	}
	return readStamp(p, w.volume, sector)
}

// checkAll compares every sector with the ledger. Nobody may be writing.
func (w *writer) checkAll() {
	w.t.Helper()
	p := make([]byte, sectorSize)
	for sector := range uint64(writerSectors) {
		if err := w.check(p, sector); err != nil {
			w.t.Error(err)
		}
	}
}

// all reads the ops of all sectors of a disk.
func (w *writer) all(d *disk) (map[uint64]uint64, error) {
	const depth = 32
	var found [writerSectors]uint64
	var g errgroup.Group
	for first := range uint64(depth) {
		g.Go(func() error {
			p := make([]byte, sectorSize)
			for sector := first; sector < writerSectors; sector += depth {
				op, err := w.stampOf(d, p, sector)
				if err != nil {
					return err
				}
				found[sector] = op
			}
			return nil
		})
	}
	err := g.Wait()
	ops := make(map[uint64]uint64, writerSectors)
	for sector, op := range found {
		ops[uint64(sector)] = op
	}
	return ops, err
}

// reset forgets how long ops took.
func (w *writer) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.times = w.times[:0]
}

// longest is how long the longest op took that ended since reset.
func (w *writer) longest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.times) == 0 {
		return 0
	}
	return slices.Max(w.times)
}

// median is how long half of the ops took at most since reset.
func (w *writer) median() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return percentile(w.times, 50)
}

// percentile returns the smallest that is not below n percent of them, or 0.
func percentile(of []time.Duration, n int) time.Duration {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	return sorted[(len(sorted)*n+99)/100-1]
}

// goOn waits until twice as many ops as there are sectors have ended: each of
// those that a fault held up is among them.
func (w *writer) goOn() {
	w.t.Helper()
	w.goOnFor(2 * writerSectors)
}

// goOnFor waits until some more ops have ended.
func (w *writer) goOnFor(ops int64) {
	w.t.Helper()
	enough := w.ops.Load() + ops
	await(w.t, patient, "writing to go on", func() bool { return w.t.Failed() || w.ops.Load() >= enough })
}

// stop ends the writing, and waits for what is under way.
func (w *writer) stop() {
	w.stopped.Store(true)
	w.workers.Wait()
}

func TestPercentile(t *testing.T) {
	var of []time.Duration
	for i := range 200 {
		of = append(of, time.Duration(200-i))
	}
	for n, want := range map[int]time.Duration{50: 100, 99: 198, 100: 200} {
		if got := percentile(of, n); got != want {
			t.Errorf("percentile %d is %d, want %d", n, got, want)
		}
	}
	if got := percentile(nil, 50); got != 0 {
		t.Errorf("of nothing: %d", got)
	}
}
