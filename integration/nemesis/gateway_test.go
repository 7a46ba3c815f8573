package nemesis

import (
	"maps"
	"syscall"
	"testing"
)

// A gateway dies, or stands still, in the middle of writes, and what it has
// sent is under way. Another one attaches the volume: everything that was
// answered is there, and nothing that arrives late changes anything.
func TestLateWritesOfAGatewayAreRefused(t *testing.T) {
	needLong(t)
	t.Run("killed", func(t *testing.T) { lateWrites(t, (*process).kill, func(*process) {}) })
	t.Run("standing still", func(t *testing.T) {
		lateWrites(t,
			func(g *process) { g.signal(syscall.SIGSTOP) },
			func(g *process) { g.signal(syscall.SIGCONT) })
	})
}

func lateWrites(t *testing.T, fail, heal func(*process)) {
	f := startFleet(t, layout{chunkservers: 3, gateways: 2})
	old, next := f.gateways[0], f.gateways[1]
	var proxies []*proxy
	for _, c := range f.chunkservers {
		proxies = append(proxies, startProxy(t, old, c))
	}
	f.createVolume(stampsVolume)
	l := newLedger()
	first := startWriter(t, f.open(old, stampsVolume), l, 16)
	first.goOn()
	first.mayFail.Store(true)
	for _, p := range proxies {
		p.hold()
	}
	await(t, patient, "writes to be held back", func() bool {
		held := 0
		for _, p := range proxies {
			held += p.heldBack()
		}
		return held >= 8*sectorSize // of the 16 that are under way
	})
	fail(old)
	// Its client goes away, too, and will not say what it knows not to be written.
	first.stopped.Store(true)
	first.disk.close()
	first.stop()

	d := f.open(next, stampsVolume) // when the old one's lease has ended
	second := &writer{t: t, disk: d, ledger: l, volume: first.volume, size: d.size}
	second.checkAll()
	second = startWriter(t, d, l, 16)
	second.goOn()
	second.stop()
	before, err := second.all(d)
	must(t, err)

	for _, p := range proxies {
		p.deliver()
	}
	heal(old)
	after, err := second.all(d)
	must(t, err)
	if !maps.Equal(before, after) {
		t.Error("late writes have changed the volume")
	}
	second.checkAll()
	f.verify()
}
