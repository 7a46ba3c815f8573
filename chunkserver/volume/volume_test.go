package volume

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

const mib = 1 << 20

func TestReadsBackWhatWasWritten(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	v := c.attach()
	if got := read(t, v, chunk.Size-100, 200); !bytes.Equal(got, make([]byte, 200)) {
		t.Errorf("a new volume holds %x", got)
	}
	p := pattern(3, 3*mib+777)
	write(t, v, p, chunk.Size-mib-5)
	if got := read(t, v, chunk.Size-mib-5, uint64(len(p))); !bytes.Equal(got, p) {
		t.Error("read something else than was written")
	}
	if err := v.Zero(t.Context(), chunk.Size-10, 5000); err != nil {
		t.Fatal(err)
	}
	clear(p[mib+5-10:][:5000])
	if got := read(t, v, chunk.Size-mib-5, uint64(len(p))); !bytes.Equal(got, p) {
		t.Error("read something else than was written and zeroed")
	}
	if err := v.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.attached) != 0 {
		t.Error("closing did not release the attachment")
	}
}

func TestDiscardKeepsPartsOfBlocks(t *testing.T) {
	t.Parallel()
	v := newCluster(t, 64*mib, chunk.Layout{}).attach()
	p := pattern(1, 4*chunk.BlockSize)
	write(t, v, p, 0)
	for _, r := range [][2]uint64{{100, 3000}, {4095, 4096}, {4000, 3 * 4096}} {
		if err := v.Discard(t.Context(), r[0], r[1]); err != nil {
			t.Fatal(err)
		}
	}
	clear(p[4096 : 3*4096])
	if diff := cmp.Diff(p, read(t, v, 0, uint64(len(p)))); diff != "" {
		t.Errorf("after discarding (-want +got):\n%s", diff)
	}
}

func TestExtents(t *testing.T) {
	t.Parallel()
	for _, layout := range []chunk.Layout{{}, {Unit: 16 << 10, Count: 3}} {
		v := newCluster(t, 64*mib, layout).attach()
		write(t, v, pattern(1, 8192), 32<<10)
		write(t, v, pattern(1, 100), 63<<10)
		got, err := v.Extents(t.Context(), 1000, 127<<10)
		if err != nil {
			t.Fatal(err)
		}
		want := []Extent{
			{32<<10 - 1000, false}, {8 << 10, true}, {20 << 10, false}, {4 << 10, true},
			{63<<10 + 1000, false},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("layout %v (-want +got):\n%s", layout, diff)
		}
	}
}

func TestExtentsMayStopEarly(t *testing.T) {
	t.Parallel()
	v := newCluster(t, 64*mib, chunk.Layout{Unit: 4096, Count: 2}).attach()
	got, err := v.Extents(t.Context(), 0, 64*mib)
	if err != nil {
		t.Fatal(err)
	}
	if want := []Extent{{maxExtentPieces * 4096, false}}; !cmp.Equal(want, got) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestRangeOutsideTheVolume(t *testing.T) {
	t.Parallel()
	v := newCluster(t, 8*mib, chunk.Layout{}).attach()
	ctx := t.Context()
	for _, r := range []struct{ off, n uint64 }{{8 * mib, 1}, {8*mib - 1, 2}, {1 << 63, 1}, {^uint64(0), 2}} {
		_, extents := v.Extents(ctx, r.off, r.n)
		for what, err := range map[string]error{
			"read":    v.ReadAt(ctx, make([]byte, r.n), r.off),
			"write":   v.WriteAt(ctx, make([]byte, r.n), r.off),
			"zero":    v.Zero(ctx, r.off, r.n),
			"discard": v.Discard(ctx, r.off, r.n),
			"extents": extents,
		} {
			if !errors.Is(err, chunk.ErrInvalid) {
				t.Errorf("%s of %d bytes at %d: %v", what, r.n, r.off, err)
			}
		}
	}
	if err := v.WriteAt(ctx, nil, 8*mib); err != nil {
		t.Errorf("empty write at the end: %v", err)
	}
	if err := v.ReadAt(ctx, nil, 8*mib); err != nil {
		t.Errorf("empty read at the end: %v", err)
	}
}

func TestReadOnlyVolumeRefusesChanges(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 8*mib, chunk.Layout{})
	v, err := c.session().Attach(t.Context(), "/v", "snap", false)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for what, err := range map[string]error{
		"write":   v.WriteAt(ctx, make([]byte, 1), 0),
		"zero":    v.Zero(ctx, 0, 1),
		"discard": v.Discard(ctx, 0, 1),
	} {
		if !errors.Is(err, wire.ErrReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !v.ReadOnly() {
		t.Error("not read-only")
	}
	read(t, v, 0, 100)
	if err := v.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestClosedVolume(t *testing.T) {
	t.Parallel()
	v := newCluster(t, 8*mib, chunk.Layout{}).attach()
	for range 2 {
		if err := v.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for what, err := range map[string]error{
		"read":  v.ReadAt(t.Context(), make([]byte, 1), 0),
		"write": v.WriteAt(t.Context(), make([]byte, 1), 0),
		"sync":  v.Sync(t.Context()),
	} {
		if !errors.Is(err, ErrDetached) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What a chunkserver refuses for good is passed up as what it is, and only
// being fenced ends the attachment.
func TestRefusalsArePassedUp(t *testing.T) {
	t.Parallel()
	for _, refusal := range []error{chunk.ErrNoSpace, chunk.ErrDamaged, chunk.ErrInvalid} {
		c := newCluster(t, 8*mib, chunk.Layout{})
		v := c.attach()
		v.session.full = 20 * time.Millisecond
		c.mu.Lock()
		c.fault = func(*chunk.Op) (fault, error) { return carryOut, refusal }
		c.onRead = func(*wire.Read) error { return refusal }
		c.mu.Unlock()
		if err := v.WriteAt(t.Context(), make([]byte, 4096), 0); !errors.Is(err, refusal) {
			t.Errorf("write: %v, want %v", err, refusal)
		}
		if err := v.ReadAt(t.Context(), make([]byte, 4096), 0); !errors.Is(err, refusal) {
			t.Errorf("read: %v, want %v", err, refusal)
		}
		if err := v.WriteAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, refusal) {
			t.Errorf("write of a part of a block: %v, want %v", err, refusal)
		}
		if err := v.Sync(t.Context()); err != nil {
			t.Errorf("sync after %v: %v", refusal, err)
		}
	}
}

// A full chunkserver is asked again for a while: the copyset may go on without it.
func TestFullChunkserverIsAskedAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 8*mib, chunk.Layout{})
	v := c.attach()
	refused := 0
	c.setFault(func(*chunk.Op) (fault, error) {
		if refused++; refused <= 3 {
			return carryOut, chunk.ErrNoSpace
		}
		return carryOut, nil
	})
	write(t, v, pattern(1, 4096), 0)
	c.mu.Lock()
	defer c.mu.Unlock()
	if refused != 4 {
		t.Errorf("asked %d times", refused)
	}
}

func TestFencedVolumeIsDetached(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 8*mib, chunk.Layout{})
	v := c.attach()
	second := c.attach()
	for range 2 {
		if err := v.WriteAt(t.Context(), make([]byte, 4096), 0); !errors.Is(err, ErrDetached) || !errors.Is(err, chunk.ErrFenced) {
			t.Errorf("write by a fenced volume: %v", err)
		}
	}
	if err := v.Sync(t.Context()); !errors.Is(err, ErrDetached) {
		t.Errorf("sync of a fenced volume: %v", err)
	}
	write(t, second, pattern(1, 4096), 0)
	if err := v.Close(t.Context()); err != nil {
		t.Errorf("closing a fenced volume: %v", err)
	}
}

func TestListAndStat(t *testing.T) {
	t.Parallel()
	s := newCluster(t, 8*mib, chunk.Layout{}).session()
	paths, err := s.List(t.Context())
	if err != nil || !cmp.Equal(paths, []string{"/v"}) {
		t.Errorf("list: %v, %v", paths, err)
	}
	vol, err := s.Stat(t.Context(), "/v", "")
	if err != nil || vol.Size != 8*mib {
		t.Errorf("stat: %+v, %v", vol, err)
	}
	if _, err := s.Stat(t.Context(), "/w", ""); !errors.Is(err, wire.ErrNotExist) {
		t.Errorf("stat of nothing: %v", err)
	}
	if _, err := s.Attach(t.Context(), "/w", "", false); !errors.Is(err, wire.ErrNotExist) {
		t.Errorf("attaching nothing: %v", err)
	}
	s.Close()
	if _, err := s.List(context.Background()); err == nil {
		t.Error("a closed session lists volumes")
	}
}
