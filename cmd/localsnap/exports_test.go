package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/nbd"
	"github.com/localsnap/localsnap/chunkserver/volume"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// fakeVolumes attaches every path that stat knows and keeps a diary.
type fakeVolumes struct {
	stat map[string]wire.Volume

	mu      sync.Mutex
	diary   []string
	fail    []error       // of the next attachments
	opening chan struct{} // if not nil, attachments wait for it
	closing chan struct{} // if not nil, closing waits for it
	last    *fakeVolume   // the latest attachment
}

func (f *fakeVolumes) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.diary = append(f.diary, fmt.Sprintf(format, args...))
}

func (f *fakeVolumes) List(context.Context) ([]string, error) { return []string{"/a", "/b"}, nil }

func (f *fakeVolumes) Stat(_ context.Context, path, snapshot string) (wire.Volume, error) {
	v, ok := f.stat[path]
	if !ok {
		return wire.Volume{}, fmt.Errorf("stat %s: %w", path, wire.ErrNotExist)
	}
	return v, nil
}

func (f *fakeVolumes) Attach(ctx context.Context, path, snapshot string, readOnly bool) (attached, error) {
	f.note("attach %s@%s %v", path, snapshot, readOnly)
	if f.opening != nil {
		select {
		case <-f.opening:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.fail) > 0 {
		err := f.fail[0]
		f.fail = f.fail[1:]
		return nil, err
	}
	f.last = &fakeVolume{world: f, name: path + "@" + snapshot, readOnly: readOnly}
	return f.last, nil
}

// fakeVolume notes what it is asked and answers with err.
type fakeVolume struct {
	world    *fakeVolumes
	name     string
	readOnly bool
	err      error
}

func (v *fakeVolume) Size() uint64   { return 4096 }
func (v *fakeVolume) ReadOnly() bool { return v.readOnly }

func (v *fakeVolume) ReadAt(_ context.Context, p []byte, off uint64) error {
	v.world.note("read %d %d", off, len(p))
	return v.err
}

func (v *fakeVolume) WriteAt(_ context.Context, p []byte, off uint64) error {
	v.world.note("write %d %d", off, len(p))
	return v.err
}

func (v *fakeVolume) Sync(context.Context) error { return v.err }

func (v *fakeVolume) Discard(_ context.Context, off, n uint64) error {
	v.world.note("discard %d %d", off, n)
	return v.err
}

func (v *fakeVolume) Zero(_ context.Context, off, n uint64) error {
	v.world.note("zero %d %d", off, n)
	return v.err
}

func (v *fakeVolume) Extents(context.Context, uint64, uint64) ([]volume.Extent, error) {
	return []volume.Extent{{Len: 10, Data: true}, {Len: 20}}, v.err
}

func (v *fakeVolume) Close(context.Context) error {
	v.world.note("close %s", v.name)
	if v.world.closing != nil {
		<-v.world.closing
	}
	return nil
}

func newFakeVolumes() *fakeVolumes {
	return &fakeVolumes{stat: map[string]wire.Volume{"/a": {Size: 4096}, "/b": {Size: 4096}, "/frozen": {Size: 4096, ReadOnly: true}}}
}

func (f *fakeVolumes) expect(t *testing.T, want ...string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if diff := cmp.Diff(want, f.diary); diff != "" {
		t.Errorf("what volumes were asked (-want +got):\n%s", diff)
	}
}

func mustOpen(t *testing.T, e *exports, name string) nbd.Device {
	t.Helper()
	d, err := e.Open(t.Context(), name)
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	return d
}

func mustClose(t *testing.T, d io.Closer) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestExportsAttach(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, want string }{
		{"/a", "attach /a@ false"},
		{"a", "attach /a@ false"},
		{"/a@monday", "attach /a@monday true"},
		{"a@monday", "attach /a@monday true"},
		{"/frozen", "attach /frozen@ true"},
	} {
		f := newFakeVolumes()
		mustOpen(t, newExports(f), tt.name)
		f.expect(t, tt.want)
	}
}

// Steps are "+name" (a connection opens) and "-name" (the oldest one closes).
func TestExportsShare(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		steps string
		want  []string
	}{
		{"+/a +/a +/a", []string{"attach /a@ false"}},
		{"+/a +a -/a", []string{"attach /a@ false"}},
		{"+/a +a -/a -/a", []string{"attach /a@ false", "close /a@"}},
		{"+/a -/a +/a", []string{"attach /a@ false", "close /a@", "attach /a@ false"}},
		{"+/a +/b -/a", []string{"attach /a@ false", "attach /b@ false", "close /a@"}},
		{"+/a +/a@s -/a@s", []string{"attach /a@ false", "attach /a@s true", "close /a@s"}},
	} {
		t.Run(tt.steps, func(t *testing.T) {
			t.Parallel()
			f := newFakeVolumes()
			e := newExports(f)
			open := map[exportName][]nbd.Device{}
			for _, step := range strings.Fields(tt.steps) {
				n := parseName(step[1:])
				if step[0] == '+' {
					open[n] = append(open[n], mustOpen(t, e, step[1:]))
					continue
				}
				mustClose(t, open[n][0])
				open[n] = open[n][1:]
			}
			f.expect(t, tt.want...)
		})
	}
}

func TestExportsOpenWaitsForOpening(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeVolumes()
		f.opening = make(chan struct{})
		e := newExports(f)
		opened := make(chan error)
		for range 3 {
			go func() {
				_, err := e.Open(t.Context(), "/a")
				opened <- err
			}()
		}
		synctest.Wait()
		f.expect(t, "attach /a@ false")
		close(f.opening)
		for range 3 {
			if err := <-opened; err != nil {
				t.Error(err)
			}
		}
		f.expect(t, "attach /a@ false")
	})
}

func TestExportsOpenAfterFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeVolumes()
		f.opening = make(chan struct{})
		f.fail = []error{wire.ErrOccupied}
		e := newExports(f)
		opened := make(chan error)
		for range 2 {
			go func() {
				_, err := e.Open(t.Context(), "/a")
				opened <- err
			}()
		}
		synctest.Wait()
		close(f.opening)
		first, second := <-opened, <-opened
		if errors.Is(first, nbd.ErrBusy) == errors.Is(second, nbd.ErrBusy) || first != nil && second != nil {
			t.Errorf("got %v and %v, want one to fail and the other to try for itself", first, second)
		}
		f.expect(t, "attach /a@ false", "attach /a@ false")
	})
}

func TestExportsOpenWaitsForClosing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeVolumes()
		f.closing = make(chan struct{})
		e := newExports(f)
		first := mustOpen(t, e, "/a")
		closed := make(chan error)
		go func() { closed <- first.Close() }()
		synctest.Wait()

		impatient, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := e.Open(impatient, "/a"); !errors.Is(err, context.Canceled) {
			t.Errorf("open while closing, without patience: %v", err)
		}
		opened := make(chan error)
		go func() {
			_, err := e.Open(t.Context(), "/a")
			opened <- err
		}()
		synctest.Wait()
		f.expect(t, "attach /a@ false", "close /a@")
		close(f.closing)
		if err := errors.Join(<-closed, <-opened); err != nil {
			t.Error(err)
		}
		f.expect(t, "attach /a@ false", "close /a@", "attach /a@ false")
	})
}

func TestExportsReplaceDetached(t *testing.T) {
	t.Parallel()
	f := newFakeVolumes()
	e := newExports(f)
	old := mustOpen(t, e, "/a")
	f.last.err = volume.ErrDetached
	if err := old.Flush(t.Context()); !errors.Is(err, nbd.ErrShutdown) {
		t.Errorf("flush of a detached volume: %v", err)
	}
	mustOpen(t, e, "/a")
	mustClose(t, old)
	mustOpen(t, e, "/a") // joins the second
	f.expect(t, "attach /a@ false", "attach /a@ false", "close /a@")
}

func TestDevice(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	f := newFakeVolumes()
	d := mustOpen(t, newExports(f), "/a")
	if diff := cmp.Diff(nbd.Info{Size: 4096}, d.Info()); diff != "" {
		t.Error(diff)
	}
	extents, err := d.Extents(ctx, 0, 30)
	if diff := cmp.Diff([]nbd.Extent{{Length: 10}, {Length: 20, Hole: true, Zero: true}}, extents); diff != "" || err != nil {
		t.Error(diff, err)
	}
	err = errors.Join(d.ReadAt(ctx, make([]byte, 1), 2), d.WriteAt(ctx, make([]byte, 3), 4),
		d.Discard(ctx, 5, 6), d.Zero(ctx, 7, 8, false), d.Zero(ctx, 9, 10, true), d.Flush(ctx))
	if err != nil {
		t.Error(err)
	}
	f.expect(t, "attach /a@ false", "read 2 1", "write 4 3", "discard 5 6", "zero 7 8", "zero 9 10")

	f.last.err = chunk.ErrNoSpace
	_, extentsErr := d.Extents(ctx, 0, 30)
	for i, err := range []error{extentsErr, d.ReadAt(ctx, nil, 0), d.WriteAt(ctx, nil, 0),
		d.Discard(ctx, 0, 1), d.Zero(ctx, 0, 1, true), d.Flush(ctx)} {
		if !errors.Is(err, nbd.ErrNoSpace) {
			t.Errorf("operation %d: error %v has not got its meaning", i, err)
		}
	}
}

func TestExportsStat(t *testing.T) {
	t.Parallel()
	e := newExports(newFakeVolumes())
	for name, readOnly := range map[string]bool{"/a": false, "a@s": true, "/frozen": true} {
		info, err := e.Stat(t.Context(), name)
		if diff := cmp.Diff(nbd.Info{Size: 4096, ReadOnly: readOnly}, info); diff != "" || err != nil {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
	if _, err := e.Stat(t.Context(), "/none"); !errors.Is(err, nbd.ErrUnknownExport) {
		t.Errorf("stat of nothing: %v", err)
	}
	if _, err := e.Open(t.Context(), "/none"); !errors.Is(err, nbd.ErrUnknownExport) {
		t.Errorf("open of nothing: %v", err)
	}
	names, err := e.List(t.Context())
	if diff := cmp.Diff([]string{"/a", "/b"}, names); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestNBDError(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ err, want error }{
		{chunk.ErrInvalid, nbd.ErrInvalid},
		{chunk.ErrNoSpace, nbd.ErrNoSpace},
		{wire.ErrReadOnly, nbd.ErrReadOnly},
		{wire.ErrNotExist, nbd.ErrUnknownExport},
		{wire.ErrOccupied, nbd.ErrBusy},
		{volume.ErrDetached, nbd.ErrShutdown},
	} {
		got := nbdError(fmt.Errorf("write: %w", tt.err))
		if !errors.Is(got, tt.want) || !errors.Is(got, tt.err) {
			t.Errorf("%v became %v, want a %v", tt.err, got, tt.want)
		}
	}
	if got := nbdError(chunk.ErrDamaged); got != chunk.ErrDamaged {
		t.Errorf("an error without a meaning became %v", got)
	}
	if got := nbdError(nil); got != nil {
		t.Errorf("nil became %v", got)
	}
}
