package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// On a file system that fills up the store refuses in time, takes checkpoints
// and deletes. When something else takes the reserve too, it stops: what was
// acknowledged is there when it is opened with some space again.
func TestFullFileSystem(t *testing.T) {
	for _, mkfs := range [][]string{{"mkfs.ext4", "-q", "-m", "0"}, {"mkfs.xfs", "-q"}} {
		t.Run(mkfs[0], func(t *testing.T) {
			t.Parallel()
			dir := mountImage(t, mkfs)
			ballast, err := os.Create(filepath.Join(filepath.Dir(dir), "ballast"))
			must(t, err)
			defer ballast.Close()
			opts := small
			opts.CheckpointBytes, opts.ReserveBytes = 4<<20, 16<<20
			w := &filler{client: client{Store: mustOpen(t, dir, opts)}}
			leaveFree(t, ballast, 64<<20)
			w.fill(t, func() error { return w.Admit(16 * chunk.BlockSize) }, ErrNoSpace)
			if n := len(w.acked) * 16 * chunk.BlockSize; n < 8<<20 {
				t.Errorf("refused after %d bytes", n)
			}
			must(t, w.Checkpoint(context.Background()))
			w.check(t)

			w.must(t, chunk.Op{Kind: chunk.OpPurge, Ref: ref10, UpTo: chunk.MaxSeq})
			deleted := min(len(w.acked), chunk.Blocks/16)
			clear(w.acked[:deleted])
			w.Committed(0, w.lsn)
			must(t, w.Checkpoint(context.Background()))
			must(t, w.Admit(deleted*16*chunk.BlockSize/2))

			leaveFree(t, ballast, 0)
			w.fill(t, func() error { return nil }, ErrStopped)
			if err := w.Err(); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("stopped by %v", err)
			}
			w.Close()
			must(t, ballast.Truncate(0))
			w.Store = mustOpen(t, dir, opts)
			w.check(t)
			must(t, w.Check(context.Background(), func(f Finding) { t.Error(f) }))
		})
	}
}

// filler writes one run of 16 blocks of volume 1 after the other.
type filler struct {
	client
	acked []byte // what was written to each run; 0: nothing
}

func (w *filler) place(run int) (ref chunk.Ref, block int) {
	return chunk.Ref{Volume: 1, Index: uint32(run / (chunk.Blocks / 16))}, run % (chunk.Blocks / 16) * 16
}

// fill writes until admit refuses or a write fails, which must be with an error
// that is want.
func (w *filler) fill(t *testing.T, admit func() error, want error) {
	t.Helper()
	var err error
	for err == nil && len(w.acked) < 100000 {
		if err = admit(); err != nil {
			break
		}
		ref, block := w.place(len(w.acked))
		b := byte(1 + len(w.acked)%250)
		if err = w.do(writeOp(ref, 1, block, filled(16, b))); err == nil {
			w.acked = append(w.acked, b)
			w.Committed(0, w.lsn)
		}
	}
	if !errors.Is(err, want) {
		t.Fatalf("after %d writes: %v, want %v", len(w.acked), err, want)
	}
}

func (w *filler) check(t *testing.T) {
	t.Helper()
	for run, b := range w.acked {
		ref, block := w.place(run)
		if !bytes.Equal(w.mustRead(t, head(1), ref.Index, block, 16), filled(16, b)) {
			t.Fatalf("run %d is not what was acknowledged", run)
		}
	}
}

// leaveFree makes file so long that n bytes are left in its file system.
func leaveFree(t *testing.T, file *os.File, n int64) {
	t.Helper()
	for step := int64(64 << 20); step >= chunk.BlockSize; {
		free, err := OSFS(filepath.Dir(file.Name())).Free()
		must(t, err)
		size, err := file.Seek(0, io.SeekEnd)
		must(t, err)
		if int64(free)-n < step || unix.Fallocate(int(file.Fd()), 0, size, step) != nil {
			step /= 2
		}
	}
}
