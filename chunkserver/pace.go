package chunkserver

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// The rate at which members are brought up to date, in bytes per second. It
// grows while clients don't feel it, and shrinks when they do.
const (
	leastRate = 8 << 20
	firstRate = 64 << 20
	mostRate  = 512 << 20
)

const (
	// slower is how much longer clients' operations may take beside copying
	// than they did before.
	slower = 1.5
	// paceStep is the time between two changes of the rate.
	paceStep = 50 * time.Millisecond
	// calmAfter is the time without copying after which an operation is
	// taken for undisturbed.
	calmAfter = time.Second
	// sampled is one in how many operations is looked at while nothing is
	// copied.
	sampled = 16
)

// pace decides how fast members are brought up to date.
type pace struct {
	copying atomic.Bool   // something was copied lately
	skipped atomic.Uint32 // operations, while nothing is copied

	mu     sync.Mutex
	rate   float64
	free   time.Time // when the next bytes may go
	copied time.Time // when the last ones went
	turned time.Time // when rate changed
	calm   average   // latency of operations while nothing is copied
	beside average   // and while something is
}

func newPace() *pace { return &pace{rate: firstRate} }

// wait returns when n more bytes may go, or when ctx ends.
func (p *pace) wait(ctx context.Context, n int) error {
	p.mu.Lock()
	now := time.Now()
	p.copied = now
	p.copying.Store(true)
	start := p.free
	if start.Before(now) {
		start = now
	}
	p.free = start.Add(time.Duration(float64(n) / p.rate * float64(time.Second)))
	p.mu.Unlock()
	if start == now {
		return ctx.Err()
	}
	timer := time.NewTimer(start.Sub(now))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// observe takes in how long an operation of a client took.
func (p *pace) observe(took time.Duration) {
	if !p.copying.Load() && p.skipped.Add(1)%sampled != 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Sub(p.copied) > calmAfter {
		p.copying.Store(false)
		p.beside = 0
		p.calm.add(took)
		return
	}
	p.beside.add(took)
	if p.calm == 0 || now.Sub(p.turned) < paceStep {
		return
	}
	p.turned = now
	if p.beside > slower*p.calm {
		p.rate = max(leastRate, p.rate*0.7)
	} else {
		p.rate = min(mostRate, p.rate*1.2)
	}
}

// average is a moving average of seconds. The zero value has seen nothing.
type average float64

// add weighs a new value by a sixteenth.
func (a *average) add(d time.Duration) {
	s := average(d.Seconds())
	if *a == 0 {
		*a = s
	}
	*a += (s - *a) / 16
}
