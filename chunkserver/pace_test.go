package chunkserver

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestCopyingGivesWayToClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPace()
		for range 100 * sampled {
			p.observe(time.Millisecond)
		}
		// copy tells how many bytes go in a second in which operations take took.
		copied := func(took time.Duration) (n int) {
			for began := time.Now(); time.Since(began) < 10*time.Second; n += 1 << 20 {
				if err := p.wait(context.Background(), 1<<20); err != nil {
					t.Fatal(err)
				}
				p.observe(took)
			}
			return n / 10
		}
		copied(time.Millisecond)
		if n := copied(time.Millisecond); n < mostRate*9/10 || n > mostRate*11/10 {
			t.Errorf("%d bytes per second while nobody feels it, want about %d", n, mostRate)
		}
		copied(2 * time.Millisecond)
		if n := copied(2 * time.Millisecond); n < leastRate*9/10 || n > leastRate*12/10 {
			t.Errorf("%d bytes per second while clients wait twice as long, want about %d", n, leastRate)
		}
		copied(time.Millisecond)
		if n := copied(time.Millisecond); n < mostRate*9/10 {
			t.Errorf("%d bytes per second when it has become calm again, want about %d", n, mostRate)
		}
	})
}

func TestWaitingForTurnEndsWithContext(t *testing.T) {
	p := newPace()
	ctx, cancel := context.WithCancel(context.Background())
	if err := p.wait(ctx, firstRate*3600); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := p.wait(ctx, 1); err == nil {
		t.Error("no error")
	}
}
