package coordinator

import (
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
	"github.com/localsnap/localsnap/cluster"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	settled := func(lsn chunk.LSN, sum byte) *wire.Digested {
		return &wire.Digested{LSN: lsn, Settled: true, Layers: 1, Sum: [16]byte{sum}}
	}
	for _, tc := range []struct {
		name   string
		copies [3]*wire.Digested
		out    chunk.NodeID
		want   cluster.Verdict
	}{
		{"equal", [3]*wire.Digested{settled(5, 1), settled(5, 1), settled(5, 1)}, 0, cluster.Identical},
		{"other layers", [3]*wire.Digested{settled(5, 1), settled(5, 1), settled(5, 2)}, 0, cluster.Differing},
		{"other layers of one that is out", [3]*wire.Digested{settled(5, 1), settled(5, 1), settled(5, 2)}, 3, cluster.Identical},
		{"no answer of one that is out", [3]*wire.Digested{settled(5, 1), nil, settled(5, 1)}, 2, cluster.Identical},
		{"no answer", [3]*wire.Digested{settled(5, 1), nil, settled(5, 2)}, 0, cluster.Unheard},
		{"no first answer", [3]*wire.Digested{nil, settled(5, 1), settled(5, 1)}, 0, cluster.Unheard},
		{"other histories", [3]*wire.Digested{settled(5, 1), settled(6, 1), settled(5, 1)}, 0, cluster.Unsettled},
		{"other layers, but other histories as well", [3]*wire.Digested{settled(5, 1), settled(5, 2), settled(6, 1)}, 0, cluster.Unsettled},
		{"being written", [3]*wire.Digested{{LSN: 5}, {LSN: 5}, {LSN: 5}}, 0, cluster.Unsettled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			config := place(registered(3))[0]
			copies := make(map[history]wire.Digested)
			for i, c := range tc.copies {
				m := &config.Members[i]
				if m.Node == tc.out {
					m.State = chunk.Out
				}
				if c != nil {
					copies[history{m.Node, 0}] = *c
				}
			}
			if got := judge(config, copies); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}
