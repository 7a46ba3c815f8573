package replica

import (
	"errors"
	"flag"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

var (
	firstSeed = flag.Uint64("seed", 1, "first seed of the simulator")
	seeds     = flag.Uint64("seeds", 5000, "number of schedules to simulate")
)

// TestSim runs the protocol through random schedules of delivery, delay,
// repetition and loss of messages, of slow disks, of crashes, restarts and
// pauses, of competing metadata leaders, of clients that retry, and of
// writers that don't know that they are replaced. Afterwards the faults stop,
// and everything has to come to its end. The checks are in world_test.go.
func TestSim(t *testing.T) {
	committed, epochs := 0, 0
	for seed := *firstSeed; seed < *firstSeed+*seeds; seed++ {
		w, err := simulate(seed, nil)
		committed += len(w.committed)
		epochs += len(w.configs)
		if err != nil {
			var story strings.Builder
			if *seeds == 1 {
				simulate(seed, &story)
			}
			t.Fatalf("%sseed %d: %v\nits story: go test ./chunkserver/replica -run TestSim -seed %d -seeds 1", &story, seed, err, seed)
		}
	}
	t.Logf("%d schedules with %d epochs and %d operations", *seeds, epochs, committed)
	if *seeds >= 100 && (committed < 20*int(*seeds) || epochs < 3*int(*seeds)) {
		t.Errorf("that is too little to mean something")
	}
}

// A sim is one schedule.
type sim struct {
	*world
	rng     *rand.Rand
	rates   rates
	paused  map[chunk.NodeID]bool
	changes []*change
}

// rates are the chances of faults, per mille of the actions. They differ from
// schedule to schedule, so that each has weather of its own.
type rates struct {
	crash, reconnect, pause, reconfigure, attach, retry int
}

const (
	simSteps   = 2000 // with faults
	calmSteps  = 100000
	maxWriters = 3
)

// someNodes are the sizes of copysets to try.
var someNodes = []int{1, 2, 3, 3, 3, 3, 3, 3}

// simulate runs the schedule of a seed, and tells its story if there is where.
func simulate(seed uint64, story *strings.Builder) (w *world, err error) {
	rng := rand.New(rand.NewPCG(seed, 0))
	s := &sim{world: newWorld(someNodes[rng.IntN(len(someNodes))], story), rng: rng, paused: make(map[chunk.NodeID]bool)}
	if rng.IntN(4) > 0 {
		s.rates = rates{rng.IntN(5), rng.IntN(20), rng.IntN(10), rng.IntN(10), rng.IntN(3), rng.IntN(10)}
	}
	defer func() {
		if v := recover(); v != nil {
			found, ok := v.(violation)
			if !ok {
				panic(v)
			}
			w, err = s.world, found
		}
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
	switch k := s.rng.IntN(32); {
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
	delete(s.paused, n.id)
	s.disconnect(n)
}

func (s *sim) restartOrResume(n *node) {
	if n.core == nil {
		s.start(n)
		s.logf("node %d starts as %d", n.id, n.run)
	}
	delete(s.paused, n.id)
}

func (s *sim) pauseOne() { s.paused[s.nodes[s.rng.IntN(len(s.nodes))].id] = true }

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
	if !ok || !s.alive(to) {
		return
	}
	l := s.link(from.id, to.id)
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
	if !s.alive(n) || len(n.pending) == 0 && n.core.durable == n.last() {
		return
	}
	s.sync(n, s.rng.IntN(len(n.pending)+1))
	s.logf("node %d is durable up to %d", n.id, len(n.disk.entries))
}

// A change is a metadata leader's attempt at a new configuration. Another
// leader may be at it too.
type change struct {
	base    chunk.Copyset // the configuration that it is to replace
	answers map[chunk.NodeID]answer
}

type answer struct {
	run       chunk.Incarnation
	lastEpoch chunk.Epoch
	last      chunk.LSN
}

func (s *sim) beginChange() {
	if len(s.changes) < 2 {
		s.changes = append(s.changes, &change{base: s.config, answers: make(map[chunk.NodeID]answer)})
	}
}

// lead does one thing that the metadata leader does.
func (s *sim) lead() {
	if s.rng.IntN(3) == 0 {
		if n := s.nodes[s.rng.IntN(len(s.nodes))]; s.alive(n) {
			s.configure(n, s.config)
		}
		return
	}
	if len(s.changes) == 0 {
		if s.mustChange() {
			s.beginChange()
		}
		return
	}
	i := s.rng.IntN(len(s.changes))
	if s.sealAndCommit(s.changes[i]) {
		s.changes = slices.Delete(s.changes, i, i+1)
	}
}

// mustChange reports whether a member is another process by now.
func (s *sim) mustChange() bool {
	for _, m := range s.config.Members {
		if n := s.node(m.Node); m.State == chunk.InSync && n.core != nil && n.run != m.Incarnation {
			return true
		}
	}
	return s.config.Epoch == 0
}

// sealAndCommit goes one step on with a change, and reports when it is over.
func (s *sim) sealAndCommit(ch *change) bool {
	if ch.base.Epoch != s.config.Epoch {
		// Another leader was faster, which this one hears late.
		if n := s.nodes[s.rng.IntN(len(s.nodes))]; s.alive(n) && s.rng.IntN(2) == 0 {
			s.seal(ch, n)
		}
		return true
	}
	for _, m := range ch.base.Members {
		n := s.node(m.Node)
		a, answered := ch.answers[m.Node]
		if m.State == chunk.InSync && (!answered || a.run != n.run) {
			if s.alive(n) {
				s.seal(ch, n)
				return false
			}
			if !s.mayDrop(ch) {
				return false
			}
		}
	}
	s.commit(ch)
	return true
}

// mayDrop reports whether the change goes on without a member that doesn't
// answer: when two others are there, but not often.
func (s *sim) mayDrop(ch *change) bool {
	return !s.quiet && len(ch.answers) >= 2 && s.rng.IntN(4) == 0
}

func (s *sim) seal(ch *change, n *node) {
	epoch, promised := ch.base.Epoch+1, n.disk.promised
	s.step(n, Seal{Ticket: sealTicket, Epoch: epoch})
	r := s.sealed
	if r.Err != nil {
		if !errors.Is(r.Err, chunk.ErrStaleEpoch) {
			s.fail("seal: %v", r.Err)
		}
		return
	}
	if epoch < promised {
		s.fail("node %d is sealed for %d, having promised %d", n.id, epoch, promised)
	}
	if n.last() != 0 && (r.Last != n.last() || r.LastEpoch != n.entry(r.Last).Epoch) {
		s.fail("node %d says that it ends at %d.%d", n.id, r.LastEpoch, r.Last)
	}
	s.logf("node %d sealed for %d: %d.%d", n.id, epoch, r.LastEpoch, r.Last)
	ch.answers[n.id] = answer{n.run, r.LastEpoch, r.Last}
}

func (s *sim) commit(ch *change) {
	next := chunk.Copyset{ID: ch.base.ID, Epoch: ch.base.Epoch + 1}
	var best answer
	for _, m := range ch.base.Members {
		a, ok := ch.answers[m.Node]
		if m.State == chunk.InSync && ok {
			m.Incarnation = a.run
			if next.Primary == 0 || a.lastEpoch > best.lastEpoch || a.lastEpoch == best.lastEpoch && a.last > best.last ||
				a == best && s.rng.IntN(2) == 0 {
				next.Primary, best = m.Node, a
			}
		} else {
			m.State = chunk.Out
		}
		next.Members = append(next.Members, m)
	}
	s.logf("configuration %+v", next)
	s.reconfigured(next)
}

func (s *sim) configure(n *node, config chunk.Copyset) { s.step(n, Configure{config}) }

// attach replaces the writer of a volume, which is not told.
func (s *sim) attach(volume chunk.VolumeID) {
	attachment := uint64(1)
	for _, c := range s.clients {
		if c.volume == volume {
			attachment = max(attachment, c.token.Attachment+1)
		}
	}
	if attachment > maxWriters {
		return
	}
	s.logf("attachment %d of volume %d", attachment, volume)
	c := &client{volume: volume, token: chunk.Token{Attachment: attachment, Seq: 1}}
	r := &request{client: c, id: s.newID()}
	r.op = chunk.Op{Kind: chunk.OpFence, Ref: chunk.Ref{Volume: volume}, Token: c.token, Data: r.data()}
	c.requests = append(c.requests, r)
	s.clients = append(s.clients, c)
}

// issue has a client begin with an operation or a read of a range that no
// write of its own is under way for.
func (s *sim) issue(c *client) {
	if s.quiet || c.fenced || !c.attached || len(c.requests) >= 4 {
		return
	}
	if len(c.requests) == 0 && s.rng.IntN(8) == 0 {
		c.token.Seq++ // a snapshot
	}
	first, n := s.rng.IntN(simBlocks), 1+s.rng.IntN(2)
	r := &request{client: c, id: s.newID(), isRead: s.rng.IntN(3) == 0}
	r.op = chunk.Op{
		Kind:  chunk.OpWrite,
		Ref:   chunk.Ref{Volume: c.volume, Index: uint32(s.rng.IntN(2))},
		Token: c.token,
		Off:   uint32(first * chunk.BlockSize),
		Len:   uint32(n * chunk.BlockSize),
	}
	switch s.rng.IntN(16) {
	case 0:
		r.op.Kind = chunk.OpZero
	case 1:
		r.op = chunk.Op{Kind: chunk.OpPurge, Ref: r.op.Ref}
	}
	r.op.Data = r.data()
	if r.isRead {
		r.op.Off, r.op.Len = uint32(first*chunk.BlockSize), chunk.BlockSize
		r.floor = s.floor(&r.op)
	}
	for _, other := range c.requests {
		if other.op.Ref == r.op.Ref && !r.isRead && !other.isRead && other.op.Off < r.op.Off+r.op.Len && r.op.Off < other.op.Off+other.op.Len {
			return
		}
	}
	c.requests = append(c.requests, r)
}

// pump hands the oldest request that a client has not sent to the node that
// it takes for the primary.
func (s *sim) pump(c *client) {
	for _, r := range c.requests {
		if r.ticket != 0 {
			continue
		}
		if c.config.Primary == 0 || !s.alive(s.node(c.config.Primary)) {
			s.reset(c)
			return
		}
		n := s.node(c.config.Primary)
		s.tickets++
		r.ticket = s.tickets
		s.waiting[r.ticket] = &wait{request: r, epoch: c.config.Epoch, node: n, run: n.run}
		if r.isRead {
			s.beginRead(n, r)
			return
		}
		s.logf("client %d.%d submits %d: %v", c.volume, c.token.Attachment, r.id, shownOp(r.op))
		s.ask(n, r.ticket, Submit{Ticket: r.ticket, Epoch: c.config.Epoch, Op: r.op})
		return
	}
}

// beginRead reads from the node's disk; finishRead asks whether that may be
// answered.
func (s *sim) beginRead(n *node, r *request) {
	w := s.waiting[r.ticket]
	if n.core.Serving() != w.epoch {
		s.again(r)
		return
	}
	w.value = n.read(&r.op)
	s.reads = append(s.reads, r.ticket)
}

func (s *sim) finishRead() {
	if len(s.reads) == 0 {
		return
	}
	i := s.rng.IntN(len(s.reads))
	t := s.reads[i]
	w := s.waiting[t]
	if w != nil && s.paused[w.node.id] {
		return
	}
	s.reads = slices.Delete(s.reads, i, i+1)
	if w == nil || w.node.core == nil || w.node.run != w.run {
		return
	}
	op := &w.request.op
	s.ask(w.node, t, Read{Ticket: t, Epoch: w.epoch, Ref: op.Ref, Off: op.Off, Len: op.Len})
}
