package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// directory is a data directory that this process has to itself.
type directory struct {
	path string
	lock *os.File
}

// claim makes the directory if it is missing and locks it. The lock goes with
// the process, however that ends.
func claim(path string) (*directory, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, "process.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another localsnap process: stop that one, or choose another --data", path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &directory{path, lock}, nil
}

// release gives the directory to whoever claims it next.
func (d *directory) release() error { return d.lock.Close() }
