package coordinator

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
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

func TestRestartedNeedsAllInSyncMembers(t *testing.T) {
	t.Parallel()
	config := place(registered(3))[0]
	present := registered(3)
	if restarted(config, present) {
		t.Error("nothing has changed, and yet")
	}
	present[2].node.Incarnation++
	if !restarted(config, present) {
		t.Error("a new process went unnoticed")
	}
	delete(present, 3)
	if restarted(config, present) {
		t.Error("a new epoch was to begin without an in-sync member")
	}
	config.Members[2].State = chunk.Out
	if !restarted(config, present) {
		t.Error("a member that is out was waited for")
	}
}

func TestLongestHistoryBecomesPrimary(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		ends [3]wire.Sealed // of nodes 1, 2, 3
		want chunk.NodeID
	}{
		{"equal: the first, whose turn it is", [3]wire.Sealed{{Epoch: 2, LSN: 9}, {Epoch: 2, LSN: 9}, {Epoch: 2, LSN: 9}}, 1},
		{"more operations", [3]wire.Sealed{{Epoch: 2, LSN: 9}, {Epoch: 2, LSN: 10}, {Epoch: 2, LSN: 9}}, 2},
		{"a later epoch beats more operations", [3]wire.Sealed{{Epoch: 1, LSN: 99}, {Epoch: 2, LSN: 9}, {Epoch: 3, LSN: 8}}, 3},
		{"empty", [3]wire.Sealed{}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			config := place(registered(3))[0]
			sealed := make(map[history]wire.Sealed)
			for i, end := range tc.ends {
				sealed[history{chunk.NodeID(i + 1), config.ID}] = end
			}
			present := registered(3)
			present[2].node.Incarnation = 7
			next := succeed(config, present, sealed)
			if next.Primary != tc.want || next.Epoch != config.Epoch+1 {
				t.Errorf("primary %d in epoch %d, want %d in %d", next.Primary, next.Epoch, tc.want, config.Epoch+1)
			}
			if next.Member(2).Incarnation != 7 {
				t.Error("the new process is not in the configuration")
			}
			if config.Member(2).Incarnation == 7 {
				t.Error("the old configuration was changed")
			}
		})
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
