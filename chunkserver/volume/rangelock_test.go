package volume

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// No two claims that overlap are ever held at once, every claim is granted in
// the end, and claims that overlap are granted in the order in which they came.
func TestRangeLockKeepsOverlappingClaimsApart(t *testing.T) {
	t.Parallel()
	const blocks, workers, rounds = 40, 16, 300
	l := newRangeLock()
	var owners [blocks]struct {
		sync.Mutex
		by int
	}
	var wg sync.WaitGroup
	for w := 1; w <= workers; w++ {
		rng := rand.New(rand.NewPCG(1, uint64(w)))
		wg.Go(func() {
			for range rounds {
				first := rng.Uint64N(blocks)
				last := min(first+rng.Uint64N(6), blocks-1)
				ctx, cancel := context.WithCancel(t.Context())
				if rng.IntN(4) == 0 {
					go cancel()
				}
				c, err := l.lock(ctx, first, last)
				cancel()
				if err != nil {
					continue
				}
				for b := first; b <= last; b++ {
					o := &owners[b]
					o.Lock()
					if o.by != 0 {
						t.Errorf("block %d is held by %d and %d", b, o.by, w)
					}
					o.by = w
					o.Unlock()
				}
				for b := first; b <= last; b++ {
					o := &owners[b]
					o.Lock()
					o.by = 0
					o.Unlock()
				}
				l.unlock(c)
			}
		})
	}
	wg.Wait()
	if len(l.claims) != 0 || len(l.slots) != 0 {
		t.Errorf("%d claims and %d slots are left", len(l.claims), len(l.slots))
	}
}

// A claim that is given up while it waits makes room for those behind it, and
// a stream of small claims does not starve a large one.
func TestRangeLockIsFair(t *testing.T) {
	t.Parallel()
	l := newRangeLock()
	held, err := l.lock(t.Context(), 5, 5)
	if err != nil {
		t.Fatal(err)
	}
	claims := func(n int) {
		for {
			l.mu.Lock()
			got := len(l.claims)
			l.mu.Unlock()
			if got == n {
				return
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	order := make(chan string, 3)
	var wg sync.WaitGroup
	claim := func(ctx context.Context, name string, first, last uint64) {
		wg.Go(func() {
			c, err := l.lock(ctx, first, last)
			if err != nil {
				order <- name + " gave up"
				return
			}
			order <- name
			l.unlock(c)
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	claim(ctx, "impatient", 0, 10)
	claims(2)
	claim(t.Context(), "large", 3, 20)
	claims(3)
	claim(t.Context(), "small", 20, 20) // overlaps only what waits
	claims(4)
	select {
	case name := <-order:
		t.Fatalf("%s went ahead", name)
	default:
	}
	cancel()
	if got := <-order; got != "impatient gave up" {
		t.Fatal(got)
	}
	select {
	case name := <-order:
		t.Fatalf("%s went ahead", name)
	default:
	}
	l.unlock(held)
	if first, second := <-order, <-order; first != "large" || second != "small" {
		t.Errorf("granted %s, then %s", first, second)
	}
	wg.Wait()
}

func TestRangeLockIsBounded(t *testing.T) {
	t.Parallel()
	l := newRangeLock()
	var claims []*claim
	for i := range uint64(maxClaims) {
		c, err := l.lock(t.Context(), i, i)
		if err != nil {
			t.Fatal(err)
		}
		claims = append(claims, c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.lock(ctx, maxClaims, maxClaims); err == nil {
		t.Error("one more than maxClaims was granted")
	}
	l.unlock(claims[7])
	if _, err := l.lock(t.Context(), maxClaims, maxClaims); err != nil {
		t.Error(err)
	}
}
