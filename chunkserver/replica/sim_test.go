package replica

import (
	"flag"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

var (
	firstSeed = flag.Uint64("seed", 1, "first seed of the simulator")
	seeds     = flag.Uint64("seeds", 3000, "number of schedules to simulate")
)

// TestSim runs the protocol through random schedules of delivery, delay,
// repetition and loss of messages, of slow disks and ones that lose their
// memory, of crashes, restarts and pauses, of members that go, come back with
// whatever disk, are replaced, and bring themselves up to date, of competing
// metadata leaders, of clients that retry, and of writers that don't know that
// they are replaced. Afterwards the faults stop, and everything has to come to
// its end, with all members in sync. The checks are in world_test.go.
func TestSim(t *testing.T) {
	r := simulateAll(*firstSeed, *seeds)
	if r.err != nil {
		var story strings.Builder
		if *seeds == 1 {
			simulate(r.seed, &story)
		}
		t.Fatalf("%sseed %d: %v\nits story: go test ./chunkserver/replica -run TestSim -seed %d -seeds 1", &story, r.seed, r.err, r.seed)
	}
	t.Logf("%d schedules: %+v", *seeds, r.tally)
	if n := int(*seeds); n >= 1000 && (r.committed < 15*n || r.epochs < 3*n || r.suspects == 0 || r.joins < n/2 || r.copies < n/2 || r.waited < n/20 || r.replaced < n/20) {
		t.Errorf("that is too little to mean something")
	}
}

// results are what n schedules have come to, or the first that failed.
type results struct {
	tally
	seed uint64
	err  error
}

// simulateAll runs the schedules of n seeds, on all cores. It begins with them
// in order, and with none behind one that has failed: so that the first failure
// is always the same.
func simulateAll(first, n uint64) (r results) {
	var mu sync.Mutex // guards r and next
	next := first
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			mu.Lock()
			defer mu.Unlock()
			for next < first+n && r.err == nil {
				seed := next
				next++
				mu.Unlock()
				w, err := simulate(seed, nil)
				mu.Lock()
				r.add(&w.tally)
				if err != nil && (r.err == nil || seed < r.seed) {
					r.seed, r.err = seed, err
				}
			}
		})
	}
	workers.Wait()
	return r
}

// A sim is one schedule.
type sim struct {
	*world
	rng     *rand.Rand
	rates   rates
	paused  map[chunk.NodeID]bool
	slow    chunk.NodeID // gets and stores little; 0 if none
	cut     *link        // carries nothing for a while; nil if none
	changes []*change
	reports [2]report // that leaders have heard
}

// rates are the chances of faults, per mille of the actions. They differ from
// schedule to schedule, so that each has weather of its own.
type rates struct {
	crash, reconnect, pause, reconfigure, attach, retry int
}

const (
	simSteps   = 3000 // with faults
	calmSteps  = 100000
	maxWriters = 3
)

// someNodes are the sizes of copysets to try.
var someNodes = []int{1, 2, 3, 3, 3, 3, 3, 3}

// simulate runs the schedule of a seed, and tells its story if there is where.
func simulate(seed uint64, story *strings.Builder) (w *world, err error) {
	rng := rand.New(rand.NewPCG(seed, 0))
	members := someNodes[rng.IntN(len(someNodes))]
	nodes := members
	if members == 3 && rng.IntN(2) == 0 {
		nodes++ // a spare
	}
	s := &sim{world: newWorld(nodes, members, story), rng: rng, paused: make(map[chunk.NodeID]bool)}
	if rng.IntN(4) > 0 {
		s.rates = rates{rng.IntN(5), rng.IntN(20), rng.IntN(10), rng.IntN(10), rng.IntN(3), rng.IntN(10)}
		if rng.IntN(3) == 0 {
			s.slow = s.nodes[rng.IntN(len(s.nodes))].id
		}
	}
	defer func() {
		if v := recover(); v != nil {
			found, ok := v.(violation)
			if !ok {
				panic(v)
			}
			w, err = s.world, found
		}
		s.tally.committed, s.tally.epochs = len(s.committed), len(s.configs)
	}()
	for _, n := range s.nodes {
		s.start(n)
	}
	for volume := range chunk.VolumeID(2) {
		s.attach(volume + 1)
	}
	for range simSteps {
		s.act()
	}
	s.calm()
	return s.world, nil
}

// act does one thing at random.
func (s *sim) act() {
	fault := s.rng.IntN(1000)
	for _, f := range []struct {
		rate int
		do   func()
	}{
		{s.rates.crash, s.crashOne},
		{s.rates.reconnect, s.reconnectOne},
		{s.rates.pause, s.pauseOne},
		{s.rates.reconfigure, s.beginChange},
		{s.rates.attach, func() { s.attach(chunk.VolumeID(1 + s.rng.IntN(2))) }},
		{s.rates.retry, func() { s.reset(s.someClient()) }},
	} {
		if fault < f.rate {
			f.do()
			return
		}
		fault -= f.rate
	}
	s.work()
}

// work does one thing that is no fault.
func (s *sim) work() {
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	switch k := s.rng.IntN(48); {
	case k >= 40:
		s.pull(n)
		s.drop(n)
	case k >= 32:
		s.supplyOne()
	case k < 2:
		s.restartOrResume(n)
	case k < 16:
		s.deliverOne()
	case k < 20:
		s.syncSome(n)
	case k < 21:
		if s.alive(n) {
			s.step(n, Tick{})
		}
	case k < 24:
		s.lead()
	case k < 27:
		s.issue(s.someClient())
	case k < 30:
		s.pump(s.someClient())
	default:
		s.finishRead()
	}
}

// calm ends the faults, and waits until every client has got everything.
func (s *sim) calm() {
	s.quiet = true
	clear(s.paused)
	s.cut = nil
	for i := range calmSteps {
		if i%8 == 0 {
			if n := s.nodes[s.rng.IntN(len(s.nodes))]; n.core == nil {
				s.start(n)
			}
			s.lead()
		}
		if i%4096 == 0 {
			for _, c := range s.clients {
				s.reset(c)
			}
		}
		s.work()
		if s.settled() {
			s.checkEnd()
			return
		}
	}
	s.fail("not settled after %d calm steps", calmSteps)
}

func (s *sim) alive(n *node) bool { return n.core != nil && !s.paused[n.id] }

func (s *sim) someClient() *client { return s.clients[s.rng.IntN(len(s.clients))] }

func (s *sim) crashOne() {
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	if n.core == nil {
		return
	}
	survives := s.rng.IntN(len(n.pending) + 1)
	s.logf("node %d crashes, %d of %d pending survive", n.id, survives, len(n.pending))
	s.crash(n, survives)
	if s.rng.IntN(4) == 0 {
		n.shelf = n.disk.clone()
	}
	delete(s.paused, n.id)
	s.disconnect(n)
	if s.mayForget(n) {
		n.disk.forget(s.rng.IntN(len(n.disk.entries) + 1))
		s.forgetful = n.id
		s.logf("node %d has forgotten what follows %d", n.id, len(n.disk.entries))
	}
}

// mayForget reports whether a disk becomes what it once was: that of one node
// in one of four schedules, while there are two others to tell.
func (s *sim) mayForget(n *node) bool {
	if s.forgetful != 0 || n.disk.joined > 0 || len(s.nodes) < 3 || s.rng.IntN(4) > 0 {
		return false
	}
	for _, m := range s.config.Members {
		if m.State != chunk.InSync {
			return false
		}
	}
	return s.config.Epoch > 0
}

func (s *sim) restartOrResume(n *node) {
	if n.core == nil {
		s.start(n)
		s.logf("node %d starts as %d", n.id, n.run)
	}
	delete(s.paused, n.id)
}

// lags reports whether a slow node does not do now what it should.
func (s *sim) lags(n *node) bool { return n.id == s.slow && !s.quiet && s.rng.IntN(8) > 0 }

// pauseOne pauses a node or a connection; or the one that was paused goes on.
func (s *sim) pauseOne() {
	if s.rng.IntN(2) == 0 {
		s.paused[s.nodes[s.rng.IntN(len(s.nodes))].id] = true
	} else if s.cut != nil {
		s.cut = nil
	} else if from, to, ok := s.someLink(); ok {
		s.cut = s.link(from.id, to.id)
	}
}

// someLink returns the ends of a link between two nodes, or false.
func (s *sim) someLink() (from, to *node, ok bool) {
	if len(s.nodes) == 1 {
		return nil, nil, false
	}
	i, j := s.rng.IntN(len(s.nodes)), s.rng.IntN(len(s.nodes)-1)
	if j >= i {
		j++
	}
	return s.nodes[i], s.nodes[j], true
}

// reconnectOne replaces a connection: some of what was on it is lost, some is
// received late, some of what was received before is received again.
func (s *sim) reconnectOne() {
	from, to, ok := s.someLink()
	if !ok || !s.alive(from) || to.core == nil {
		return
	}
	s.logf("%d connects to %d", from.id, to.id)
	l := s.link(from.id, to.id)
	l.queue = slices.DeleteFunc(l.queue, func(Message) bool { return s.rng.IntN(2) == 0 })
	s.connect(from.id, to.id)
}

func (s *sim) deliverOne() {
	from, to, ok := s.someLink()
	if !ok || !s.alive(to) || s.lags(to) {
		return
	}
	l := s.link(from.id, to.id)
	if l == s.cut {
		return
	}
	if n := len(l.late); n > 0 && s.rng.IntN(4) == 0 {
		i := s.rng.IntN(n)
		m := l.late[i]
		l.late = slices.Delete(l.late, i, i+1)
		s.logf("%d -> %d, late: %v", from.id, to.id, shownMessage(m))
		s.step(to, Receive{from.id, m})
		return
	}
	if len(l.queue) == 0 {
		return
	}
	if s.rng.IntN(8) == 0 && len(l.late) < 8 && !s.quiet {
		l.late = append(l.late, l.queue[0])
	}
	s.logf("%d -> %d: %v", from.id, to.id, shownMessage(l.queue[0]))
	s.deliver(from.id, to.id)
}

func (s *sim) syncSome(n *node) {
	if !s.alive(n) || s.lags(n) || len(n.pending) == 0 && n.core.durable == n.last() {
		return
	}
	s.sync(n, s.rng.IntN(len(n.pending)+1))
	s.logf("node %d is durable up to %d", n.id, len(n.disk.entries))
}
