package coordinator

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

func TestParallel(t *testing.T) {
	t.Parallel()
	var running, most, done atomic.Int32
	err := parallel(t.Context(), 100, 5, func(context.Context, int) error {
		if now := running.Add(1); now > most.Load() {
			most.Store(now)
		}
		defer running.Add(-1)
		done.Add(1)
		return nil
	})
	if err != nil || done.Load() != 100 || most.Load() > 5 {
		t.Errorf("%d of 100 done, %d at once, error %v", done.Load(), most.Load(), err)
	}
	broken := errors.New("broken")
	done.Store(0)
	err = parallel(t.Context(), 1000, 2, func(_ context.Context, i int) error {
		done.Add(1)
		if i == 3 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || done.Load() == 1000 {
		t.Errorf("after a failure %d of 1000 were done, error %v", done.Load(), err)
	}
	if err := parallel(t.Context(), 0, 4, nil); err != nil {
		t.Errorf("nothing to do: %v", err)
	}
}

func TestProgressIsReportedSparingly(t *testing.T) {
	t.Parallel()
	var reports []int
	p := progress{total: 1000, report: func(percent int) error {
		reports = append(reports, percent)
		return nil
	}}
	for range 1000 {
		if err := p.step(); err != nil {
			t.Fatal(err)
		}
	}
	if len(reports) == 0 || len(reports) > 100 {
		t.Errorf("%d reports of 1000 steps", len(reports))
	}
	p.last = time.Time{}
	p.done = p.total - 1
	if err := p.step(); err != nil || reports[len(reports)-1] != 100 {
		t.Errorf("the last report was %v", reports)
	}
}

func TestVolumeLock(t *testing.T) {
	t.Parallel()
	var locks volumeLocks
	unlock, err := locks.lock(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	other, err := locks.lock(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	other()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := locks.lock(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a held lock was given with error %v", err)
	}
	unlock()
	if unlock, err = locks.lock(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	unlock()
	if len(locks.locks) != 0 {
		t.Errorf("%d locks are left over", len(locks.locks))
	}
}
