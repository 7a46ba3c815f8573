package volume

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Whoever asks while an attempt is under way shares it; the next one begins
// no earlier than pause after it has ended.
func TestFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := flight[int]{pause: time.Second}
		var running sync.WaitGroup
		attempts := 0
		do := func(context.Context) (int, error) {
			attempts++
			time.Sleep(time.Minute)
			return attempts, nil
		}
		for round := 1; round <= 3; round++ {
			began := time.Now()
			var askers sync.WaitGroup
			for range 10 {
				askers.Go(func() {
					if n, err := f.begin(t.Context(), &running, do).wait(t.Context()); n != round || err != nil {
						t.Errorf("round %d: %d, %v", round, n, err)
					}
				})
			}
			askers.Wait()
			want := time.Minute
			if round > 1 {
				want += f.pause
			}
			if took := time.Since(began); took != want {
				t.Errorf("round %d took %v, want %v", round, took, want)
			}
		}
		running.Wait()
	})
}

func TestFlightOutlivesWhoeverBeganIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var f flight[string]
		var running sync.WaitGroup
		whole, end := context.WithCancel(t.Context())
		do := func(ctx context.Context) (string, error) {
			if err := sleep(ctx, time.Hour); err != nil {
				return "", err
			}
			return "done", nil
		}
		impatient, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := f.begin(whole, &running, do).wait(impatient); !errors.Is(err, context.Canceled) {
			t.Errorf("the impatient got %v", err)
		}
		if got, err := f.begin(whole, &running, do).wait(t.Context()); got != "done" || err != nil {
			t.Errorf("the patient got %q, %v", got, err)
		}
		last := f.begin(whole, &running, do)
		end()
		if _, err := last.wait(t.Context()); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end: %v", err)
		}
		running.Wait()
	})
}

func TestBackoffGrowsToItsMost(t *testing.T) {
	t.Parallel()
	b := backoff{least: 10, most: 45}
	for i, want := range []time.Duration{10, 20, 40, 45, 45} {
		if got := b.next(); got != want {
			t.Errorf("pause %d is %v, want %v", i, got, want)
		}
	}
}

// After close nothing begins, and wait returns when what had begun has ended.
func TestTally(t *testing.T) {
	t.Parallel()
	var tl tally
	var under, begun atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for tl.begin() {
				under.Add(1)
				begun.Add(1)
				under.Add(-1)
				tl.end()
			}
		})
	}
	for begun.Load() < 1000 {
		time.Sleep(time.Microsecond)
	}
	if !tl.begin() {
		t.Fatal("nothing begins")
	}
	if !tl.close() || tl.close() {
		t.Error("close was the first twice, or never")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tl.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("waited, with one under way: %v", err)
	}
	tl.end()
	if err := tl.wait(t.Context()); err != nil {
		t.Error(err)
	}
	if n := under.Load(); n != 0 {
		t.Errorf("%d are under way after the wait", n)
	}
	wg.Wait()

	var empty tally
	empty.close()
	if err := empty.wait(t.Context()); err != nil {
		t.Error(err)
	}
}
