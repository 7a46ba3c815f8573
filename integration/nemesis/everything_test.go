package nemesis

import (
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Each chunkserver in turn is killed, stopped, cut off, cut off from one other
// and out of disk, and leaders are killed, while a snapshot is taken each
// second.
func TestEverythingFails(t *testing.T) {
	needLong(t)
	s := begin(t, layout{chunkservers: 3, gateways: 1, small: true}, 8)
	endSnapshots := s.snapshotEachSecond()
	for i, c := range s.chunkservers {
		other := s.chunkservers[(i+1)%len(s.chunkservers)]
		disk := filepath.Dir(c.dir)
		for _, fault := range []struct {
			what       string
			limit      time.Duration
			fail, heal func()
		}{
			{"killed", killLimit, c.kill, c.start},
			{"stopped", silenceLimit, func() { c.signal(syscall.SIGSTOP) }, func() { c.signal(syscall.SIGCONT) }},
			{"cut off", silenceLimit, func() { must(t, c.cut()) }, func() { must(t, c.heal()) }},
			{"cut off from " + other.name, silenceLimit, func() { must(t, c.cutFrom(other.host)) }, func() { must(t, c.heal()) }},
			{"out of disk", silenceLimit, func() { must(t, fillDisk(disk)) }, func() {
				must(t, emptyDisk(disk))
				if !c.runs() { // it may give up, as long as I/O does not
					c.start()
				}
			}},
		} {
			s.survives(c.name+" is "+fault.what, fault.limit, fault.fail, fault.heal)
		}
		leader := s.leader()
		s.survives("the metadata leader is killed", leaderLimit, leader.kill, leader.start)
	}
	endSnapshots()
	s.end()
}

// snapshotEachSecond takes snapshots, and keeps the last few, until the
// function that it returns is called.
func (s *story) snapshotEachSecond() (end func()) {
	const kept = 3
	stop := make(chan struct{})
	var taking sync.WaitGroup
	taking.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-s.t.Context().Done():
				return
			case <-tick.C:
			}
			s.snapshot(stampsVolume, fmt.Sprint("s", n))
			if n >= kept {
				s.removeSnapshot(stampsVolume, fmt.Sprint("s", n-kept))
			}
		}
	})
	end = sync.OnceFunc(func() { close(stop); taking.Wait() })
	s.t.Cleanup(end)
	return end
}

// Every process is restarted in turn, as for an upgrade, and no client sees
// more than a pause. The gateway, which clients are connected to, stays.
func TestRollingRestart(t *testing.T) {
	needLong(t)
	s := begin(t, layout{chunkservers: 3, gateways: 1}, 8)
	for _, p := range append(append([]*process(nil), s.servers...), s.chunkservers...) {
		s.survives(p.name+" is restarted", silenceLimit, p.restart, func() {})
	}
	s.end()
	// The gateway has nobody to serve now, and takes the volume up again.
	s.gateways[0].restart()
	s.writer.disk = s.open(s.gateways[0], stampsVolume)
	s.writer.checkAll()
}
