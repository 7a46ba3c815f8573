package store

import (
	"context"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// scrubbing returns options under which the search is as fast as it can be,
// and what it has found so far.
func scrubbing(d *disk) (opts Options, found func() []Finding) {
	var mu sync.Mutex
	var findings []Finding
	opts = onDisk(d)
	opts.ScrubBytes, opts.ScrubPeriod = math.MaxInt64, time.Hour
	opts.Damaged = func(f Finding) {
		mu.Lock()
		defer mu.Unlock()
		findings = append(findings, f)
	}
	return opts, func() []Finding {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(findings)
	}
}

// awaitPass waits for the end of a pass that began after t0.
func awaitPass(t *testing.T, s *Store, t0 time.Time) Scrub {
	t.Helper()
	for range 10_000 {
		if at := s.Scrub(); at.Next.Volume == 0 && at.Began.After(t0) {
			return at
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the search for damage does not end")
	return Scrub{}
}

// Damage that nobody reads is found, told once a pass, and gone when it has
// been repaired.
func TestScrubFindsDamage(t *testing.T) {
	d := newDisk()
	c := &client{Store: mustOpen(t, "", onDisk(d))}
	other := chunk.Ref{Volume: 9, Index: 3}
	for i := range 4 {
		c.must(t, writeOp(ref10, 1, 50*i, filled(50, 1)))
	}
	c.must(t, writeOp(ref10, 2, 70, filled(1, 2)))
	c.must(t, writeOp(other, 1, 4095, filled(1, 3)))
	must(t, c.Close())
	d.corrupt(layerID{ref10, 1}.name(), 150*chunk.BlockSize+1)
	d.corrupt(layerID{other, 1}.name(), 4095*chunk.BlockSize)

	opts, found := scrubbing(d)
	s := mustOpen(t, "", opts)
	at := awaitPass(t, s, time.Time{})
	if at.Blocks != 202 || at.Damaged != 2 {
		t.Errorf("looked at %d blocks, %d damaged", at.Blocks, at.Damaged)
	}
	got := found()
	if len(got) != 2 || got[0].Block != 150 || got[0].Seq != 1 || got[0].Ref != ref10 || got[1].Ref != other || got[1].Block != 4095 {
		t.Fatalf("found %v", got)
	}
	must(t, s.Repair(ref10, 1, 150, filled(1, 1)))
	must(t, s.Repair(other, 1, 4095, filled(1, 3)))
	must(t, s.Close())

	opts, found = scrubbing(d)
	opts.ScrubPeriod = 1
	s = mustOpen(t, "", opts)
	awaitPass(t, s, at.Began)
	if got := found(); len(got) != 0 {
		t.Errorf("found again: %v", got)
	}
}

// A pass goes on after a restart where it was, and the next one waits until it
// is due.
func TestScrubGoesOn(t *testing.T) {
	d := newDisk()
	c := &client{Store: mustOpen(t, "", onDisk(d))}
	for volume := range chunk.VolumeID(4) {
		for index := range uint32(2) {
			c.must(t, writeOp(chunk.Ref{Volume: volume + 1, Index: index}, 1, 0, filled(1, 1)))
		}
	}
	began := time.Now().Add(-time.Minute).Truncate(time.Second)
	c.scrubber.note(func(at *Scrub) { *at = Scrub{Began: began, Next: chunk.Ref{Volume: 3, Index: 1}} })
	must(t, c.Close())

	opts, _ := scrubbing(d)
	s := mustOpen(t, "", opts)
	at := awaitPass(t, s, time.Time{})
	if at.Blocks != 3 || !at.Began.Equal(began) {
		t.Errorf("looked at %d blocks of a pass that began %v, want 3 of that of %v", at.Blocks, at.Began, began)
	}
	must(t, s.Close())
	s = mustOpen(t, "", opts)
	if at := s.Scrub(); at.Next.Volume != 0 || at.Blocks != 0 || !at.Began.Equal(began) {
		t.Errorf("a pass that isn't due: %+v", at)
	}
	must(t, s.Close())
	opts.ScrubPeriod = 30 * time.Second
	s = mustOpen(t, "", opts)
	if at := awaitPass(t, s, began); at.Blocks != 8 {
		t.Errorf("the pass that was due looked at %d blocks", at.Blocks)
	}
}

// What changes while it is looked at is not taken for damage.
func TestScrubBesideWrites(t *testing.T) {
	t.Parallel()
	opts := small
	opts.ScrubBytes, opts.ScrubPeriod = math.MaxInt64, 1
	opts.Damaged = func(f Finding) { t.Error(f) }
	c := &client{Store: mustOpen(t, t.TempDir(), opts)}
	for i := range 400 {
		c.must(t, writeOp(ref10, 1, i%50, filled(3, byte(i))))
		if i%40 == 39 {
			c.must(t, zeroOp(ref10, 1, 0, 64))
			must(t, c.Checkpoint(context.Background())) // frees them
		}
	}
	if at := c.Scrub(); at.Blocks < 100 {
		t.Errorf("only %d blocks were looked at meanwhile", at.Blocks)
	}
}

func TestScrubIsSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scrubber{rate: 1 << 20}
		began := time.Now()
		for range 16 {
			must(t, s.pace(t.Context(), partBlocks))
		}
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("4 MiB at 1 MiB/s took %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.pace(ctx, partBlocks); err == nil {
			t.Error("it goes on although the store stops")
		}
	})
}
