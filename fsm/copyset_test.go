package fsm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// config is a configuration whose members are written as NODE:STATE, with
// i, s and o for in sync, syncing and out, and NODE:STATE* for one in a later
// process. Its primary is the first member in sync.
func config(epoch chunk.Epoch, members ...string) chunk.Copyset {
	set := chunk.Copyset{Epoch: epoch}
	states := map[byte]chunk.MemberState{'i': chunk.InSync, 's': chunk.Syncing, 'o': chunk.Out}
	for _, text := range members {
		m := chunk.Member{Node: chunk.NodeID(text[0] - '0'), Incarnation: 1, State: states[text[2]]}
		if len(text) > 3 {
			m.Incarnation = 2
		}
		set.Members = append(set.Members, m)
		if m.State == chunk.InSync && set.Primary == 0 {
			set.Primary = m.Node
		}
	}
	return set
}

func TestWhatMayFollow(t *testing.T) {
	t.Parallel()
	type members = []string
	for _, tc := range []struct {
		name    string
		present members
		next    members
		ok      bool
	}{
		{"one of three fails", members{"1:i", "2:i", "3:i"}, members{"1:i", "2:i", "3:o"}, true},
		{"all but one of three fail", members{"1:i", "2:i", "3:i"}, members{"1:i", "2:o", "3:o"}, false},
		{"one of the last two fails", members{"1:i", "2:i", "3:o"}, members{"1:i", "2:o", "3:o"}, false},
		{"one of the last two fails, as another is synced", members{"1:i", "2:i", "3:o"}, members{"1:i", "2:o", "3:s"}, true},
		{"the last two leave, as another is synced", members{"1:i", "2:i"}, members{"1:i", "3:s"}, false},
		{"nobody in sync", members{"1:i", "2:i", "3:i"}, members{"1:o", "2:o", "3:s"}, false},
		{"in sync in a new process", members{"1:i", "2:i", "3:i"}, members{"1:i*", "2:i", "3:i"}, true},
		{"out in a new process", members{"1:i", "2:i", "3:i"}, members{"1:i", "2:i", "3:o*"}, false},
		{"out, back in the same process", members{"1:i", "2:i", "3:o"}, members{"1:i", "2:i", "3:s"}, true},
		{"out, back in a new process", members{"1:i", "2:i", "3:o"}, members{"1:i", "2:i", "3:s*"}, true},
		{"out, at once in sync", members{"1:i", "2:i", "3:o"}, members{"1:i", "2:i", "3:i"}, false},
		{"in sync, at once syncing", members{"1:i", "2:i", "3:i"}, members{"1:i", "2:i", "3:s"}, false},
		{"synced", members{"1:i", "2:i", "3:s"}, members{"1:i", "2:i", "3:i"}, true},
		{"synced in another process", members{"1:i", "2:i", "3:s"}, members{"1:i", "2:i", "3:i*"}, false},
		{"syncing begins anew", members{"1:i", "2:i", "3:s"}, members{"1:i", "2:i", "3:s*"}, true},
		{"syncing is given up", members{"1:i", "2:i", "3:s"}, members{"1:i", "2:i", "3:o"}, true},
		{"a new member", members{"1:i", "2:i", "3:o"}, members{"1:i", "2:i", "3:o", "4:s"}, true},
		{"a new member in sync", members{"1:i", "2:i", "3:o"}, members{"1:i", "2:i", "3:o", "4:i"}, false},
		{"a new member out", members{"1:i", "2:i", "3:o"}, members{"1:i", "2:i", "3:o", "4:o"}, false},
		{"replaced", members{"1:i", "2:i", "3:o"}, members{"1:i", "2:i", "4:s"}, true},
		{"gone from three", members{"1:i", "2:i", "3:i"}, members{"1:i", "2:i"}, true},
		{"gone from two", members{"1:i", "2:i"}, members{"1:i"}, false},
		{"the only member goes on", members{"1:i"}, members{"1:i*"}, true},
		{"the only member fails", members{"1:i"}, members{"1:o"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if err := checkFollows(config(1, tc.present...), config(2, tc.next...)); (err == nil) != tc.ok {
				// An empty in-sync set is for checkMembers to refuse, too.
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestOnlyMembersThatHoldEverythingAreInSync proposes configurations at random
// and keeps account of who holds every acknowledged operation. An operation is
// acknowledged by everybody in sync, if they are MinInSync; it is lost to
// everybody else but one who is syncing and has caught up.
func TestOnlyMembersThatHoldEverythingAreInSync(t *testing.T) {
	t.Parallel()
	seed := testSeed(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	f := open(t)
	for n := range uint64(4) {
		do(t, f, RegisterNode{Store: id(n + 1), Address: "n:1", Incarnation: 1})
	}
	accepted := 0
	for i := range 100 {
		pool := fmt.Sprint("p", i)
		present := config(1, "1:i", "2:i", "3:i")
		do(t, f, CreatePool{Name: pool, Copysets: []chunk.Copyset{present}})
		acked := 0
		held := make([]int, 5) // by node: the last operation up to which it has all
		for range 40 {
			if rng.IntN(2) == 0 && count(present, chunk.InSync) >= MinInSync {
				acked++
			}
			for _, m := range present.Members {
				if m.State == chunk.InSync {
					held[m.Node] = acked
				}
			}
			next := proposal(rng, present)
			for _, m := range next.Members {
				before := present.Member(m.Node)
				if m.State == chunk.InSync && before != nil && before.State == chunk.Syncing && before.Incarnation == m.Incarnation {
					held[m.Node] = acked // who proposes this has seen it catch up
				}
			}
			result := f.Apply([]Entry{{Index: f.Applied() + 1, Data: Encode(Reconfigure{Pool: pool, Copysets: []chunk.Copyset{next}})}})[0]
			if result.Err != nil {
				continue
			}
			accepted++
			present = next
			if count(present, chunk.InSync) == 0 {
				t.Fatalf("nobody is in sync: %+v", present)
			}
			for _, m := range present.Members {
				if m.State == chunk.InSync && held[m.Node] < acked {
					t.Fatalf("chunkserver %d is in sync and has %d of %d operations: %+v", m.Node, held[m.Node], acked, present)
				}
			}
			if p := present.Member(present.Primary); p == nil || p.State != chunk.InSync {
				t.Fatalf("the primary is not in sync: %+v", present)
			}
		}
	}
	if accepted < 500 {
		t.Errorf("%d configurations were accepted: the test tries nothing", accepted)
	}
}

// proposal is a random next configuration, of nodes 1 to 4.
func proposal(rng *rand.Rand, present chunk.Copyset) chunk.Copyset {
	next := present
	next.Epoch++
	next.Members = slices.Clone(present.Members)
	for range 1 + rng.IntN(2) {
		if len(next.Members) == 0 {
			break
		}
		i := rng.IntN(len(next.Members))
		m := &next.Members[i]
		switch rng.IntN(6) {
		case 0, 1:
			m.State = chunk.MemberState(1 + rng.IntN(3))
		case 2:
			m.State++
		case 3:
			m.State--
		case 4:
			m.Incarnation++
		case 5:
			if rng.IntN(2) == 0 {
				next.Members = slices.Delete(next.Members, i, i+1)
			} else {
				next.Members = append(next.Members, chunk.Member{Node: chunk.NodeID(1 + rng.IntN(4)), Incarnation: 1, State: chunk.MemberState(1 + rng.IntN(3))})
			}
		}
	}
	if len(next.Members) > 0 {
		next.Primary = next.Members[rng.IntN(len(next.Members))].Node
	}
	return next
}
