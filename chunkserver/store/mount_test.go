package store

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// On file systems that can share blocks between files, flattening copies no
// data and takes no space.
func TestFlattenSharesBlocks(t *testing.T) {
	for _, test := range []struct {
		mkfs   []string
		shares bool
	}{
		{[]string{"mkfs.ext4", "-q"}, false},
		{[]string{"mkfs.xfs", "-q", "-m", "reflink=1"}, true},
		{[]string{"mkfs.btrfs", "-q"}, true},
	} {
		t.Run(test.mkfs[0], func(t *testing.T) {
			dir := mountImage(t, test.mkfs)
			c := &client{Store: mustOpen(t, dir, small)}
			const run = 32
			for block := 0; block < chunk.Blocks; block += run {
				c.must(t, writeOp(ref10, 1, block, bytes.Repeat(stamped(uint64(block+1), 1), run)))
			}
			parent := chunk.NewView(1, chunk.NewLineage().Freeze(1), nil)
			clone := chunk.NewView(2, chunk.NewLineage(), parent)
			want := c.mustRead(t, clone, 0, 0, chunk.Blocks)
			before := freeSynced(t, dir)
			start := time.Now()
			for off := uint32(0); off < chunk.Size; off += chunk.MaxOp {
				c.must(t, chunk.Op{
					Kind: chunk.OpFlatten, Ref: chunk.Ref{Volume: 2}, Off: off, Len: chunk.MaxOp,
					Views: []*chunk.View{chunk.NewView(2, chunk.NewLineage().Freeze(1), parent)},
				})
			}
			applied := time.Since(start)
			taken := before - freeSynced(t, dir)
			t.Logf("flattening %d MiB: applied in %v, durable in %v, took %.1f MiB",
				chunk.Size>>20, applied.Round(time.Millisecond), time.Since(start).Round(time.Millisecond), float64(taken)/(1<<20))
			if shared := taken < chunk.Size/8; shared != test.shares {
				t.Errorf("flattening %d bytes took %d", chunk.Size, taken)
			}
			if !bytes.Equal(c.mustRead(t, chunk.NewView(2, chunk.NewLineage(), nil), 0, 0, chunk.Blocks), want) {
				t.Error("the flattened clone differs")
			}
			must(t, c.Check(context.Background(), func(f Finding) { t.Error(f) }))
		})
	}
}

// freeSynced returns how many bytes are free in the file system of dir when
// everything is on disk.
func freeSynced(t *testing.T, dir string) int64 {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	must(t, unix.Syncfs(int(f.Fd())))
	free, err := OSFS(dir).Free()
	must(t, err)
	return int64(free)
}

// mountImage makes a file system in a file, mounts it, and returns a directory
// in it. It skips the test on a machine that can't, but not in CI.
func mountImage(t *testing.T, mkfs []string) string {
	t.Helper()
	unable := t.Skipf
	if os.Getenv("CI") != "" {
		unable = t.Fatalf
	}
	if os.Getuid() != 0 {
		unable("mounting an image takes root")
	}
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		unable("%v: make deps installs it", err)
	}
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 512<<20))
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", mkfs[0], err, out)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		unable("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
			_ = exec.Command("umount", "--lazy", dir).Run()
		}
	})
	return filepath.Join(dir, "store")
}
