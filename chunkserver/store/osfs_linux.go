package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OSFS is the directory dir of the machine's file system.
func OSFS(dir string) FS { return osFS(dir) }

type osFS string

func (d osFS) path(name string) string { return filepath.Join(string(d), filepath.FromSlash(name)) }

func (d osFS) Open(name string) (File, error) { return d.open(name, os.O_RDWR) }

func (d osFS) Create(name string) (File, error) {
	return d.open(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}

func (d osFS) open(name string, flags int) (File, error) {
	f, err := os.OpenFile(d.path(name), flags, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d osFS) Mkdir(name string) error {
	err := os.Mkdir(d.path(name), 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func (d osFS) Rename(oldname, newname string) error {
	return os.Rename(d.path(oldname), d.path(newname))
}

func (d osFS) Remove(name string) error { return os.Remove(d.path(name)) }

func (d osFS) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(d.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (d osFS) SyncDir(dir string) error {
	f, err := os.Open(d.path(dir))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (d osFS) Lock(name string) (func() error, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another process", string(d))
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f.Close, nil
}

func (d osFS) Free() (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(string(d), &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", string(d), err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

func (d osFS) Database(name string) (*os.File, error) {
	return os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE, 0o600)
}

// maxOpenFiles is the number of files that the process may have open.
func maxOpenFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 // what Linux grants at least
	}
	return int(min(limit.Cur, math.MaxInt32))
}

// maxBuffers is the number of buffers that Linux takes in one pwritev.
const maxBuffers = 1024

type osFile struct{ f *os.File }

func (o osFile) ReadAt(p []byte, off int64) error {
	n, err := o.f.ReadAt(p, off)
	if err == io.EOF {
		clear(p[n:])
		return nil
	}
	return err
}

func (o osFile) WriteAt(off int64, buffers ...[]byte) error {
	if len(buffers) == 1 {
		_, err := o.f.WriteAt(buffers[0], off)
		return err
	}
	for len(buffers) > 0 {
		some := buffers[:min(len(buffers), maxBuffers)]
		n, err := unix.Pwritev(int(o.f.Fd()), some, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "pwritev", Path: o.f.Name(), Err: err}
		}
		off += int64(n)
		buffers = skip(buffers, n)
	}
	return nil
}

// skip drops the first n bytes of buffers.
func skip(buffers [][]byte, n int) [][]byte {
	for len(buffers) > 0 && n >= len(buffers[0]) {
		n -= len(buffers[0])
		buffers = buffers[1:]
	}
	if n == 0 {
		return buffers
	}
	rest := append([][]byte(nil), buffers...)
	rest[0] = rest[0][n:]
	return rest
}

func (o osFile) CopyTo(dst File, off, n int64) error {
	to, ok := dst.(osFile)
	if !ok {
		return fmt.Errorf("copy from %s: %w", o.f.Name(), errors.ErrUnsupported)
	}
	for n > 0 {
		from, at := off, off
		copied, err := unix.CopyFileRange(int(o.f.Fd()), &from, int(to.f.Fd()), &at, int(n), 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ENOSYS || err == unix.EOPNOTSUPP || err == unix.EXDEV || err == unix.EINVAL:
			return copyThrough(to.f, o.f, off, n)
		case err != nil:
			return &os.PathError{Op: "copy_file_range", Path: o.f.Name(), Err: err}
		case copied == 0:
			return &os.PathError{Op: "copy_file_range", Path: o.f.Name(), Err: io.ErrUnexpectedEOF}
		}
		off, n = off+int64(copied), n-int64(copied)
	}
	return nil
}

// copyThrough copies by reading and writing.
func copyThrough(dst, src *os.File, off, n int64) error {
	_, err := io.Copy(io.NewOffsetWriter(dst, off), io.NewSectionReader(src, off, n))
	return err
}

func (o osFile) Punch(off, n int64) error {
	err := unix.Fallocate(int(o.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == unix.EOPNOTSUPP {
		return nil // the space stays taken, that is all
	}
	if err != nil {
		return &os.PathError{Op: "punch", Path: o.f.Name(), Err: err}
	}
	return nil
}

func (o osFile) Sync() error {
	for {
		err := unix.Fdatasync(int(o.f.Fd()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "fdatasync", Path: o.f.Name(), Err: err}
		}
		return nil
	}
}

func (o osFile) Uncache(off, n int64) {
	// Advice only: a kernel that keeps the pages costs the check its
	// sharpness, nothing else.
	_ = unix.Fadvise(int(o.f.Fd()), off, n, unix.FADV_DONTNEED)
}

func (o osFile) Size() (int64, error) {
	st, err := o.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (o osFile) Close() error { return o.f.Close() }
