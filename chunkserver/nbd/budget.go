package nbd

import "sync"

// budget bounds what one connection has in flight. Only the connection's
// reader acquires, so there is at most one who waits.
type budget struct {
	maxRequests int
	maxBytes    int64

	mu       sync.Mutex
	released sync.Cond
	requests int
	bytes    int64
}

func newBudget(maxRequests int, maxBytes int64) *budget {
	b := &budget{maxRequests: maxRequests, maxBytes: maxBytes}
	b.released.L = &b.mu
	return b
}

// acquire waits until a request with so many bytes may be in flight. That is
// always so when nothing else is.
func (b *budget) acquire(bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.requests > 0 && (b.requests >= b.maxRequests || b.bytes+bytes > b.maxBytes) {
		b.released.Wait()
	}
	b.requests++
	b.bytes += bytes
}

// release gives back what one acquire took.
func (b *budget) release(bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests--
	b.bytes -= bytes
	b.released.Signal()
}
