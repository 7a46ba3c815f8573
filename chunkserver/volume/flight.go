package volume

import (
	"context"
	"sync"
	"time"
)

// flight is something that many want done at once and that must not be done
// too often: one attempt at a time, shared by all who ask meanwhile, and a
// pause between two.
type flight[T any] struct {
	pause time.Duration // from the end of one attempt to the start of the next

	mu      sync.Mutex
	current *attempt[T]
	ended   time.Time // of the latest
}

// attempt is one try. Its result may be read once done is closed.
type attempt[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// begin joins the attempt under way, or begins one, for which it uses a
// goroutine of run and ctx.
func (f *flight[T]) begin(ctx context.Context, run *sync.WaitGroup, do func(context.Context) (T, error)) *attempt[T] {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current != nil {
		return f.current
	}
	a := &attempt[T]{done: make(chan struct{})}
	f.current = a
	due := f.ended.Add(f.pause)
	run.Go(func() {
		defer close(a.done)
		if a.err = sleep(ctx, time.Until(due)); a.err == nil {
			a.value, a.err = do(ctx)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.current, f.ended = nil, time.Now()
	})
	return a
}

// wait returns the result of the attempt, or an error when ctx ends before.
func (a *attempt[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-a.done:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// sleep waits for d, or fails when ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// backoff grows the pause between attempts at something that keeps failing.
type backoff struct {
	least, most time.Duration
	last        time.Duration
}

// next is how long to pause now.
func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, b.least), b.most)
	return b.last
}
