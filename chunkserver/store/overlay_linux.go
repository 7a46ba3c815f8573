package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// overlay is the directory of a stopped store, for reading. Nothing in it is
// changed: what is written stays in memory, and what is done to names is
// forgotten, as recovery does not come back to names that it has changed. It
// is for one goroutine.
type overlay struct {
	osFS
	written map[string]pages // by file
}

// pages are the blocks of a file that were written, by number.
type pages map[int64]*[chunk.BlockSize]byte

func newOverlay(dir string) *overlay {
	return &overlay{osFS: osFS(dir), written: make(map[string]pages)}
}

func (o *overlay) Open(name string) (File, error) {
	f, err := os.Open(o.path(name))
	written := o.written[name]
	if errors.Is(err, fs.ErrNotExist) && written != nil {
		return &overlayFile{nil, written}, nil
	}
	if err != nil {
		return nil, err
	}
	if written == nil {
		written = make(pages)
		o.written[name] = written
	}
	return &overlayFile{&osFile{f}, written}, nil
}

func (o *overlay) Create(name string) (File, error) {
	o.written[name] = make(pages)
	return &overlayFile{nil, o.written[name]}, nil
}

func (*overlay) Mkdir(string) error          { return nil }
func (*overlay) Rename(string, string) error { return nil }
func (*overlay) Remove(string) error         { return nil }
func (*overlay) SyncDir(string) error        { return nil }

func (o *overlay) Database(name string) (*os.File, error) { return os.Open(o.path(name)) }

// Lock keeps stores, but not other inspections, from using the directory.
func (o *overlay) Lock(name string) (func() error, error) {
	f, err := os.Open(o.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return func() error { return nil }, nil // no store can have been opened here
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use: stop its chunkserver first", string(o.osFS))
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f.Close, nil
}

// overlayFile is a file of which some blocks have been written.
type overlayFile struct {
	base    *osFile // nil if there is none in the directory
	written pages
}

func (f *overlayFile) ReadAt(p []byte, off int64) error {
	if f.base == nil {
		clear(p)
	} else if err := f.base.ReadAt(p, off); err != nil {
		return err
	}
	if len(f.written) == 0 {
		return nil
	}
	for at := off &^ (chunk.BlockSize - 1); at < off+int64(len(p)); at += chunk.BlockSize {
		if page := f.written[at/chunk.BlockSize]; page != nil {
			copy(p[max(0, at-off):], page[max(0, off-at):])
		}
	}
	return nil
}

// WriteAt takes whole blocks only, as layers are written.
func (f *overlayFile) WriteAt(off int64, buffers ...[]byte) error {
	for _, b := range buffers {
		if off%chunk.BlockSize != 0 || len(b)%chunk.BlockSize != 0 {
			return fmt.Errorf("%w: %d bytes at %d are not whole blocks", chunk.ErrInvalid, len(b), off)
		}
		for ; len(b) > 0; b, off = b[chunk.BlockSize:], off+chunk.BlockSize {
			page := [chunk.BlockSize]byte(b)
			f.written[off/chunk.BlockSize] = &page
		}
	}
	return nil
}

func (f *overlayFile) CopyTo(dst File, off, n int64) error {
	p := make([]byte, n)
	if err := f.ReadAt(p, off); err != nil {
		return err
	}
	return dst.WriteAt(off, p)
}

func (f *overlayFile) Punch(off, n int64) error { return nil }
func (f *overlayFile) Sync() error              { return nil }

func (f *overlayFile) Uncache(off, n int64) {
	if f.base != nil {
		f.base.Uncache(off, n)
	}
}

func (f *overlayFile) Size() (int64, error) {
	if f.base == nil {
		return 0, nil
	}
	return f.base.Size()
}

func (f *overlayFile) Close() error {
	if f.base == nil {
		return nil
	}
	return f.base.Close()
}
