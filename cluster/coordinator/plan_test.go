package coordinator

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
	"github.com/localsnap/localsnap/fsm"
)

// planned is what changes of a copyset come to: members as +3 or -3 or 3:in sync,
// and the heir.
func planned(o *outlook, changes []change) string {
	var texts []string
	for _, c := range changes {
		if c.heir != 0 {
			texts = append(texts, fmt.Sprint("heir ", c.heir))
			continue
		}
		next := c.goOn(o.nodes)
		for _, m := range c.config.Members {
			if next.Member(m.Node) == nil {
				texts = append(texts, fmt.Sprint("-", m.Node))
			}
		}
		for _, m := range next.Members {
			if before := c.config.Member(m.Node); before == nil {
				texts = append(texts, fmt.Sprintf("+%d %v", m.Node, m.State))
			} else if before.State != m.State {
				texts = append(texts, fmt.Sprintf("%d %v", m.Node, m.State))
			}
		}
	}
	return strings.Join(texts, ", ")
}

func TestPlan(t *testing.T) {
	t.Parallel()
	const away, draining = 'A', 'D'
	for _, tc := range []struct {
		name   string
		config string // see testConfig
		nodes  string // see seen; A for away and D for draining, R for present without much room
		turned bool
		want   string
	}{
		{"all is well", "iii", "pppp", false, ""},
		{"one that is out failed lately", "iio", "ppfp", false, ""},
		{"one that is out stays away", "iio", "ppAp", false, "-3, +4 syncing"},
		{"a primary that is out stays away, one may be back", "iio", "apAp", false, ""},
		{"one that is out stays away, and nobody is left", "iio", "ppA", false, ""},
		{"one that is out stays away, and the others are full", "iio", "ppAF", false, ""},
		{"one that is out stays away, and the others rest", "iio", "ppAr", false, ""},
		{"one that is out stays away, and the others are to leave", "iio", "ppAD", false, ""},
		{"one that is out is full", "iio", "ppFp", false, "-3, +4 syncing"},
		{"one of the last two stays away", "ii", "pAp", false, ""},
		{"there are but two", "ii", "ppp", false, "+3 syncing"},
		{"a secondary is to leave", "iii", "pDpp", false, "+4 syncing"},
		{"the primary is to leave", "iii", "Dppp", false, "+4 syncing"},
		{"two are to leave", "iii", "DDpp", false, "+4 syncing"},
		{"one is to leave, and nobody comes instead", "iii", "ppD", false, ""},
		{"one is to leave, the other is being brought up to date", "iiis", "pDpp", false, ""},
		{"one is to leave, the other is up to date", "iiii", "pDpp", false, "-2"},
		{"the primary is to leave, the other is up to date", "iiii", "Dppp", false, "heir 2"},
		{"the primary is to leave, and was to be turned lately", "iiii", "Dppp", true, ""},
		{"one is to leave, another that is out may be back", "iio", "pDap", false, ""},
		{"one is to leave, another failed", "iiii", "pDfp", false, "3 out"},
		{"one too many is out", "iiio", "pppf", false, "-4"},
		{"one too many", "iiii", "pppp", false, "-2"},
		{"one too many, one of them full", "iiii", "pppF", false, "4 out"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o := outlook{nodes: seen(tc.nodes), turned: map[chunk.CopysetID]bool{0: tc.turned}}
			for i, c := range tc.nodes {
				id := chunk.NodeID(i + 1)
				switch c {
				case away:
					o.nodes[id] = sighting{standing: failed, away: true}
				case draining:
					o.nodes[id] = sighting{standing: present, incarnation: 1, draining: true}
				}
			}
			changes, _ := o.plan([]chunk.Copyset{testConfig(tc.config)})
			if got := planned(&o, changes); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// sharing is a pool on chunkservers 1 to 3 and the outlook when the fourth has
// joined.
func sharing() ([]chunk.Copyset, *outlook) {
	pool := place(registered(3))
	o := &outlook{nodes: make(map[chunk.NodeID]sighting), turned: make(map[chunk.CopysetID]bool)}
	for id := range chunk.NodeID(4) {
		o.nodes[id+1] = sighting{standing: present, incarnation: chunk.Incarnation(100 * (id + 1)), roomy: true}
	}
	return pool, o
}

func TestAFewCopiesAreMovedAtATime(t *testing.T) {
	t.Parallel()
	pool, o := sharing()
	count := func() int {
		changes, _ := o.plan(pool)
		for _, c := range changes {
			if len(c.joining) != 1 || c.joining[0].Node != 4 {
				t.Fatalf("planned: %+v", c)
			}
		}
		return len(changes)
	}
	if n := count(); n != maxJoining {
		t.Errorf("%d copies are moved at a time, want %d", n, maxJoining)
	}
	pool[63].Members = append(pool[63].Members, chunk.Member{Node: 4, Incarnation: 400, State: chunk.Syncing})
	if n := count(); n != maxJoining-1 {
		t.Errorf("%d copies are moved besides one, want %d", n, maxJoining-1)
	}
	out := &pool[62].Members[1]
	out.State = chunk.Out
	o.nodes[out.Node] = sighting{standing: present, incarnation: out.Incarnation, resting: true}
	if n := count(); n != 0 {
		t.Errorf("%d copies are moved while one is missing", n)
	}
}

func TestNoMoreIsMovedThanMustBe(t *testing.T) {
	t.Parallel()
	pool, o := sharing()
	moved, turned := 0, 0
	for busy := true; busy; {
		o.reports = make(map[chunk.CopysetID]wire.Report)
		for _, config := range pool {
			o.reports[config.ID] = wire.Report{Epoch: config.Epoch, Synced: []chunk.NodeID{4}}
		}
		changes, _ := o.plan(pool)
		busy = len(changes) > 0
		for _, c := range changes {
			primary := c.config.Primary
			if c.heir != 0 {
				primary = c.heir
				turned++
			}
			moved += len(c.joining)
			pool[c.config.ID] = c.follow(primary, o.nodes)
		}
	}
	if want := copies * poolSize / 4; moved != want {
		t.Errorf("%d copies were moved, want %d", moved, want)
	}
	if turned > poolSize/2 {
		t.Errorf("%d copysets got another primary", turned)
	}
}

func TestCopiesAreNotMovedToWhereThereIsLittleRoom(t *testing.T) {
	t.Parallel()
	pool, o := sharing()
	o.nodes[4] = sighting{standing: present, incarnation: 400}
	if changes, _ := o.plan(pool); len(changes) != 0 {
		t.Errorf("planned: %+v", changes)
	}
	o.nodes[1] = sighting{standing: present, incarnation: 100, draining: true}
	if changes, _ := o.plan(pool); len(changes) != maxJoining {
		t.Errorf("planned for one that is to leave: %+v", changes)
	}
}

func TestPrimariesAreSharedByChains(t *testing.T) {
	t.Parallel()
	// 1 leads four copysets, but has none in common with 4, which leads none.
	led := func(id chunk.CopysetID, nodes ...chunk.NodeID) chunk.Copyset {
		config := chunk.Copyset{ID: id, Epoch: 1, Primary: nodes[0]}
		for _, n := range nodes {
			config.Members = append(config.Members, chunk.Member{Node: n, Incarnation: chunk.Incarnation(100 * n), State: chunk.InSync})
		}
		return config
	}
	pool := []chunk.Copyset{led(0, 1, 2, 3), led(1, 1, 2, 3), led(2, 2, 3, 4), led(3, 3, 2, 4)}
	_, o := sharing()
	for id, n := range o.nodes {
		n.roomy = false // nothing is moved
		o.nodes[id] = n
	}
	changes, _ := o.plan(pool)
	if got := planned(o, changes); got != "heir 4, heir 2" || changes[0].config.ID != 2 || changes[1].config.ID != 0 {
		t.Errorf("planned: %s", got)
	}
	pool[1].Members = append(pool[1].Members, chunk.Member{Node: 4, Incarnation: 400, State: chunk.Syncing})
	if changes, _ := o.plan(pool); len(changes) != 0 {
		t.Errorf("planned while something else goes on: %s", planned(o, changes))
	}
	pool[1].Members = pool[1].Members[:3]
	o.turned[2] = true
	if got := planned(o, o.turn(pool)); got != "heir 4, heir 3" {
		t.Errorf("planned while one rests: %s", got)
	}
	o.turned[3] = true
	if got := planned(o, o.turn(pool)); got != "" {
		t.Errorf("planned while both rest: %s", got)
	}
	o.turned = nil
	o.nodes[4] = sighting{standing: present, incarnation: 400, draining: true}
	if got := planned(o, o.turn(pool)); got != "" {
		t.Errorf("planned for one that is to leave: %s", got)
	}
}

// park is a cluster in TestRandomClusters: what its chunkservers are like, and
// which copysets they have. Data is not kept: who is in sync is for
// TestRandomFailures.
type park struct {
	t     *testing.T
	rng   *rand.Rand
	state *fsm.FSM
	pool  string
	nodes map[chunk.NodeID]*sighting
	sets  []chunk.Copyset
	moves int // members that joined
	turns int
}

// TestRandomClusters has chunkservers of clusters of any size fail, return, fill
// up, be drained and join at random. Whatever is planned is taken by the state.
// When that ends, every copyset gets three copies in sync on chunkservers that
// stay, in equal shares, and then nothing is planned any more.
func TestRandomClusters(t *testing.T) {
	t.Parallel()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	state, err := fsm.Open(filepath.Join(t.TempDir(), "fsm.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	moves, turns := 0, 0
	for round := range 25 {
		p := newPark(t, rng, state, round)
		for range 40 {
			p.happen()
			p.pass(0.7)
		}
		p.settle()
		p.check()
		moves, turns = moves+p.moves, turns+p.turns
	}
	t.Logf("%d moves, %d turns", moves, turns)
	if moves < 500 || turns < 100 {
		t.Errorf("%d moves, %d turns: the test tries nothing", moves, turns)
	}
}

func newPark(t *testing.T, rng *rand.Rand, state *fsm.FSM, round int) *park {
	p := &park{t: t, rng: rng, state: state, pool: fmt.Sprint("p", round), nodes: make(map[chunk.NodeID]*sighting)}
	for i := range byte(3 + rng.IntN(6)) {
		p.do(fsm.RegisterNode{Store: uuid.NewSHA1(uuid.Nil, []byte{i}), Address: "n"})
		p.nodes[chunk.NodeID(i+1)] = &sighting{standing: present, incarnation: 1, roomy: true}
	}
	first := 3 + rng.IntN(len(p.nodes)-2) // the others join at once
	p.sets = place(registered(first))[:16<<rng.IntN(2)]
	for i := range p.sets {
		for j := range p.sets[i].Members {
			p.sets[i].Members[j].Incarnation = 1
		}
	}
	p.do(fsm.CreatePool{Name: p.pool, Copysets: p.sets})
	return p
}

func (p *park) do(command fsm.Command) {
	p.t.Helper()
	if err := p.state.Apply([]fsm.Entry{{Index: p.state.Applied() + 1, Data: fsm.Encode(command)}})[0].Err; err != nil {
		p.t.Fatalf("refused: %v\nof %+v\nfrom %+v\nto %+v", err, p.nodes, p.sets, command)
	}
}

// happen changes a chunkserver.
func (p *park) happen() {
	n := p.nodes[chunk.NodeID(1+p.rng.IntN(len(p.nodes)))]
	switch p.rng.IntN(8) {
	case 0:
		n.standing = absent
	case 1:
		n.standing = failed
	case 2:
		n.standing, n.away = failed, true
	case 3:
		n.incarnation++
		n.standing, n.away = present, false
	case 4:
		n.full = !n.full
		n.roomy = !n.full
	case 5:
		n.draining = !n.draining
	default:
		n.standing, n.away = present, false
	}
}

// pass is one of a leader, after which members have been brought up to date with
// a chance. It returns what was planned.
func (p *park) pass(chance float64) (changes []change) {
	o := outlook{nodes: make(map[chunk.NodeID]sighting), reports: make(map[chunk.CopysetID]wire.Report)}
	for id, n := range p.nodes {
		o.nodes[id] = *n
	}
	for _, config := range p.sets {
		r := wire.Report{Copyset: config.ID, Epoch: config.Epoch}
		for _, m := range config.Members {
			n := p.nodes[m.Node]
			if m.State == chunk.Syncing && n.standing == present && n.incarnation == m.Incarnation && p.rng.Float64() < chance {
				r.Synced = append(r.Synced, m.Node)
			}
		}
		o.reports[config.ID] = r
	}
	changes, _ = o.plan(p.sets)
	var next []chunk.Copyset
	for _, c := range changes {
		config := c.goOn(o.nodes)
		if c.seal {
			ends := make(map[history]wire.Sealed)
			longest := c.staying[p.rng.IntN(len(c.staying))]
			for _, node := range c.staying {
				ends[history{node, c.config.ID}] = wire.Sealed{Epoch: 1}
			}
			if c.heir == 0 || p.rng.Float64() > chance {
				ends[history{longest, c.config.ID}] = wire.Sealed{Epoch: 1, LSN: 1}
			}
			config, _ = c.succeed(ends, o.nodes)
		}
		if c.heir != 0 {
			p.turns++
		}
		p.moves += len(c.joining)
		next = append(next, config)
	}
	if len(next) > 0 {
		p.do(fsm.Reconfigure{Pool: p.pool, Copysets: next})
		for _, config := range next {
			before, after := len(inSync(p.sets[config.ID])), len(inSync(config))
			if after < min(before, fsm.MinInSync) {
				p.t.Fatalf("too few in sync: %+v after %+v", config, p.sets[config.ID])
			}
			p.sets[config.ID] = config
		}
	}
	return changes
}

// settle ends all trouble but that of chunkservers that are gone for good, to
// leave or full, of which at least three others are left, and has the leader work
// until it has nothing to do.
func (p *park) settle() {
	good := 0
	for _, n := range p.nodes {
		if n.standing != present || n.full || n.draining {
			n.standing = present
			n.away = false
		}
	}
	// Whoever is one of the last two of a copyset must be back before it can go.
	for range 200 {
		p.pass(1)
	}
	for _, id := range p.rng.Perm(len(p.nodes)) {
		n := p.nodes[chunk.NodeID(id+1)]
		if good < copies {
			n.full, n.draining, n.roomy = false, false, true
		}
		if !n.full && !n.draining {
			good++
		}
	}
	for range 200 {
		p.pass(1)
	}
	if good > copies && p.rng.IntN(2) == 0 {
		for _, n := range p.nodes {
			if !n.full && !n.draining {
				n.standing, n.away = failed, true
				break
			}
		}
	}
	passes := 0
	for ; len(p.pass(1)) > 0; passes++ {
		if passes > 1000 {
			p.t.Fatalf("there is no end: %+v in %+v", p.nodes, p.sets)
		}
	}
}

// check makes sure that all is as it should be in the end.
func (p *park) check() {
	p.t.Helper()
	members, primaries := make(map[chunk.NodeID]int), make(map[chunk.NodeID]int)
	for id, n := range p.nodes {
		if n.welcomes() {
			members[id], primaries[id] = 0, 0
		}
	}
	for _, config := range p.sets {
		if len(config.Members) != copies || len(inSync(config)) != copies {
			p.t.Fatalf("copies are missing, or too many, in %+v of %s", config, p.describe())
		}
		for _, m := range config.Members {
			if !p.nodes[m.Node].welcomes() {
				p.t.Fatalf("chunkserver %d has not been left by %+v, of %s", m.Node, config, p.describe())
			}
			members[m.Node]++
		}
		primaries[config.Primary]++
	}
	if spread(members) > 1 || spread(primaries) > 1 {
		p.t.Errorf("shares are not equal: members %v, primaries %v, of %s", members, primaries, p.describe())
	}
}

func (p *park) describe() string {
	var texts []string
	for id, n := range p.nodes {
		texts = append(texts, fmt.Sprintf("%d: %+v", id, *n))
	}
	slices.Sort(texts)
	return strings.Join(texts, "; ")
}

func spread(shares map[chunk.NodeID]int) int {
	least, most := 1<<30, 0
	for _, n := range shares {
		least, most = min(least, n), max(most, n)
	}
	return most - least
}
