package nemesis

import (
	"syscall"
	"testing"
	"time"
)

// How long I/O may stall.
const (
	killLimit    = time.Second     // the machine refuses connections
	silenceLimit = 5 * time.Second // nothing is heard
	leaderLimit  = time.Second     // no I/O goes through the leader
)

func TestNothingFails(t *testing.T) {
	needLong(t)
	s := begin(t, layout{chunkservers: 3, gateways: 1}, 8)
	s.end()
}

// Whoever is back soon is waited for, if need be, and nothing is lost.
func TestRestartAtOnce(t *testing.T) {
	needLong(t)
	s := begin(t, layout{chunkservers: 3, gateways: 1, small: true}, 8)
	c := s.chunkservers[1]
	s.survives("a chunkserver is killed and restarted", silenceLimit, func() { c.kill(); c.start() }, func() {})
	leader := s.leader()
	s.survives("the metadata leader is killed", leaderLimit, leader.kill, leader.start)
	s.end()
}

func TestSomethingFails(t *testing.T) {
	s := begin(t, layout{chunkservers: 3, gateways: 1}, 8)
	killed, stopped := s.chunkservers[0], s.chunkservers[1]
	s.survives("a chunkserver is killed", killLimit, killed.kill, killed.start)
	s.survives("a chunkserver stands still", silenceLimit,
		func() { stopped.signal(syscall.SIGSTOP) }, func() { stopped.signal(syscall.SIGCONT) })
	leader := s.leader()
	s.survives("the metadata leader is killed", leaderLimit, leader.kill, leader.start)
	s.end()
}
