package store

import (
	"bytes"
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// A thousand snapshots, each with one block of its own: every one shows what
// it froze, and so it does after every second one has been deleted.
func TestManySnapshots(t *testing.T) {
	const n = 1000
	d := newDisk()
	opts := onDisk(d)
	opts.SegmentBytes, opts.QueueBytes = 1<<20, 8<<20
	c := &client{Store: mustOpen(t, "", opts)}
	var views []*chunk.View
	for seq := chunk.Seq(1); seq <= n; seq++ {
		c.must(t, writeOp(ref10, seq, int(seq)%7, stamped(uint64(seq), 1)))
		views = append(views, chunk.NewView(1, chunk.NewLineage().Freeze(seq), nil))
	}
	check := func() {
		t.Helper()
		for i := 0; i < n; i += 2 {
			p := c.mustRead(t, views[i], 0, 0, 7)
			for block := range 7 {
				// The youngest number up to i+1 that wrote the block.
				want := uint64(max(0, i+1-(i+1-block+7)%7))
				if got := stampOf(p[block*chunk.BlockSize:]); got != want {
					t.Fatalf("snapshot %d shows %d in block %d, want %d", i+1, got, block, want)
				}
			}
		}
	}
	check()
	var left []*chunk.View
	for i := 0; i < n; i += 2 {
		left = append(left, views[i])
	}
	c.must(t, chunk.Op{Kind: chunk.OpPurge, Ref: ref10, Views: left, UpTo: n - 1})
	check()
	digests, err := c.Digest(ref10)
	must(t, err)
	if len(digests) > n {
		t.Errorf("%d layers", len(digests))
	}
}

// Clones of clones, each with a block of its own, each showing those of all
// below; in the middle one is flattened, and shows the same without them.
func TestChainOfClones(t *testing.T) {
	const n = 32
	c := &client{Store: mustOpen(t, "", onDisk(newDisk()))}
	var views []*chunk.View // of the heads
	var parent *chunk.View
	for i := range n {
		volume := chunk.VolumeID(i + 1)
		c.must(t, writeOp(chunk.Ref{Volume: volume}, 1, i, stamped(uint64(i+1), 1)))
		views = append(views, chunk.NewView(volume, chunk.NewLineage(), parent))
		parent = chunk.NewView(volume, chunk.NewLineage().Freeze(1), parent)
	}
	check := func(i int, v *chunk.View) {
		t.Helper()
		p := c.mustRead(t, v, 0, 0, n)
		for block := range n {
			want := make([]byte, chunk.BlockSize)
			if block <= i {
				want = stamped(uint64(block+1), 1)
			}
			if !bytes.Equal(p[block*chunk.BlockSize:][:chunk.BlockSize], want) {
				t.Fatalf("clone %d: block %d differs", i, block)
			}
		}
	}
	for i, v := range views {
		check(i, v)
	}
	const flat = n / 2
	v := views[flat]
	listed := chunk.NewView(v.Volume(), v.Lineage().Freeze(1), v.Parent())
	c.must(t, chunk.Op{Kind: chunk.OpFlatten, Ref: chunk.Ref{Volume: v.Volume()}, Len: chunk.MaxOp, Views: []*chunk.View{listed}})
	check(flat, v)
	check(flat, chunk.NewView(v.Volume(), v.Lineage(), nil))
	for i := range flat {
		c.must(t, chunk.Op{Kind: chunk.OpPurge, Ref: chunk.Ref{Volume: chunk.VolumeID(i + 1)}, UpTo: chunk.MaxSeq})
	}
	check(flat, chunk.NewView(v.Volume(), v.Lineage(), nil))
}
