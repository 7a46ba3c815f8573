package volume

import (
	"context"
	"slices"
	"sync"
)

// maxClaims bounds the claims on a range lock, held and waiting.
const maxClaims = 1024

// rangeLock keeps changes that touch the same blocks apart. A claim waits
// for those earlier claims that overlap it and for nothing else. So the first
// to come is the first to go and none starves; and as everybody waits only
// for earlier ones, none waits in a circle. Where nothing overlaps, a claim
// costs one walk over the claims in force.
type rangeLock struct {
	slots chan struct{}

	mu     sync.Mutex
	claims []*claim // in the order of arrival
}

// claim is one holder of a range, or one that waits for it.
type claim struct {
	first, last uint64        // blocks, both included
	ahead       int           // earlier claims that overlap; guarded by rangeLock.mu
	granted     chan struct{} // closed when ahead has come down to 0; nil if it never was more
}

func newRangeLock() *rangeLock {
	return &rangeLock{slots: make(chan struct{}, maxClaims)}
}

func (c *claim) overlaps(d *claim) bool { return c.first <= d.last && d.first <= c.last }

// lock claims the blocks first to last and waits until they are free.
func (l *rangeLock) lock(ctx context.Context, first, last uint64) (*claim, error) {
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c := &claim{first: first, last: last}
	l.mu.Lock()
	for _, d := range l.claims {
		if c.overlaps(d) {
			c.ahead++
		}
	}
	l.claims = append(l.claims, c)
	if c.ahead > 0 {
		c.granted = make(chan struct{})
	}
	l.mu.Unlock()
	if c.granted == nil {
		return c, nil
	}
	select {
	case <-c.granted:
		return c, nil
	case <-ctx.Done():
		l.unlock(c)
		return nil, ctx.Err()
	}
}

// unlock gives a claim back, held or not.
func (l *rangeLock) unlock(c *claim) {
	l.mu.Lock()
	i := slices.Index(l.claims, c)
	for _, d := range l.claims[i+1:] {
		if !d.overlaps(c) {
			continue
		}
		if d.ahead--; d.ahead == 0 {
			close(d.granted)
		}
	}
	l.claims = slices.Delete(l.claims, i, i+1)
	l.mu.Unlock()
	<-l.slots
}
