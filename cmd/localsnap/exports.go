package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/nbd"
	"github.com/localsnap/localsnap/chunkserver/volume"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// closeTimeout bounds how long the last connection to an export waits for its
// volume to be given back. If it takes longer the cluster fences the volume.
const closeTimeout = time.Second

// volumes is where exports come from; in real life a volume.Session.
type volumes interface {
	List(ctx context.Context) ([]string, error)
	Stat(ctx context.Context, path, snapshot string) (wire.Volume, error)
	Attach(ctx context.Context, path, snapshot string, readOnly bool) (attached, error)
}

// attached is an open volume, as volume.Volume describes it.
type attached interface {
	Size() uint64
	ReadOnly() bool
	ReadAt(ctx context.Context, p []byte, off uint64) error
	WriteAt(ctx context.Context, p []byte, off uint64) error
	Sync(ctx context.Context) error
	Discard(ctx context.Context, off, n uint64) error
	Zero(ctx context.Context, off, n uint64) error
	Extents(ctx context.Context, off, n uint64) ([]volume.Extent, error)
	Close(ctx context.Context) error
}

// session makes a volume.Session volumes.
type session struct{ *volume.Session }

func (s session) Attach(ctx context.Context, path, snapshot string, readOnly bool) (attached, error) {
	v, err := s.Session.Attach(ctx, path, snapshot, readOnly)
	if err != nil {
		return nil, err
	}
	return v, nil
}

// exports offers volumes ("/path") and their snapshots ("/path@snapshot") over
// NBD. A volume has one writer, but a client of NBD may open several
// connections: all connections to an export share one attachment, which the
// first one opens and the last one closes.
type exports struct {
	volumes volumes

	mu   sync.Mutex
	open map[exportName]*attachment // guarded by mu
}

// attachment is the one attachment of an export. Its fields are guarded by
// exports.mu, except that volume does not change while connections have it.
type attachment struct {
	volume      attached
	connections int
	busy        chan struct{} // not nil while it is being opened or closed; closed afterwards
}

func newExports(v volumes) *exports {
	return &exports{volumes: v, open: make(map[exportName]*attachment)}
}

// exportName is the name of an export in its parts.
type exportName struct{ path, snapshot string }

// parseName takes a name apart. URIs swallow the first slash of a name, so it
// may be missing.
func parseName(name string) exportName {
	path, snapshot, _ := strings.Cut(name, "@")
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return exportName{path, snapshot}
}

// List returns the names of all exports: volumes, and snapshots.
func (e *exports) List(ctx context.Context) ([]string, error) {
	paths, err := e.volumes.List(ctx)
	return paths, nbdError(err)
}

// Stat describes an export.
func (e *exports) Stat(ctx context.Context, name string) (nbd.Info, error) {
	n := parseName(name)
	v, err := e.volumes.Stat(ctx, n.path, n.snapshot)
	if err != nil {
		return nbd.Info{}, nbdError(err)
	}
	return nbd.Info{Size: int64(v.Size), ReadOnly: v.ReadOnly || n.snapshot != ""}, nil
}

// Open attaches the export, or joins the connections that have it open. While
// another connection opens or closes it, it waits.
func (e *exports) Open(ctx context.Context, name string) (nbd.Device, error) {
	n := parseName(name)
	for {
		e.mu.Lock()
		a, ok := e.open[n]
		if ok && a.busy == nil {
			if a.volume.Sync(ctx) == nil {
				a.connections++
				e.mu.Unlock()
				return &device{exports: e, name: n, attachment: a, volume: a.volume}, nil
			}
			// The cluster took it away. It stays with the connections that
			// have yet to notice; this one begins anew.
			ok = false
		}
		if !ok {
			a = &attachment{busy: make(chan struct{})}
			e.open[n] = a
			e.mu.Unlock()
			return e.attach(ctx, n, a)
		}
		busy := a.busy
		e.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// attach opens the volume for the first of its connections.
func (e *exports) attach(ctx context.Context, n exportName, a *attachment) (nbd.Device, error) {
	v, err := e.attachVolume(ctx, n)
	e.mu.Lock()
	defer e.mu.Unlock()
	close(a.busy)
	a.busy = nil
	if err != nil {
		delete(e.open, n)
		return nil, nbdError(err)
	}
	a.volume, a.connections = v, 1
	return &device{exports: e, name: n, attachment: a, volume: v}, nil
}

func (e *exports) attachVolume(ctx context.Context, n exportName) (attached, error) {
	readOnly := n.snapshot != ""
	if !readOnly {
		v, err := e.volumes.Stat(ctx, n.path, "")
		if err != nil {
			return nil, err
		}
		readOnly = v.ReadOnly
	}
	return e.volumes.Attach(ctx, n.path, n.snapshot, readOnly)
}

// leave ends one connection's use of an attachment.
func (e *exports) leave(n exportName, a *attachment) error {
	e.mu.Lock()
	a.connections--
	if a.connections > 0 {
		e.mu.Unlock()
		return nil
	}
	a.busy = make(chan struct{})
	e.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := a.volume.Close(ctx)

	e.mu.Lock()
	defer e.mu.Unlock()
	close(a.busy)
	if e.open[n] == a {
		delete(e.open, n)
	}
	return nbdError(err)
}

// device is one connection's use of an attachment.
type device struct {
	exports    *exports
	name       exportName
	attachment *attachment
	volume     attached
}

func (d *device) Info() nbd.Info {
	return nbd.Info{Size: int64(d.volume.Size()), ReadOnly: d.volume.ReadOnly()}
}

func (d *device) ReadAt(ctx context.Context, p []byte, off int64) error {
	return nbdError(d.volume.ReadAt(ctx, p, uint64(off)))
}

func (d *device) WriteAt(ctx context.Context, p []byte, off int64) error {
	return nbdError(d.volume.WriteAt(ctx, p, uint64(off)))
}

func (d *device) Flush(ctx context.Context) error {
	return nbdError(d.volume.Sync(ctx))
}

func (d *device) Discard(ctx context.Context, off, n int64) error {
	return nbdError(d.volume.Discard(ctx, uint64(off), uint64(n)))
}

// Zero gives up the space even without punch: volumes are thin, and no write
// to them is promised space.
func (d *device) Zero(ctx context.Context, off, n int64, _ bool) error {
	return nbdError(d.volume.Zero(ctx, uint64(off), uint64(n)))
}

func (d *device) Extents(ctx context.Context, off, n int64) ([]nbd.Extent, error) {
	runs, err := d.volume.Extents(ctx, uint64(off), uint64(n))
	if err != nil {
		return nil, nbdError(err)
	}
	extents := make([]nbd.Extent, len(runs))
	for i, run := range runs {
		extents[i] = nbd.Extent{Length: int64(run.Len), Hole: !run.Data, Zero: !run.Data}
	}
	return extents, nil
}

func (d *device) Close() error { return d.exports.leave(d.name, d.attachment) }

// meanings says what errors of volumes mean to clients of NBD. Any other error
// is an input/output error to them.
var meanings = []struct{ err, meaning error }{
	{chunk.ErrInvalid, nbd.ErrInvalid},
	{chunk.ErrNoSpace, nbd.ErrNoSpace},
	{wire.ErrReadOnly, nbd.ErrReadOnly},
	{wire.ErrNotExist, nbd.ErrUnknownExport},
	{wire.ErrOccupied, nbd.ErrBusy},
	{volume.ErrDetached, nbd.ErrShutdown},
}

// nbdError gives an error its meaning and keeps its text.
func nbdError(err error) error {
	for _, m := range meanings {
		if errors.Is(err, m.err) {
			return fmt.Errorf("%w: %w", m.meaning, err)
		}
	}
	return err
}
