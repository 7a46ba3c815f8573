package store

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

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

// On file systems that can share blocks between files, flattening takes no
// space. It needs root and a loop device.
func TestFlattenSharesBlocks(t *testing.T) {
	for _, mkfs := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1"}, {"mkfs.btrfs", "-q"}} {
		t.Run(mkfs[0], func(t *testing.T) {
			dir := mountImage(t, mkfs)
			c := &client{Store: mustOpen(t, dir, small)}
			for block := 0; block < 1024; block += 32 {
				c.must(t, writeOp(ref10, 1, block, bytes.Repeat(stamped(uint64(block+1), 1), 32)))
			}
			parent := chunk.NewView(1, chunk.NewLineage().Freeze(1), nil)
			clone := chunk.NewView(2, chunk.NewLineage(), parent)
			listed := chunk.NewView(2, chunk.NewLineage().Freeze(1), parent)
			want := c.mustRead(t, clone, 0, 0, 1024)
			unix.Sync()
			before, err := c.Store.fs.Free()
			must(t, err)
			for off := uint32(0); off < 1024*chunk.BlockSize; off += chunk.MaxOp {
				c.must(t, chunk.Op{
					Kind: chunk.OpFlatten, Ref: chunk.Ref{Volume: 2}, Off: off, Len: chunk.MaxOp, Views: []*chunk.View{listed},
				})
			}
			unix.Sync()
			after, err := c.Store.fs.Free()
			must(t, err)
			if taken := int64(before) - int64(after); taken > 1<<20 {
				t.Errorf("flattening 4 MiB took %d bytes", taken)
			}
			if !bytes.Equal(c.mustRead(t, chunk.NewView(2, chunk.NewLineage(), nil), 0, 0, 1024), want) {
				t.Error("the flattened clone differs")
			}
		})
	}
}

// mountImage makes a file system in a file and mounts it, or skips the test.
func mountImage(t *testing.T, mkfs []string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting an image takes root")
	}
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skipf("%s is not installed", mkfs[0])
	}
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 512<<20))
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", mkfs[0], err, out)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return filepath.Join(dir, "store")
}
