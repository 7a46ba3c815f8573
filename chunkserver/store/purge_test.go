package store

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// What views reach can be worked out from what the ones before them reach.
// The lineages are such as snapshots and rollbacks make, also several
// rollbacks to the same snapshot, and such as no history has.
func TestReachOfExtensions(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 3000 {
		c := &column{ref: ref10}
		for seq := range chunk.Seq(20) {
			for range rng.IntN(3) {
				c.makeLayer(seq).setData(rng.IntN(4), 1)
			}
		}
		head, seq := chunk.NewLineage(), chunk.Seq(1)
		var lineages []chunk.Lineage
		for range 1 + rng.IntN(6) {
			seq += chunk.Seq(rng.IntN(3))
			lineages = append(lineages, head.Freeze(seq))
			seq++
			switch rng.IntN(4) {
			case 0:
				head = lineages[rng.IntN(len(lineages))].Rollback(seq)
			case 1:
				lineages = append(lineages, chunk.Lineage{{From: 0, To: chunk.Seq(rng.IntN(4))}, {From: 5, To: 5 + chunk.Seq(rng.IntN(9))}})
			}
		}
		// Snapshots are deleted, also those that were rolled back to.
		lineages = slices.DeleteFunc(lineages, func(chunk.Lineage) bool { return rng.IntN(3) == 0 })
		want, got := make(map[*layer]*blockSet), make(map[*layer]*blockSet)
		var before chunk.Lineage
		for _, lineage := range lineages {
			reach(c, lineage, want)
			reach(c, extension(before, lineage), got)
			before = lineage
		}
		for _, l := range c.layers {
			w, g := want[l], got[l]
			if w == nil {
				w = new(blockSet)
			}
			if g == nil {
				g = new(blockSet)
			}
			if *w != *g {
				t.Fatalf("seed %d: views %v: blocks reached in %v:\n%s", seed, lineages, l.id, cmp.Diff(w, g))
			}
		}
	}
}
