package nemesis

import (
	"fmt"
	"testing"
	"time"
)

// pauseLimit is how long a snapshot may hold writers up, but for one in a
// hundred.
const pauseLimit = 50 * time.Millisecond

// Snapshots under full write load: hardly anybody waits for them, and each is
// one point in time of the whole volume.
func TestSnapshotsHardlyPauseWriters(t *testing.T) {
	needLong(t)
	const snapshots = 100
	f := startFleet(t, layout{chunkservers: 3, gateways: 1})
	f.createVolume(stampsVolume)
	w := startWriter(t, f.open(f.gateways[0], stampsVolume), newLedger(), 32)
	t.Cleanup(w.stop)
	t.Cleanup(w.disk.close)
	w.goOn()
	var pauses, others []time.Duration // longest writes beside a snapshot, and without one
	const window = writerSectors / 4   // writes to find the longest of
	for n := range snapshots {
		name := fmt.Sprint("s", n)
		w.reset()
		w.goOnFor(window)
		others = append(others, w.longest())
		w.reset()
		asked := w.ledger.moment()
		f.snapshot(stampsVolume, name)
		there := w.ledger.moment()
		w.goOnFor(window)
		pauses = append(pauses, w.longest())

		ops := f.readSnapshot(w, name)
		if err := w.ledger.pointInTime(ops, asked, there); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f.removeSnapshot(stampsVolume, name)
	}
	w.stop()
	w.checkAll()
	f.verify()
	for what, longest := range map[string][]time.Duration{"beside a snapshot": pauses, "without one": others} {
		t.Logf("longest of %d writes %s: median %v, p99 %v, max %v",
			window, what, percentile(longest, 50), percentile(longest, 99), percentile(longest, 100))
	}
	if p := percentile(pauses, 99); p > pauseLimit {
		t.Errorf("a snapshot pauses writers for %v", p)
	}
}

// readSnapshot reads which ops a snapshot of the writer's volume holds.
func (f *fleet) readSnapshot(w *writer, name string) map[uint64]uint64 {
	f.t.Helper()
	d, err := openDisk(socket(f.gateways[0]), stampsVolume+"@"+name)
	must(f.t, err)
	defer d.close()
	ops, err := w.all(d)
	must(f.t, err)
	return ops
}
