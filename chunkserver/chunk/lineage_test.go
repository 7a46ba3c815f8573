package chunk

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestLineage(t *testing.T) {
	head := NewLineage()
	four := head.Freeze(4)
	for _, test := range []struct {
		name      string
		got, want Lineage
	}{
		{"new", head, Lineage{{0, MaxSeq}}},
		{"snapshot at 4", four, Lineage{{0, 4}}},
		{"rollback to 4 at 7", four.Rollback(8), Lineage{{0, 4}, {8, MaxSeq}}},
		{"snapshot after that", four.Rollback(8).Freeze(9), Lineage{{0, 4}, {8, 9}}},
		{"older snapshot after that", four.Rollback(8).Freeze(3), Lineage{{0, 3}}},
		{"snapshot in the gap", four.Rollback(8).Freeze(6), Lineage{{0, 4}}},
		{"rollback to the latest", four.Rollback(5), Lineage{{0, MaxSeq}}},
		{"base only", head.Freeze(0), Lineage{{0, 0}}},
	} {
		if diff := cmp.Diff(test.want, test.got); diff != "" {
			t.Errorf("%s: %s", test.name, diff)
		}
	}
}

// seqs is a lineage as what it stands for: the set of what it sees, of the
// numbers up to some limit.
func seqs(l Lineage, limit Seq) map[Seq]bool {
	set := make(map[Seq]bool)
	for seq := range limit + 1 {
		if l.Sees(seq) {
			set[seq] = true
		}
	}
	return set
}

// Snapshots and rollbacks in any order, against sets of sequence numbers.
func TestLineageAgainstSets(t *testing.T) {
	const limit = 60
	rapid.Check(t, func(t *rapid.T) {
		type snapshot struct {
			lineage Lineage
			sees    map[Seq]bool
		}
		head, seq := NewLineage(), Seq(1)
		sees := map[Seq]bool{0: true, 1: true} // by the head, as of now
		var snaps []snapshot
		for range rapid.IntRange(0, 25).Draw(t, "steps") {
			if len(snaps) > 0 && rapid.Bool().Draw(t, "rollback") {
				s := snaps[rapid.IntRange(0, len(snaps)-1).Draw(t, "to")]
				seq++
				head = s.lineage.Rollback(seq)
				sees = map[Seq]bool{seq: true}
				for old := range s.sees {
					sees[old] = true
				}
			} else {
				frozen := make(map[Seq]bool)
				for old := range sees {
					frozen[old] = true
				}
				snaps = append(snaps, snapshot{head.Freeze(seq), frozen})
				seq++
				sees[seq] = true
			}
			if !head.valid() {
				t.Fatalf("head %v is not in normal form", head)
			}
			if diff := cmp.Diff(sees, seqs(head.Freeze(seq), limit)); diff != "" {
				t.Fatalf("head %v at %d: %s", head, seq, diff)
			}
		}
		for _, s := range snaps {
			if diff := cmp.Diff(s.sees, seqs(s.lineage, limit)); diff != "" {
				t.Fatalf("snapshot %v changed: %s", s.lineage, diff)
			}
		}
	})
}

func TestValidLineages(t *testing.T) {
	for _, test := range []struct {
		lineage Lineage
		valid   bool
	}{
		{nil, false},
		{Lineage{{1, 2}}, false},
		{Lineage{{0, 2}, {3, 4}}, false}, // touch
		{Lineage{{0, 2}, {2, 4}}, false}, // overlap
		{Lineage{{0, 5}, {3, 9}}, false},
		{Lineage{{0, 2}, {6, 4}}, false},
		{Lineage{{0, MaxSeq}, {0, 1}}, false},
		{Lineage{{0, 2}, {4, 4}}, true},
		{Lineage{{0, 0}}, true},
	} {
		if got := test.lineage.valid(); got != test.valid {
			t.Errorf("%v: valid %v", test.lineage, got)
		}
	}
}
