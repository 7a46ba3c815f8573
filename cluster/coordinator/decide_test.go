package coordinator

import (
	"flag"
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

var seedFlag = flag.Uint64("seed", 0, "of the random tests; 0 for a new one each time")

// seen is what is known of chunkservers 1 to len(how): p for present in the
// process that configurations of testConfig name, n in a new one, F in the old one
// but full, r but resting, a for absent and f for failed.
func seen(how string) map[chunk.NodeID]sighting {
	nodes := make(map[chunk.NodeID]sighting)
	for i, c := range how {
		id := chunk.NodeID(i + 1)
		switch c {
		case 'p':
			nodes[id] = sighting{standing: present, incarnation: 1}
		case 'n':
			nodes[id] = sighting{standing: present, incarnation: 2}
		case 'f':
			nodes[id] = sighting{standing: failed}
		case 'F':
			nodes[id] = sighting{standing: present, incarnation: 1, full: true}
		case 'r':
			nodes[id] = sighting{standing: present, incarnation: 1, resting: true}
		}
	}
	return nodes
}

// testConfig is copyset 0 in epoch 5, on chunkservers 1 to len(states), which
// are in sync (i), syncing (s) or out (o) in their first process. Its primary is 1.
func testConfig(states string) chunk.Copyset {
	config := chunk.Copyset{Epoch: 5, Primary: 1}
	for i, c := range states {
		m := chunk.Member{Node: chunk.NodeID(i + 1), Incarnation: 1, State: chunk.InSync}
		switch c {
		case 'o':
			m.State = chunk.Out
		case 's':
			m.State = chunk.Syncing
		}
		config.Members = append(config.Members, m)
	}
	return config
}

func TestDecide(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		config string
		nodes  string
		sealed chunk.Epoch
		want   string // those that stay, and whether they are sealed
	}{
		{"all is well", "iii", "ppp", 0, ""},
		{"a member that is out does not count", "iio", "ppf", 0, ""},
		{"one may be back any moment", "iii", "ppa", 0, ""},
		{"the primary may be back any moment", "iii", "app", 0, ""},
		{"a secondary failed", "iii", "pfp", 0, "1 3"},
		{"a secondary failed, another may be back", "iii", "pfa", 0, "1 3"},
		{"a secondary failed, the primary may be back", "iii", "afp", 0, ""},
		{"the primary failed", "iii", "fpp", 0, "2 3 sealed"},
		{"the primary failed, a secondary may be back", "iii", "fpa", 0, ""},
		{"both secondaries failed", "iii", "pff", 0, ""},
		{"primary and secondary failed", "iii", "ffp", 0, ""},
		{"one of the last two failed", "iio", "pfp", 0, ""},
		{"the primary of the last two failed", "iio", "fpp", 0, ""},
		{"the only member failed", "i", "f", 0, ""},
		{"the only member is back", "i", "n", 0, "1 sealed"},
		{"the primary restarted", "iii", "npp", 0, "1 2 3 sealed"},
		{"a secondary restarted", "iii", "ppn", 0, "1 2 3 sealed"},
		{"a secondary restarted, another failed", "iii", "pfn", 0, "1 3 sealed"},
		{"a secondary restarted, another may be back", "iii", "pan", 0, ""},
		{"the last two restarted", "iio", "nnp", 0, "1 2 sealed"},
		{"a member is full", "iii", "pFp", 0, "1 3"},
		{"the primary is full", "iii", "Fpp", 0, "2 3 sealed"},
		{"all are full", "iii", "FFF", 0, "2 3 sealed"},
		{"one of the last two is full", "iio", "pFf", 0, ""},
		{"an earlier epoch was sealed", "iii", "ppp", 4, ""},
		{"the epoch was sealed, and all are back", "iii", "ppp", 5, "1 2 3 sealed"},
		{"the epoch was sealed, and a secondary failed", "iii", "ppf", 5, "1 2 sealed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o := outlook{nodes: seen(tc.nodes), sealed: map[chunk.CopysetID]chunk.Epoch{0: tc.sealed}}
			got := ""
			if c, ok := o.decide(testConfig(tc.config)); ok {
				got = strings.Trim(fmt.Sprint(c.staying), "[]")
				if c.seal {
					got += " sealed"
				}
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestMend(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name            string
		config, nodes   string
		synced, lagging chunk.NodeID // as the primary reports
		want            string
	}{
		{"one that is out failed", "iio", "ppf", 0, 0, ""},
		{"one that is out may be back", "iio", "ppa", 0, 0, ""},
		{"one that is out is back", "iio", "ppp", 0, 0, "3 syncing 1"},
		{"one that is out restarted", "iio", "ppn", 0, 0, "3 syncing 2"},
		{"one that is out rests", "iio", "ppr", 0, 0, ""},
		{"one that is out is full", "iio", "ppF", 0, 0, ""},
		{"two are back", "ioo", "ppp", 0, 0, "2 syncing 1, 3 syncing 1"},
		{"the primary can't do it", "iio", "app", 0, 0, ""},
		{"one is being brought up to date", "iis", "ppp", 0, 0, ""},
		{"one that is syncing failed", "iis", "ppf", 0, 0, "3 out 1"},
		{"one that is syncing restarted", "iis", "ppn", 0, 0, "3 syncing 2"},
		{"one that is syncing restarted, of which the primary knows nothing", "iis", "ppn", 3, 0, "3 syncing 2"},
		{"one that is syncing is full", "iis", "ppF", 3, 0, "3 out 1"},
		{"one that is syncing lags", "iis", "ppp", 0, 3, "3 out 1"},
		{"one is up to date", "iis", "ppp", 3, 0, "3 in sync 1"},
		{"one is up to date, but may be away", "iis", "ppa", 3, 0, ""},
		{"one that is out is said to be up to date", "iio", "ppr", 3, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			config := testConfig(tc.config)
			o := outlook{nodes: seen(tc.nodes)}
			for _, late := range []chunk.Epoch{0, 1} { // a report of an earlier epoch says nothing
				o.reports = map[chunk.CopysetID]wire.Report{0: {Epoch: config.Epoch - late, Synced: []chunk.NodeID{tc.synced}, Lagging: []chunk.NodeID{tc.lagging}}}
				var got []string
				if c, ok := o.decide(config); ok && !c.seal {
					next := c.goOn(o.nodes)
					for i, m := range next.Members {
						if m != config.Members[i] {
							got = append(got, fmt.Sprint(m.Node, " ", m.State, " ", m.Incarnation))
						}
					}
				}
				want := tc.want
				if late > 0 && (want == "3 in sync 1" || tc.lagging != 0) {
					want = ""
				}
				if got := strings.Join(got, ", "); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			}
		})
	}
}

func TestSucceed(t *testing.T) {
	t.Parallel()
	type ends map[chunk.NodeID]wire.Sealed
	for _, tc := range []struct {
		name    string
		nodes   string
		ends    ends
		primary chunk.NodeID // 0 for no decision
		members string
	}{
		{"equal: the first, whose turn it is", "npp", ends{1: {Epoch: 2, LSN: 9}, 2: {Epoch: 2, LSN: 9}, 3: {Epoch: 2, LSN: 9}}, 1, "1 in sync 2, 2 in sync 1, 3 in sync 1"},
		{"more operations", "npp", ends{1: {Epoch: 2, LSN: 9}, 2: {Epoch: 2, LSN: 10}, 3: {Epoch: 2, LSN: 9}}, 2, "1 in sync 2, 2 in sync 1, 3 in sync 1"},
		{"a later epoch beats more operations", "npp", ends{1: {Epoch: 1, LSN: 99}, 2: {Epoch: 2, LSN: 9}, 3: {Epoch: 3, LSN: 8}}, 3, "1 in sync 2, 2 in sync 1, 3 in sync 1"},
		{"empty", "npp", ends{1: {}, 2: {}, 3: {}}, 1, "1 in sync 2, 2 in sync 1, 3 in sync 1"},
		{"one failed", "fpp", ends{2: {Epoch: 2, LSN: 9}, 3: {Epoch: 2, LSN: 10}}, 3, "1 out 1, 2 in sync 1, 3 in sync 1"},
		{"one did not answer", "npp", ends{1: {Epoch: 2, LSN: 9}, 3: {Epoch: 2, LSN: 9}}, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o := outlook{nodes: seen(tc.nodes)}
			config := testConfig("iii")
			c, ok := o.decide(config)
			if !ok {
				t.Fatal("nothing is decided")
			}
			answers := make(map[history]wire.Sealed)
			for node, end := range tc.ends {
				answers[history{node, config.ID}] = end
			}
			next, ok := c.succeed(answers, o.nodes)
			if ok != (tc.primary != 0) || next.Primary != tc.primary {
				t.Fatalf("decided: %v, for primary %d", ok, next.Primary)
			}
			var members []string
			for _, m := range next.Members {
				members = append(members, fmt.Sprint(m.Node, " ", m.State, " ", m.Incarnation))
			}
			if got := strings.Join(members, ", "); got != tc.members {
				t.Errorf("members %s, want %s", got, tc.members)
			}
			if config.Member(1).Incarnation != 1 || config.Member(2).State != chunk.InSync {
				t.Error("the old configuration was changed")
			}
		})
	}
}

func TestCopysetsOfAFailedPrimaryAreShared(t *testing.T) {
	t.Parallel()
	for _, n := range []int{3, 4, 7} {
		o := outlook{nodes: seen("f" + strings.Repeat("p", n-1))}
		heirs, orphans := make(map[chunk.NodeID]int), 0
		for _, config := range place(registered(n)) {
			ends := make(map[history]wire.Sealed)
			for i := range config.Members {
				config.Members[i].Incarnation = 1
				ends[history{config.Members[i].Node, config.ID}] = wire.Sealed{}
			}
			if c, ok := o.decide(config); ok && c.seal {
				delete(ends, history{1, config.ID})
				next, _ := c.succeed(ends, o.nodes)
				heirs[next.Primary]++
				orphans++
			}
		}
		if len(heirs) != 2 || heirs[2] < orphans/3 || heirs[3] < orphans/3 {
			t.Errorf("of %d chunkservers, %d copysets of the first went to %v", n, orphans, heirs)
		}
	}
}

// walker is a chunkserver in TestRandomFailures. What a store keeps, it keeps
// when it is down.
type walker struct {
	up       bool
	run      chunk.Incarnation
	promised chunk.Epoch
	history  []int // operations
	epoch    chunk.Epoch
}

// TestRandomFailures has three chunkservers fail, stop and return at random,
// while operations are written, and a leader decide, seal and commit, which is
// replaced, and errs about who is alive. Whoever is in sync always holds every
// acknowledged operation; histories of members in sync begin like the
// primary's; and with everybody back, operations are acknowledged again.
func TestRandomFailures(t *testing.T) {
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
	do := func(command fsm.Command) error {
		return state.Apply([]fsm.Entry{{Index: state.Applied() + 1, Data: fsm.Encode(command)}})[0].Err
	}
	for i := range byte(3) {
		do(fsm.RegisterNode{Store: uuid.NewSHA1(uuid.Nil, []byte{i}), Address: "n"})
	}
	changes, acks, joins := 0, 0, 0
	for round := range 1000 {
		w := &walk{t: t, rng: rng, nodes: make(map[chunk.NodeID]*walker), sealed: make(map[chunk.CopysetID]chunk.Epoch), needed: make(map[chunk.NodeID]bool)}
		for id := range chunk.NodeID(3) {
			w.nodes[id+1] = &walker{up: true, run: 1}
		}
		w.config = testConfig("iii")
		w.config.Epoch = 1
		pool := fmt.Sprint("p", round)
		if err := do(fsm.CreatePool{Name: pool, Copysets: []chunk.Copyset{w.config}}); err != nil {
			t.Fatal(err)
		}
		w.commit = func(next chunk.Copyset) {
			if err := do(fsm.Reconfigure{Pool: pool, Copysets: []chunk.Copyset{next}}); err != nil {
				t.Fatalf("refused: %v\n%+v\n%+v", err, w.config, next)
			}
			for _, m := range next.Members {
				if m.State == chunk.InSync && w.config.Member(m.Node).State == chunk.Syncing {
					joins++
				}
			}
			w.config = next
			clear(w.needed)
			changes++
		}
		for range 60 {
			w.step()
		}
		for _, n := range w.nodes {
			n.up = true
		}
		before := w.acked
		for range 30 {
			w.lead(1)
			w.configure(1)
			if w.write(1); w.acked > before && len(inSync(w.config)) == 3 {
				break
			}
		}
		if w.acked == before {
			t.Fatalf("everybody is back, and nothing is acknowledged in %+v", w.config)
		}
		acks += w.acked
	}
	if changes < 2000 || acks < 2000 || joins < 500 {
		t.Errorf("%d changes, %d operations, %d members brought up to date: the test tries nothing", changes, acks, joins)
	}
}

// walk is one copyset in TestRandomFailures.
type walk struct {
	t      *testing.T
	rng    *rand.Rand
	nodes  map[chunk.NodeID]*walker
	config chunk.Copyset
	sealed map[chunk.CopysetID]chunk.Epoch
	needed map[chunk.NodeID]bool // members that are syncing, in the present epoch, and have everything
	commit func(chunk.Copyset)
	next   int // operation
	acked  int // operations
}

func (w *walk) step() {
	n := w.nodes[chunk.NodeID(1+w.rng.IntN(3))]
	switch w.rng.IntN(10) {
	case 0:
		n.up = false
	case 1:
		n.up = true
	case 2:
		n.up = true
		n.run++
	case 3:
		clear(w.sealed) // another leader
	case 4, 5:
		w.lead(0.8)
	case 6:
		w.configure(0.8)
	default:
		w.write(0.8)
	}
	for _, m := range inSync(w.config) {
		held := w.nodes[m.Node].history
		if len(held) < w.acked {
			w.t.Fatalf("chunkserver %d is in sync and lacks operations of %d: %+v", m.Node, w.acked, w.config)
		}
	}
}

// lead is a pass of the leader, to which each call succeeds with a chance.
func (w *walk) lead(chance float64) {
	o := outlook{nodes: make(map[chunk.NodeID]sighting), sealed: w.sealed}
	for id, n := range w.nodes {
		switch {
		case n.up && w.rng.Float64() < chance:
			o.nodes[id] = sighting{standing: present, incarnation: n.run, full: w.rng.IntN(8) == 0, resting: w.rng.IntN(4) == 0}
		case w.rng.IntN(2) == 0:
			o.nodes[id] = sighting{standing: failed} // or so it seems
		}
	}
	report := wire.Report{Epoch: w.config.Epoch}
	for id := range w.nodes {
		if w.needed[id] && w.rng.Float64() < chance {
			report.Synced = append(report.Synced, id)
		}
		if id != w.config.Primary && w.rng.Float64() > chance && w.rng.IntN(4) == 0 {
			report.Lagging = append(report.Lagging, id)
		}
	}
	o.reports = map[chunk.CopysetID]wire.Report{w.config.ID: report}
	c, ok := o.decide(w.config)
	if !ok {
		return
	}
	if !c.seal {
		w.commit(c.goOn(o.nodes))
		return
	}
	w.sealed[w.config.ID] = w.config.Epoch
	ends := make(map[history]wire.Sealed)
	for _, id := range c.staying {
		if n := w.nodes[id]; n.up && w.rng.Float64() < chance {
			n.promised = max(n.promised, w.config.Epoch+1)
			ends[history{id, w.config.ID}] = wire.Sealed{Epoch: n.epoch, LSN: chunk.LSN(len(n.history))}
		}
	}
	if w.rng.Float64() > chance {
		return // the leader fails here
	}
	if next, ok := c.succeed(ends, o.nodes); ok {
		w.commit(next)
	}
}

// configure tells members the configuration. The primary brings the others up
// to its own history.
func (w *walk) configure(chance float64) {
	for _, m := range w.config.Members {
		n := w.nodes[m.Node]
		switch {
		case !n.up || n.run != m.Incarnation || w.rng.Float64() > chance:
		case n.promised > w.config.Epoch:
			w.sealed[w.config.ID] = w.config.Epoch
		default:
			n.promised = w.config.Epoch
		}
	}
	w.replicate(chance)
}

// serves reports whether a member takes part in the present epoch.
func (w *walk) serves(m *chunk.Member) bool {
	n := w.nodes[m.Node]
	return n.up && n.run == m.Incarnation && n.promised == w.config.Epoch
}

// replicate sends what members in sync lack, and reports whether all have all.
func (w *walk) replicate(chance float64) bool {
	primary := w.config.Member(w.config.Primary)
	if !w.serves(primary) {
		return false
	}
	lead, all := w.nodes[primary.Node], true
	for _, m := range inSync(w.config) {
		n := w.nodes[m.Node]
		if len(n.history) > len(lead.history) || !slices.Equal(n.history, lead.history[:len(n.history)]) {
			w.t.Fatalf("the history of chunkserver %d, %v, is no beginning of the primary's, %v, in %+v", m.Node, n.history, lead.history, w.config)
		}
		if !w.serves(&m) || w.rng.Float64() > chance {
			all = false
			continue
		}
		n.history, n.epoch = slices.Clone(lead.history), lead.epoch
	}
	for _, m := range w.config.Members {
		n := w.nodes[m.Node]
		switch {
		case m.State != chunk.Syncing:
		case w.serves(&m) && w.rng.Float64() <= chance:
			n.history, n.epoch = slices.Clone(lead.history), lead.epoch
			w.needed[m.Node] = true
		default:
			all = all && !w.needed[m.Node]
		}
	}
	return all
}

func (w *walk) write(chance float64) {
	if primary := w.config.Member(w.config.Primary); w.serves(primary) && w.replicate(1) {
		n := w.nodes[primary.Node]
		w.next++
		n.history, n.epoch = append(n.history, w.next), w.config.Epoch
		if w.replicate(chance) && len(inSync(w.config)) >= fsm.MinInSync {
			w.acked = len(n.history)
		}
	}
}
