package store

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// small makes a store that is quick to create and to fill.
var small = Options{
	SegmentBytes:    256 << 10,
	CheckpointBytes: -1,
	QueueBytes:      1 << 20,
	CacheBytes:      4 << 20,
	OpenFiles:       16,
	ReserveBytes:    1 << 20,
	ScrubBytes:      -1,
}

func mustOpen(t testing.TB, dir string, opts Options) *Store {
	t.Helper()
	s, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// client hands out the LSNs of one copyset and waits for each entry.
type client struct {
	*Store
	copyset chunk.CopysetID
	lsn     chunk.LSN
}

func (c *client) do(op chunk.Op) error {
	c.lsn++
	done := make(chan error, 1)
	entry := chunk.Entry{Copyset: c.copyset, Epoch: 1, LSN: c.lsn, Op: op}
	if err := c.Append(context.Background(), []chunk.Entry{entry}, func(err error) { done <- err }); err != nil {
		c.lsn--
		return err
	}
	return <-done
}

func (c *client) must(t testing.TB, op chunk.Op) {
	t.Helper()
	if err := c.do(op); err != nil {
		t.Fatalf("%v: %v", op.Kind, err)
	}
}

func (c *client) mustRead(t testing.TB, v *chunk.View, index uint32, block, n int) []byte {
	t.Helper()
	p := make([]byte, n*chunk.BlockSize)
	if err := c.ReadAt(v, chunk.Ref{Volume: v.Volume(), Index: index}, p, uint32(block*chunk.BlockSize)); err != nil {
		t.Fatalf("read block %d of chunk %d: %v", block, index, err)
	}
	return p
}

func writeOp(ref chunk.Ref, seq chunk.Seq, block int, data []byte) chunk.Op {
	return chunk.Op{
		Kind: chunk.OpWrite, Ref: ref, Token: chunk.Token{Attachment: 1, Seq: seq},
		Off: uint32(block * chunk.BlockSize), Len: uint32(len(data)), Data: data, Sums: chunk.Checksums(nil, data),
	}
}

func zeroOp(ref chunk.Ref, seq chunk.Seq, block, n int) chunk.Op {
	return chunk.Op{
		Kind: chunk.OpZero, Ref: ref, Token: chunk.Token{Attachment: 1, Seq: seq},
		Off: uint32(block * chunk.BlockSize), Len: uint32(n * chunk.BlockSize),
	}
}

func filled(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n*chunk.BlockSize) }

func head(volume chunk.VolumeID) *chunk.View {
	return chunk.NewView(volume, chunk.NewLineage(), nil)
}

func TestReadsWhatWasWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := mustOpen(t, dir, small)
	c := &client{Store: s}
	ref := chunk.Ref{Volume: 1, Index: 7}
	one, two := filled(3, 1), filled(1, 2)
	c.must(t, writeOp(ref, 1, 10, one))
	c.must(t, writeOp(ref, 1, 11, two))
	c.must(t, zeroOp(ref, 1, 12, 2))
	want := bytes.Join([][]byte{filled(1, 0), filled(1, 1), filled(1, 2), filled(2, 0)}, nil)
	check := func() {
		t.Helper()
		if got := c.mustRead(t, head(1), 7, 9, 5); !bytes.Equal(got, want) {
			t.Error("read differs from what was written")
		}
		extents, err := c.Extents(head(1), ref, 9*chunk.BlockSize, 5*chunk.BlockSize)
		if err != nil {
			t.Fatal(err)
		}
		wantExtents := []Extent{
			{9 * chunk.BlockSize, chunk.BlockSize, false},
			{10 * chunk.BlockSize, 2 * chunk.BlockSize, true},
			{12 * chunk.BlockSize, 2 * chunk.BlockSize, false},
		}
		if diff := cmp.Diff(wantExtents, extents); diff != "" {
			t.Error(diff)
		}
	}
	check()
	digest, err := c.Digest(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c.Store = mustOpen(t, dir, small)
	check()
	again, err := c.Digest(ref)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(digest, again); diff != "" || len(digest) != 1 {
		t.Errorf("digest after reopening: %s", diff)
	}
	if c.ID() != s.ID() {
		t.Error("the store has another id after reopening")
	}
	if _, err := os.Stat(filepath.Join(dir, layerID{ref, 1}.name())); err != nil {
		t.Error(err)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	mustOpen(t, dir, small)
	if s, err := Open(dir, small); err == nil {
		s.Close()
		t.Fatal("the directory of a running store was opened")
	}
}

func TestGapIsRefused(t *testing.T) {
	s := mustOpen(t, t.TempDir(), small)
	c := &client{Store: s}
	ref := chunk.Ref{Volume: 1}
	c.must(t, writeOp(ref, 1, 0, filled(1, 1)))
	for _, lsn := range []chunk.LSN{0, 1, 3} {
		e := chunk.Entry{LSN: lsn, Op: writeOp(ref, 1, 0, filled(1, 9))}
		err := s.Append(context.Background(), []chunk.Entry{e}, func(error) { t.Error("done was called") })
		if !errors.Is(err, chunk.ErrInvalid) {
			t.Errorf("LSN %d after 1: error %v", lsn, err)
		}
	}
	if got := c.mustRead(t, head(1), 0, 0, 1); !bytes.Equal(got, filled(1, 1)) {
		t.Error("a refused entry was applied")
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// seeded returns random numbers that the flag -seed repeats.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := *histSeed
	if seed == 0 {
		seed = rand.Uint64N(1 << 40)
	}
	t.Logf("seed %d", seed)
	return newRand(seed)
}

// Readers, a writer and checkpoints at the same time, with hardly any memory:
// every block read is one that was written as a whole, and never an older one
// than was read before; a snapshot does not change.
func TestReadsBesideWrites(t *testing.T) {
	const slots, rounds = 40, 400
	opts := small
	opts.CacheBytes = 1
	opts.OpenFiles = 2
	s := mustOpen(t, t.TempDir(), opts)
	c := &client{Store: s}
	frozen := chunk.NewView(1, chunk.NewLineage().Freeze(1), nil)
	refOf := func(slot int) chunk.Ref { return chunk.Ref{Volume: 1, Index: uint32(slot % 4)} }
	for slot := range slots {
		c.must(t, writeOp(refOf(slot), 1, slot, stamped(1, 1)))
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for seed := range uint64(2) {
		readers.Go(func() {
			rng := newRand(seed)
			var seen [slots]uint64
			p := make([]byte, chunk.BlockSize)
			for {
				select {
				case <-stop:
					return
				default:
				}
				slot, view := rng.IntN(slots), head(1)
				if rng.IntN(2) == 0 {
					view = frozen
				}
				if err := s.ReadAt(view, refOf(slot), p, uint32(slot*chunk.BlockSize)); err != nil {
					t.Error(err)
					return
				}
				stamp := stampOf(p)
				switch {
				case !bytes.Equal(p, stamped(stamp, 1)):
					t.Errorf("block %d is a mixture", slot)
				case view == frozen && stamp != 1:
					t.Errorf("block %d of the snapshot has changed to %d", slot, stamp)
				case view != frozen && stamp < seen[slot]:
					t.Errorf("block %d went back from %d to %d", slot, seen[slot], stamp)
				}
				if view != frozen {
					seen[slot] = stamp
				}
			}
		})
	}
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := s.Checkpoint(context.Background()); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	rng := newRand(99)
	for stamp := uint64(2); stamp < rounds; stamp++ {
		slot := rng.IntN(slots)
		c.must(t, writeOp(refOf(slot), 2, slot, stamped(stamp, 1)))
		if got := stampOf(c.mustRead(t, head(1), refOf(slot).Index, slot, 1)); got != stamp {
			t.Errorf("block %d: read %d after %d was acknowledged", slot, got, stamp)
		}
	}
	close(stop)
	readers.Wait()
}

// What a checkpoint is about to save is not dropped from memory before the
// database has it, however little memory there is.
func TestReadsWhileACheckpointSyncs(t *testing.T) {
	d := newDisk()
	syncing, proceed := make(chan struct{}, 8), make(chan struct{})
	d.before = func(op, name string) {
		if strings.HasPrefix(name, layerDir) {
			syncing <- struct{}{}
			<-proceed
		}
	}
	opts := onDisk(d)
	opts.CacheBytes = 1
	c := &client{Store: mustOpen(t, "", opts)}
	c.must(t, writeOp(ref10, 1, 0, filled(1, 1)))
	release := sync.OnceFunc(func() { close(proceed) })
	t.Cleanup(release) // before the store is closed
	done := make(chan error, 1)
	go func() { done <- c.Checkpoint(context.Background()) }()
	<-syncing
	for other := chunk.VolumeID(2); other < 10; other++ {
		c.mustRead(t, head(other), 0, 0, 1)
		if got := c.mustRead(t, head(1), 0, 0, 1); got[0] != 1 {
			t.Fatalf("read %d", got[0])
		}
	}
	release()
	must(t, <-done)
}

// A checkpoint saves the metadata as of its cut, whatever changes before it is
// saved: the journal's records behind the cut are executed again.
func TestChangesWhileACheckpointSyncs(t *testing.T) {
	d := newDisk()
	c := &client{Store: mustOpen(t, "", onDisk(d))}
	for seq := range chunk.Seq(3) {
		c.must(t, writeOp(ref10, seq+1, 0, filled(4, byte(seq))))
	}
	change := sync.OnceFunc(func() {
		c.must(t, writeOp(ref10, 3, 1, filled(1, 11)))
		c.must(t, writeOp(ref10, 3, 5, filled(1, 12)))
		c.must(t, zeroOp(ref10, 3, 2, 1))
		c.must(t, chunk.Op{Kind: chunk.OpPurge, Ref: ref10, Views: []*chunk.View{head(1)}, UpTo: 3})
	})
	d.before = func(op, name string) {
		if strings.HasPrefix(name, layerDir) {
			change()
		}
	}
	must(t, c.Checkpoint(context.Background()))
	d.kill(c.Store)
	c.Store = mustOpen(t, "", onDisk(d))
	p := c.mustRead(t, head(1), 0, 0, 6)
	for block, want := range []byte{2, 11, 0, 2, 0, 12} {
		if got := p[block*chunk.BlockSize]; got != want {
			t.Errorf("block %d: %d, want %d", block, got, want)
		}
	}
	if usage, err := c.Usage(); err != nil || usage.Used != 4*chunk.BlockSize {
		t.Errorf("%d bytes are used, %v", usage.Used, err)
	}
	must(t, c.Check(context.Background(), func(f Finding) { t.Error(f) }))
}

// The file of a layer without blocks is deleted while a block is about to be
// written to the layer: the block goes to a new file.
func TestWriteToALayerWhoseFileIsDeleted(t *testing.T) {
	c := &client{Store: mustOpen(t, "", onDisk(newDisk()))}
	c.must(t, writeOp(ref10, 1, 0, filled(1, 1)))
	c.must(t, zeroOp(ref10, 1, 0, 1))
	id, io := layerID{ref10, 1}, &c.table.shard(ref10.Index).io
	file, err := c.files.reading(id)
	must(t, err)
	c.files.release(file)
	io.Lock()
	done := make(chan error, 1)
	go func() { done <- c.do(writeOp(ref10, 1, 0, filled(1, 2))) }()
	// The write must not have taken hold of the file; but if it did, it has by then.
	for deadline := time.Now().Add(50 * time.Millisecond); file.users.Load() == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	err = c.files.remove(id)
	io.Unlock()
	must(t, err)
	must(t, <-done)
	if got := c.mustRead(t, head(1), 0, 0, 1); got[0] != 2 {
		t.Errorf("read %d", got[0])
	}
	must(t, c.Check(context.Background(), func(f Finding) { t.Error(f) }))
}

// A read of what is resolved takes no memory: whoever reads much would pay for
// collecting it.
func TestReadsDoNotAllocate(t *testing.T) {
	c := &client{Store: mustOpen(t, t.TempDir(), small)}
	c.must(t, writeOp(ref10, 1, 0, filled(40, 1)))
	view, p := head(1), make([]byte, 40*chunk.BlockSize)
	for _, n := range []int{1, 40} {
		allocated := testing.AllocsPerRun(100, func() {
			must(t, c.ReadAt(view, ref10, p[:n*chunk.BlockSize], 0))
		})
		if allocated != 0 {
			t.Errorf("reading %d blocks allocates %v times", n, allocated)
		}
	}
}

// What is in memory stays within the limit, however much is read, and the
// count of it is right.
func TestMemoryIsBounded(t *testing.T) {
	opts := small
	opts.CacheBytes = 1 << 20
	s := mustOpen(t, t.TempDir(), opts)
	c := &client{Store: s}
	const volumes = 300
	for volume := chunk.VolumeID(1); volume <= volumes; volume++ {
		c.must(t, writeOp(chunk.Ref{Volume: volume, Index: 3}, 1, 0, stamped(uint64(volume), 1)))
	}
	must(t, s.Checkpoint(context.Background()))
	for volume := chunk.VolumeID(1); volume <= volumes; volume++ {
		if got := stampOf(c.mustRead(t, head(volume), 3, 0, 1)); got != uint64(volume) {
			t.Errorf("volume %d shows %d", volume, got)
		}
		if bytes := s.table.bytes.Load(); bytes > opts.CacheBytes+20<<10 {
			t.Fatalf("%d bytes in memory, %d allowed", bytes, opts.CacheBytes)
		}
	}
	sh := s.table.shard(3)
	sum := int64(len(sh.resolutions)) * resolutionSize
	for _, c := range sh.columns {
		sum += columnSize
		for _, l := range c.layers {
			sum += layerSize + int64(bits.OnesCount64(l.kept))*partSize
		}
	}
	if sum != sh.bytes || sum != s.table.bytes.Load() {
		t.Errorf("%d bytes in the shard, counted %d there and %d in all", sum, sh.bytes, s.table.bytes.Load())
	}
	if len(sh.resolutions) < 20 {
		t.Errorf("only %d resolutions were kept", len(sh.resolutions))
	}
}

// A deleted snapshot may still be read by somebody who does not know: what
// comes back is undefined, but it is no damage.
// What a purge leaves behind is freed although nothing is written afterwards.
func TestIdleStoreFreesWhatWasPurged(t *testing.T) {
	dir, opts := t.TempDir(), small
	opts.CheckpointBytes, opts.FreeEvery = math.MaxInt64/8, 10*time.Millisecond
	c := &client{Store: mustOpen(t, dir, opts)}
	ref := chunk.Ref{Volume: 1, Index: 7}
	c.must(t, writeOp(ref, 1, 0, filled(4, 1)))
	if err := c.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	volume := filepath.Join(dir, volumeDir(ref.Volume))
	if _, err := os.Stat(volume); err != nil {
		t.Fatalf("before the purge: %v", err)
	}
	c.must(t, chunk.Op{Kind: chunk.OpPurge, Ref: ref, UpTo: chunk.MaxSeq})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		_, err := os.Stat(volume)
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the purged layer's file is still there: %v", err)
		}
	}
}

func TestReadOfAPurgedView(t *testing.T) {
	s := mustOpen(t, t.TempDir(), small)
	c := &client{Store: s}
	c.must(t, writeOp(ref10, 1, 0, filled(1, 1)))
	c.must(t, writeOp(ref10, 2, 0, filled(1, 2)))
	gone := chunk.NewView(1, chunk.NewLineage().Freeze(1), nil)
	c.mustRead(t, gone, 0, 0, 1)
	now := chunk.NewView(1, chunk.NewLineage().Freeze(2), nil)
	c.must(t, chunk.Op{Kind: chunk.OpPurge, Ref: ref10, Views: []*chunk.View{now}, UpTo: 2})
	for range 2 {
		if got := c.mustRead(t, gone, 0, 0, 1); got[0] != 0 {
			t.Errorf("read %d", got[0])
		}
		if err := s.Checkpoint(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if digests, err := c.Digest(ref10); err != nil || len(digests) != 1 || digests[0].Seq != 2 {
		t.Errorf("layers left: %v, %v", digests, err)
	}
}

func TestChunks(t *testing.T) {
	d := newDisk()
	s := mustOpen(t, "", onDisk(d))
	c := &client{Store: s}
	for _, ref := range []chunk.Ref{{Volume: 1, Index: 5}, {Volume: 1, Index: 0}, {Volume: 2, Index: 5}, {Volume: 2, Index: 1 << 31}, {Volume: 3, Index: 9}, {Volume: 1, Index: math.MaxUint32}} {
		c.must(t, writeOp(ref, 1, 0, filled(1, 1)))
	}
	c.must(t, zeroOp(chunk.Ref{Volume: 1, Index: 77}, 1, 0, 1))
	check := func(want ...uint32) {
		t.Helper()
		got, err := s.Chunks([]chunk.VolumeID{1, 2, 4})
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s %v", diff, err)
		}
	}
	check(0, 5, 77, 1<<31, math.MaxUint32)
	must(t, s.Close())
	s = mustOpen(t, "", onDisk(d))
	c.Store = s
	check(0, 5, 77, 1<<31, math.MaxUint32)
	c.must(t, chunk.Op{Kind: chunk.OpPurge, Ref: chunk.Ref{Volume: 1, Index: 5}, UpTo: chunk.MaxSeq})
	c.must(t, chunk.Op{Kind: chunk.OpPurge, Ref: chunk.Ref{Volume: 1, Index: 77}, UpTo: chunk.MaxSeq})
	check(0, 5, 1<<31, math.MaxUint32)
	must(t, s.Checkpoint(context.Background()))
	check(0, 5, 1<<31, math.MaxUint32)
}

func TestVolumes(t *testing.T) {
	d := newDisk()
	s := mustOpen(t, "", onDisk(d))
	c := &client{Store: s}
	check := func(want ...chunk.VolumeID) {
		t.Helper()
		got, err := s.Volumes()
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("%s %v", diff, err)
		}
	}
	check()
	for _, volume := range []chunk.VolumeID{5, 2, math.MaxUint64} {
		c.must(t, writeOp(chunk.Ref{Volume: volume, Index: 3}, 1, 0, filled(1, 1)))
	}
	check(2, 5, math.MaxUint64)
	must(t, s.Checkpoint(context.Background()))
	c.must(t, chunk.Op{Kind: chunk.OpPurge, Ref: chunk.Ref{Volume: 5, Index: 3}, UpTo: chunk.MaxSeq})
	c.must(t, writeOp(chunk.Ref{Volume: 7, Index: 3}, 1, 0, filled(1, 1)))
	check(2, 7, math.MaxUint64)
}

// Two stores that got the same operations have the same digests, one block
// more or less and they don't.
func TestDigest(t *testing.T) {
	digestOf := func(ops ...chunk.Op) []LayerDigest {
		s := mustOpen(t, "", onDisk(newDisk()))
		c := &client{Store: s}
		for _, op := range ops {
			c.must(t, op)
		}
		digests, err := s.Digest(ref10)
		must(t, err)
		return digests
	}
	a, b, z := writeOp(ref10, 1, 3, filled(1, 1)), writeOp(ref10, 2, 70, filled(1, 2)), zeroOp(ref10, 2, 4, 1)
	if diff := cmp.Diff(digestOf(a, b, z), digestOf(z, b, a)); diff != "" {
		t.Errorf("the order matters: %s", diff)
	}
	other := map[string][]LayerDigest{
		"all":           digestOf(a, b, z),
		"one missing":   digestOf(a, b),
		"other content": digestOf(a, writeOp(ref10, 2, 70, filled(1, 3)), z),
		"other place":   digestOf(a, writeOp(ref10, 2, 71, filled(1, 2)), z),
		"other layer":   digestOf(a, writeOp(ref10, 3, 70, filled(1, 2)), z),
	}
	for n1, d1 := range other {
		for n2, d2 := range other {
			if n1 != n2 && cmp.Equal(d1, d2) {
				t.Errorf("equal digests: %s, %s", n1, n2)
			}
		}
	}
}
