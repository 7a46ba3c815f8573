package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
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

// history hands out the LSNs of one copyset and waits for each entry.
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

func randomBlocks(rng *rand.Rand, n int) []byte {
	p := make([]byte, n*chunk.BlockSize)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

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
