package volume

import (
	"context"
	"sync"
)

// tally counts what is under way, and lets an end wait for it.
type tally struct {
	mu     sync.Mutex
	n      int
	closed bool
	empty  chan struct{} // made by close; closed when nothing is under way any more
}

// begin counts one in; false after close. end must follow.
func (t *tally) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.n++
	return true
}

func (t *tally) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.closed {
		close(t.empty)
	}
}

// close lets nothing more begin and reports whether it is the first to do so.
func (t *tally) close() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.closed = true
	t.empty = make(chan struct{})
	if t.n == 0 {
		close(t.empty)
	}
	return true
}

// wait waits, after close, until nothing is under way.
func (t *tally) wait(ctx context.Context) error {
	select {
	case <-t.empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
