package coordinator

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/fsm"
)

// registered are the sessions of chunkservers 1 to n, with incarnations of a
// hundred times their ids.
func registered(n int) map[chunk.NodeID]*chunkserver {
	present := make(map[chunk.NodeID]*chunkserver)
	for id := chunk.NodeID(1); int(id) <= n; id++ {
		present[id] = &chunkserver{node: fsm.Node{ID: id, Incarnation: chunk.Incarnation(100 * id)}}
	}
	return present
}

func TestPoolIsSpreadEvenly(t *testing.T) {
	t.Parallel()
	for _, n := range []int{3, 4, 7} {
		primaries, members := make(map[chunk.NodeID]int), make(map[chunk.NodeID]int)
		for i, config := range place(registered(n)) {
			if config.ID != chunk.CopysetID(i) || config.Epoch != 1 {
				t.Fatalf("copyset %d: id %d, epoch %d", i, config.ID, config.Epoch)
			}
			seen := make(map[chunk.NodeID]bool)
			for _, m := range config.Members {
				if m.State != chunk.InSync || m.Incarnation != chunk.Incarnation(100*m.Node) || seen[m.Node] {
					t.Fatalf("copyset %d: member %+v", i, m)
				}
				seen[m.Node] = true
				members[m.Node]++
			}
			if len(seen) != copies {
				t.Fatalf("copyset %d has %d members", i, len(seen))
			}
			primaries[config.Primary]++
		}
		for id := chunk.NodeID(1); int(id) <= n; id++ {
			if got := primaries[id]; got < poolSize/n || got > poolSize/n+1 {
				t.Errorf("%d chunkservers: node %d is the primary of %d copysets", n, id, got)
			}
			if got := members[id]; got < copies*poolSize/n-copies || got > copies*poolSize/n+copies {
				t.Errorf("%d chunkservers: node %d is in %d copysets", n, id, got)
			}
		}
	}
}

func TestAncestors(t *testing.T) {
	t.Parallel()
	root := chunk.NewView(1, chunk.NewLineage().Freeze(3), nil)
	middle := chunk.NewView(2, chunk.NewLineage().Freeze(1), root)
	views := []*chunk.View{chunk.NewView(3, chunk.NewLineage(), middle), chunk.NewView(3, chunk.NewLineage().Freeze(1), middle)}
	if diff := cmp.Diff([]chunk.VolumeID{1, 2}, ancestors(views)); diff != "" {
		t.Error(diff)
	}
}
