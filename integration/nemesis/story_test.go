package nemesis

import (
	"testing"
	"time"
)

// A story is a fleet that is written to, by a writer and by fio.
type story struct {
	*fleet
	writer *writer
	fio    *verifier
}

// The volumes of a story.
const (
	stampsVolume = "/stamps"
	fioVolume    = "/fio"
)

func begin(t *testing.T, l layout, depth int) *story {
	t.Helper()
	s := &story{fleet: startFleet(t, l)}
	s.createVolume(stampsVolume)
	s.createVolume(fioVolume)
	s.writer = startWriter(t, s.open(s.gateways[0], stampsVolume), newLedger(), depth)
	t.Cleanup(s.writer.stop) // when the disk is closed at the latest
	t.Cleanup(s.writer.disk.close)
	s.open(s.gateways[0], fioVolume).close() // so that fio need not wait
	s.fio = startFio(t, s.gateways[0], fioVolume)
	s.writer.goOn()
	return s
}

// survives has something fail, and checks that writing goes on at once, and
// still when it has healed and all copies are in sync again.
func (s *story) survives(what string, limit time.Duration, fail, heal func()) {
	s.t.Helper()
	s.writer.reset()
	fail()
	s.writer.goOn()
	heal()
	s.writer.goOn()
	s.whole(2 * patient)
	if s.t.Failed() {
		s.t.Fatalf("%s: not survived", what)
	}
	stall := s.writer.longest()
	s.t.Logf("%s: the longest stall was %v of %v", what, stall.Round(time.Millisecond), limit)
	if stall > widened(limit) {
		s.t.Errorf("%s: I/O stalled for %v", what, stall)
	}
}

// widened is the limit for a machine that may do something else, too; a run
// with -long has the machine to itself.
func widened(limit time.Duration) time.Duration {
	if *long {
		return limit
	}
	return 5 * limit
}

// end checks everything that was written.
func (s *story) end() {
	s.t.Helper()
	s.fio.stop()
	s.writer.stop()
	if s.t.Failed() {
		return
	}
	s.writer.checkAll()
	s.allRun()
	s.verify()
	s.t.Logf("%d operations, %d rounds of fio", s.writer.ops.Load(), s.fio.rounds.Load())
}
