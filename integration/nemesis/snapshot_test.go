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
	w.goOn(patient)
	var pauses []time.Duration
	for n := range snapshots {
		name := fmt.Sprint("s", n)
		w.reset()
		normal := w.ops.Load() + writerSectors/4
		asked := w.ledger.moment()
		f.snapshot(stampsVolume, name)
		there := w.ledger.moment()
		await(t, patient, "writing to go on", func() bool { return t.Failed() || w.ops.Load() >= normal })
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
	t.Logf("longest write beside a snapshot: median %v, p99 %v, max %v",
		percentile(pauses, 50), percentile(pauses, 99), percentile(pauses, 100))
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
