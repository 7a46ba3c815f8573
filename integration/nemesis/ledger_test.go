package nemesis

import (
	"errors"
	"fmt"
	"sync"
	"testing"
)

// A ledger knows what was written to a volume's sectors, and what was answered.
// A sector has one write under way at a time.
type ledger struct {
	mu     sync.Mutex
	now    uint64           // counts what happened
	writes []write          // that of op n at n-1
	known  map[uint64]known // what sectors hold, unless a later write has changed it
}

type write struct {
	sector             uint64
	issued, answeredAt uint64 // answeredAt is 0 if there was no answer
}

// known is that a write was the last of its sector at some moment, as it was
// answered or read then.
type known struct{ op, at uint64 }

func newLedger() *ledger { return &ledger{known: make(map[uint64]known)} }

// issue begins a write and returns its op.
func (l *ledger) issue(sector uint64) (op uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	l.writes = append(l.writes, write{sector: sector, issued: l.now})
	return uint64(len(l.writes))
}

// answered says that a write was answered with success.
func (l *ledger) answered(op uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	w := &l.writes[op-1]
	w.answeredAt = l.now
	l.known[w.sector] = known{op, l.now}
}

// moment returns one that lies between what happened and what will.
func (l *ledger) moment() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now++
	return l.now
}

// errLost: a sector has not what it must have.
var errLost = errors.New("lost, or changed by a late write")

// read checks what was found in a sector that nobody is writing: what is known
// of it, or a write since then, of which there was no answer. From then on that
// is known.
func (l *ledger) read(sector, op uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.known[sector]
	if op == last.op {
		return nil
	}
	if op > uint64(len(l.writes)) || op > 0 && l.writes[op-1].sector != sector {
		return fmt.Errorf("sector %d holds op %d, which nobody wrote there", sector, op)
	}
	if op == 0 || l.writes[op-1].issued < last.at {
		return fmt.Errorf("sector %d holds op %d instead of %d: %w", sector, op, last.op, errLost)
	}
	l.now++
	l.known[sector] = known{op, l.now}
	return nil
}

var errNoPoint = errors.New("the snapshot is no point in time")

// pointInTime checks what a snapshot holds that was asked for at one moment
// and was there at another. What was answered before is in it, what was
// issued after is not; and with each write, every one that was answered before
// that was issued. A later write to its sector stands for a write, too.
func (l *ledger) pointInTime(snapshot map[uint64]uint64, asked, there uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := asked
	for sector, op := range snapshot {
		if op == 0 {
			continue
		}
		if op > uint64(len(l.writes)) || l.writes[op-1].sector != sector {
			return fmt.Errorf("sector %d holds op %d, which nobody wrote there", sector, op)
		}
		issued := l.writes[op-1].issued
		if issued > there {
			return fmt.Errorf("%w: op %d in sector %d is later", errNoPoint, op, sector)
		}
		last = max(last, issued)
	}
	for i, w := range l.writes {
		op := uint64(i + 1)
		if w.answeredAt != 0 && w.answeredAt < last && snapshot[w.sector] < op {
			return fmt.Errorf("%w: it lacks op %d of sector %d, and has op %d and later ones", errNoPoint, op, w.sector, snapshot[w.sector])
		}
	}
	return nil
}

func TestLedger(t *testing.T) {
	l := newLedger()
	first := l.issue(7)
	l.answered(first)
	second := l.issue(7)
	l.answered(second)
	for _, tc := range []struct {
		name       string
		sector, op uint64
		ok         bool
	}{
		{"the last write", 7, second, true},
		{"an old write", 7, first, false},
		{"no write", 7, 0, false},
		{"a write to come", 7, 99, false},
		{"another sector's write", 8, first, false},
		{"a sector without writes", 8, 0, true},
	} {
		if err := l.read(tc.sector, tc.op); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	// Of a write without an answer either may be found, but then always the same.
	unanswered := l.issue(7)
	must(t, l.read(7, second))
	must(t, l.read(7, unanswered))
	if err := l.read(7, second); !errors.Is(err, errLost) {
		t.Errorf("the sector goes back: %v", err)
	}
	// A write that was given up is not to come later than the next.
	late, next := l.issue(7), l.issue(7)
	l.answered(next)
	if err := l.read(7, late); !errors.Is(err, errLost) {
		t.Errorf("a late write: %v", err)
	}
}

func TestPointInTime(t *testing.T) {
	l := newLedger()
	a := l.issue(1)
	l.answered(a)
	asked := l.moment()
	b := l.issue(2)
	l.answered(b)
	c, d := l.issue(3), l.issue(4) // at the same time
	l.answered(c)
	there := l.moment()
	l.answered(d)
	e := l.issue(1)
	l.answered(e)
	for _, tc := range []struct {
		name     string
		snapshot map[uint64]uint64
		ok       bool
	}{
		{"the earliest", map[uint64]uint64{1: a}, true},
		{"amid", map[uint64]uint64{1: a, 2: b}, true},
		{"one of two at the same time", map[uint64]uint64{1: a, 2: b, 4: d}, true},
		{"the latest", map[uint64]uint64{1: a, 2: b, 3: c, 4: d}, true},
		{"without what was answered before", map[uint64]uint64{}, false},
		{"with a hole", map[uint64]uint64{1: a, 3: c}, false},
		{"with what was issued after", map[uint64]uint64{1: e, 2: b, 3: c, 4: d}, false},
		{"with what nobody wrote", map[uint64]uint64{1: b}, false},
	} {
		if err := l.pointInTime(tc.snapshot, asked, there); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}
