package volume

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/localsnap/localsnap/chunkserver/wire"
)

// mapPause is the least time between two readings of the map.
const mapPause = 20 * time.Millisecond

// atlas holds the newest known map of copysets.
//
// Invariant: no copyset's epoch ever goes back. A primary of an earlier epoch
// may not know what later ones have acknowledged.
type atlas struct {
	ask func(context.Context) (wire.Map, error) // reads the map from the leader

	newest   atomic.Pointer[wire.Map]
	readings flight[*wire.Map]

	mu       sync.Mutex    // held to replace what follows, and newest
	replaced chan struct{} // closed when newest is replaced; nil while nobody waits for it
}

// read gets the leader's present map.
func (a *atlas) read(ctx context.Context) (*wire.Map, error) {
	next, err := a.ask(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the map of copysets: %w", err)
	}
	return a.take(next)
}

// take makes next the newest map, but for copysets of which it knows less.
func (a *atlas) take(next wire.Map) (*wire.Map, error) {
	if n := len(next.Copysets); n == 0 || n&(n-1) != 0 {
		return nil, fmt.Errorf("%w: the map has %d copysets", wire.ErrUnavailable, n)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if prev := a.newest.Load(); prev != nil {
		if len(prev.Copysets) != len(next.Copysets) {
			return nil, fmt.Errorf("the map has %d copysets and had %d", len(next.Copysets), len(prev.Copysets))
		}
		next.Copysets = slices.Clone(next.Copysets)
		for i := range next.Copysets {
			if prev.Copysets[i].Epoch > next.Copysets[i].Epoch {
				next.Copysets[i] = prev.Copysets[i]
			}
		}
	}
	a.newest.Store(&next)
	if a.replaced != nil {
		close(a.replaced)
		a.replaced = nil
	}
	return &next, nil
}

// changed returns a channel that is closed when the newest map is replaced.
func (a *atlas) changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.replaced == nil {
		a.replaced = make(chan struct{})
	}
	return a.replaced
}

// reread begins to read the map, or joins the reading under way.
func (a *atlas) reread(ctx context.Context, run *sync.WaitGroup) *attempt[*wire.Map] {
	return a.readings.begin(ctx, run, a.read)
}
