package nemesis

import (
	"context"
	"testing"
	"time"
)

// oldData is what the volume holds before a chunkserver goes away, in bytes.
const oldData = 256 << 20

// writeOld fills the beginning of a volume, of which little is written anew.
func writeOld(t *testing.T, d *disk) {
	t.Helper()
	const step = 1 << 20
	p := make([]byte, step)
	for off := uint64(0); off < oldData; off += step {
		for i := range uint64(step / sectorSize) {
			stamp{2, off/sectorSize + i, 1}.fill(p[i*sectorSize:])
		}
		must(t, d.writeAt(p, off))
	}
}

// sentTo is how many bytes were sent to a chunkserver, by whomever.
func sentTo(t *testing.T, c *process) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	n, err := c.received(ctx)
	must(t, err)
	return n
}

// A chunkserver that was away for a minute of writes is sent what it lacks,
// not everything.
func TestReturningChunkserverIsSentWhatItMissed(t *testing.T) {
	needLong(t)
	f := startFleet(t, layout{chunkservers: 3, gateways: 1})
	const oldVolume = "/old"
	f.createVolume(oldVolume)
	f.createVolume(stampsVolume)
	writeOld(t, f.open(f.gateways[0], oldVolume))
	w := startWriter(t, f.open(f.gateways[0], stampsVolume), newLedger(), 8)
	t.Cleanup(w.stop)
	t.Cleanup(w.disk.close)
	w.goOn()
	c := f.chunkservers[0]
	c.kill()
	away := time.Now()
	await(t, 3*time.Minute, "a minute of writes", func() bool { return t.Failed() || time.Since(away) > time.Minute })
	w.stop() // so that only the resync sends
	before := sentTo(t, c)
	c.start()
	f.whole(5 * patient)
	sent := sentTo(t, c) - before
	w.checkAll()
	f.verify()
	// All that the writer writes over and over, and what it takes to compare the rest.
	const missed = writerSectors * sectorSize
	t.Logf("%d bytes were sent for %d that were missed, of %d", sent, missed, oldData+missed)
	if sent < missed/2 || sent > 4*missed+oldData/16 {
		t.Errorf("%d bytes were sent for %d that were missed", sent, missed)
	}
}

// While a chunkserver is sent what it lacks, writers wait less than twice as
// long as they do otherwise.
func TestResyncLeavesRoomForWriters(t *testing.T) {
	needLong(t)
	f := startFleet(t, layout{chunkservers: 3, gateways: 1})
	const oldVolume = "/old"
	f.createVolume(oldVolume)
	f.createVolume(stampsVolume)
	w := startWriter(t, f.open(f.gateways[0], stampsVolume), newLedger(), 4)
	t.Cleanup(w.stop)
	t.Cleanup(w.disk.close)
	w.goOn()
	w.reset()
	w.goOn()
	normal := w.median()
	c := f.chunkservers[0]
	c.kill()
	writeOld(t, f.open(f.gateways[0], oldVolume)) // all of which it lacks
	before := sentTo(t, c)
	c.start()
	await(t, patient, "the resync to begin", func() bool { return sentTo(t, c)-before > oldData/64 })
	w.reset()
	f.whole(10 * patient)
	during := w.median()
	w.stop()
	w.checkAll()
	f.verify()
	t.Logf("half of the operations took at most %v, during the resync %v", normal, during)
	if during >= 2*normal {
		t.Errorf("operations take %v during a resync, else %v", during, normal)
	}
}
