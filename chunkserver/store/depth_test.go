package store

import (
	"bytes"
	"context"
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// A thousand snapshots, each with one block of its own, deleted in random
// order: every one that is left shows what it froze, memory stays within its
// budget however many are read, and in the end only what the head shows takes
// space.
func TestManySnapshots(t *testing.T) {
	const n, blocks = 1000, 7
	opts := onDisk(newDisk())
	opts.SegmentBytes, opts.QueueBytes, opts.CacheBytes = 1<<20, 8<<20, 4<<20
	c := &client{Store: mustOpen(t, "", opts)}
	left := make(map[chunk.Seq]*chunk.View)
	for seq := chunk.Seq(1); seq <= n; seq++ {
		c.must(t, writeOp(ref10, seq, int(seq)%blocks, stamped(uint64(seq), 1)))
		left[seq] = chunk.NewView(1, chunk.NewLineage().Freeze(seq), nil)
	}
	c.Committed(0, c.lsn)
	must(t, c.Checkpoint(context.Background()))
	check := func(seq chunk.Seq, v *chunk.View) {
		t.Helper()
		p := c.mustRead(t, v, 0, 0, blocks)
		for block := range blocks {
			// The youngest number up to seq that wrote the block.
			want := uint64(max(0, int(seq)-(int(seq)-block+blocks)%blocks))
			if got := stampOf(p[block*chunk.BlockSize:]); got != want {
				t.Fatalf("snapshot %d shows %d in block %d, want %d", seq, got, block, want)
			}
		}
	}
	before := heap()
	for seq, v := range left {
		check(seq, v)
	}
	if grown := heap() - before; grown > opts.CacheBytes*5/4 {
		t.Errorf("reading %d snapshots took %d bytes, the budget is %d", n, grown, opts.CacheBytes)
	}
	if counted := c.table.bytes.Load(); counted > opts.CacheBytes*5/4 {
		t.Errorf("%d bytes are counted, the budget is %d", counted, opts.CacheBytes)
	}

	rng := seeded(t)
	order := rng.Perm(n - 1) // the last one is what the head shows
	const batch = 111
	for len(order) > 0 {
		some := order[:min(batch, len(order))]
		order = order[len(some):]
		for _, i := range some {
			delete(left, chunk.Seq(i+1))
		}
		var views []*chunk.View
		for _, v := range left {
			views = append(views, v)
		}
		c.must(t, chunk.Op{Kind: chunk.OpPurge, Ref: ref10, Views: views, UpTo: n})
		for seq, v := range left {
			check(seq, v)
		}
	}
	if usage, err := c.Usage(); err != nil || usage.Used != blocks*chunk.BlockSize {
		t.Errorf("%d bytes are used, %v; the head shows %d blocks", usage.Used, err, blocks)
	}
	c.Committed(0, c.lsn)
	must(t, c.Check(context.Background(), func(f Finding) { t.Error(f) }))
}

// Clones of clones, each with a block of its own, each showing those of all
// below. One in the middle is flattened, then those below it are deleted in
// random order: it and those above it show the same without them.
func TestChainOfClones(t *testing.T) {
	const n, flat = 32, 16
	c := &client{Store: mustOpen(t, "", onDisk(newDisk()))}
	// chain returns the heads of volumes first to n-1, of which the first has no parent.
	chain := func(first int) map[int]*chunk.View {
		views := make(map[int]*chunk.View)
		var parent *chunk.View
		for i := first; i < n; i++ {
			volume := chunk.VolumeID(i + 1)
			views[i] = chunk.NewView(volume, chunk.NewLineage(), parent)
			parent = chunk.NewView(volume, chunk.NewLineage().Freeze(1), parent)
		}
		return views
	}
	heads := chain(0)
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
	for i := range n {
		c.must(t, writeOp(chunk.Ref{Volume: chunk.VolumeID(i + 1)}, 1, i, stamped(uint64(i+1), 1)))
	}
	for i, v := range heads {
		check(i, v)
	}
	v := heads[flat]
	listed := chunk.NewView(v.Volume(), v.Lineage().Freeze(1), v.Parent())
	c.must(t, chunk.Op{Kind: chunk.OpFlatten, Ref: chunk.Ref{Volume: v.Volume()}, Len: chunk.MaxOp, Views: []*chunk.View{listed}})
	for i, v := range heads {
		check(i, v)
	}
	rng := seeded(t)
	for _, i := range rng.Perm(flat) {
		c.must(t, chunk.Op{Kind: chunk.OpPurge, Ref: chunk.Ref{Volume: chunk.VolumeID(i + 1)}, UpTo: chunk.MaxSeq})
		for i, v := range chain(flat) {
			check(i, v)
		}
	}
	if usage, err := c.Usage(); err != nil || usage.Used != n*chunk.BlockSize {
		t.Errorf("%d bytes are used, %v; the chain has %d blocks", usage.Used, err, n)
	}
	c.Committed(0, c.lsn)
	must(t, c.Check(context.Background(), func(f Finding) { t.Error(f) }))
}
