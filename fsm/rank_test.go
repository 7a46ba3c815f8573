package fsm

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
)

// ranks is a state to which entries of one index are given and taken from,
// beside which other groups lie.
type ranks struct {
	f      *FSM
	groups map[string]map[string]bool // keys by group
}

func newRanks(t *testing.T) *ranks {
	return &ranks{open(t), map[string]map[string]bool{}}
}

// change gives or takes entries.
func (r *ranks) change(t *testing.T, entries map[entry]bool) {
	t.Helper()
	err := r.f.db.Update(func(tx *bbolt.Tx) error {
		s := &State{tx: tx}
		for e, there := range entries {
			if r.groups[e.group] == nil {
				r.groups[e.group] = map[string]bool{}
			}
			if there {
				s.enlist([]entry{e})
				r.groups[e.group][e.key] = true
			} else {
				s.unlist([]entry{e})
				delete(r.groups[e.group], e.key)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// check looks for every key at its place.
func (r *ranks) check(t *testing.T, step int) {
	t.Helper()
	r.f.View(func(s *State) error {
		for group, keys := range r.groups {
			if got := s.count(byUser, group); got != len(keys) {
				t.Fatalf("%d entries in %q, want %d", got, group, len(keys))
			}
			for i, want := range slices.Sorted(maps.Keys(keys)) {
				if i%step != 0 && i != len(keys)-1 {
					continue
				}
				if got := s.seek(byUser, group, i); got != want {
					t.Fatalf("entry %d of %q is %q, want %q", i, group, got, want)
				}
			}
		}
		return nil
	})
}

// counts is what is counted.
func (r *ranks) counts() map[string]string {
	return maps.Collect(func(yield func(string, string) bool) {
		r.f.View(func(s *State) error {
			return s.bucket(bucketCounts).ForEach(func(k, v []byte) error {
				yield(string(k), string(v))
				return nil
			})
		})
	})
}

// Whatever comes and goes, every entry is found at its offset. What is counted
// depends on what is there, not on how it came, and nothing is left of it.
func TestEveryOffsetIsFound(t *testing.T) {
	t.Parallel()
	seed := testSeed(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	groups := []string{text("a"), text("ab"), text("\xff")}
	r := newRanks(t)
	initial := r.counts()
	for range 12 {
		entries := map[entry]bool{}
		for range 1 + rng.IntN(1500) {
			e := entry{byUser, groups[rng.IntN(len(groups))], fmt.Sprintf("%x", rng.IntN(4000)), ""}
			entries[e] = !r.groups[e.group][e.key]
		}
		r.change(t, entries)
		r.check(t, 7)
	}
	r.check(t, 1)

	fresh, all := newRanks(t), map[entry]bool{}
	for group, keys := range r.groups {
		for key := range keys {
			all[entry{byUser, group, key, ""}] = true
		}
	}
	fresh.change(t, all)
	if diff := cmp.Diff(fresh.counts(), r.counts()); diff != "" {
		t.Errorf("counts depend on the past (-fresh +grown):\n%s", diff)
	}
	fences := 0
	for k := range fresh.counts() {
		if k[0] < wholeGroup {
			fences++
		}
	}
	if n := len(all); fences < n/100 || fences > n/10 {
		t.Errorf("%d spans for %d entries", fences, n)
	}
	for _, r := range []*ranks{r, fresh} {
		for e := range all {
			all[e] = false
		}
		r.change(t, all)
		if diff := cmp.Diff(initial, r.counts()); diff != "" {
			t.Errorf("counts of nothing:\n%s", diff)
		}
	}
}

// A directory that is read page by page is read whole, whatever the page.
func TestPagesJoin(t *testing.T) {
	t.Parallel()
	f := open(t)
	const n = 1200
	var batch []Entry
	for i := range uint64(n) {
		batch = append(batch, Entry{1 + i, Encode(CreateVolume{User: "ann", Path: fmt.Sprintf("/v%d", i), Size: gib})})
	}
	f.Apply(batch)
	f.View(func(s *State) error {
		whole, total, err := s.List("ann", "/", Page{Limit: 2 * n})
		if err != nil || len(whole) != n+1 || total != n+1 {
			t.Fatalf("%d of %d, %v", len(whole), total, err)
		}
		for _, limit := range []int{1, 10, 333, n + 1} {
			var joined []File
			for {
				files, total, err := s.List("ann", "/", Page{Offset: len(joined), Limit: limit})
				if err != nil || total != n+1 {
					t.Fatalf("of %d, %v", total, err)
				}
				if len(files) == 0 {
					break
				}
				joined = append(joined, files...)
			}
			if diff := cmp.Diff(whole, joined); diff != "" {
				t.Fatalf("in pages of %d:\n%s", limit, diff)
			}
		}
		return nil
	})
}
