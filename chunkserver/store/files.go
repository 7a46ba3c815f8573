package store

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// files holds the files of layers open. One that was written stays open until
// it is synced: a file that is opened later may never be told that writing
// back has failed.
type files struct {
	fs    FS
	limit int

	// syncing is held from the moment that files are no longer marked dirty
	// until they are synced. Before mu.
	syncing sync.Mutex

	mu    sync.RWMutex
	open  map[layerID]*layerFile
	dirty map[*layerFile]struct{}     // Invariant: all files written since they were last synced
	dirs  map[string]struct{}         // directories whose entries are not synced
	made  map[chunk.VolumeID]struct{} // directories that are known to exist
}

type layerFile struct {
	File
	id    layerID
	used  atomic.Bool  // since it was last considered for closing
	users atomic.Int64 // grows only under files.mu; the one that takes it below 0 closes the file
}

func newFiles(fs FS, limit int) *files {
	return &files{
		fs:    fs,
		limit: limit,
		open:  make(map[layerID]*layerFile),
		dirty: make(map[*layerFile]struct{}),
		dirs:  make(map[string]struct{}),
		made:  make(map[chunk.VolumeID]struct{}),
	}
}

// reading returns the file of a layer; release must follow. The error is
// fs.ErrNotExist if there is none.
func (f *files) reading(id layerID) (*layerFile, error) {
	f.mu.RLock()
	file := f.open[id]
	if file != nil {
		file.users.Add(1)
		f.mu.RUnlock()
		if !file.used.Load() {
			file.used.Store(true)
		}
		return file, nil
	}
	f.mu.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.use(id, false)
}

// writing returns the file of a layer, made if need be; wrote must follow.
func (f *files) writing(id layerID) (*layerFile, error) {
	if err := f.limitDirty(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.use(id, true)
}

// use opens a file unless it is open. mu must be held.
func (f *files) use(id layerID, create bool) (*layerFile, error) {
	file := f.open[id]
	if file == nil {
		f.closeIdle()
		opened, err := f.fs.Open(id.name())
		if create && errors.Is(err, fs.ErrNotExist) {
			opened, err = f.create(id)
		}
		if err != nil {
			return nil, err
		}
		if create {
			// Even if it is there: the process that made it may have been
			// killed before it synced the directories.
			f.dirs[volumeDir(id.ref.Volume)] = struct{}{}
			f.dirs[layerDir] = struct{}{}
		}
		file = &layerFile{File: opened, id: id}
		f.open[id] = file
	}
	file.users.Add(1)
	file.used.Store(true)
	return file, nil
}

// create makes a file and the directory for it. mu must be held.
func (f *files) create(id layerID) (File, error) {
	dir := volumeDir(id.ref.Volume)
	if _, ok := f.made[id.ref.Volume]; !ok {
		if err := f.fs.Mkdir(dir); err != nil {
			return nil, err
		}
		f.made[id.ref.Volume] = struct{}{}
	}
	return f.fs.Create(id.name())
}

// release ends a use for reading.
func (f *files) release(file *layerFile) {
	if file.users.Add(-1) < 0 {
		file.Close()
	}
}

// wrote ends a use for writing. The file is marked dirty only now: a sync
// that ran meanwhile may have missed what was written.
func (f *files) wrote(file *layerFile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open[file.id] == file {
		f.dirty[file] = struct{}{}
	}
	f.release(file)
}

// closeIdle makes room for one more file by closing those that are not dirty,
// have no users, and were not used lately. mu must be held.
func (f *files) closeIdle() {
	for range 2 {
		for id, file := range f.open {
			if len(f.open) < f.limit {
				return
			}
			if _, dirty := f.dirty[file]; !dirty && file.users.Load() == 0 && !file.used.Swap(false) {
				delete(f.open, id)
				file.Close()
			}
		}
	}
}

// limitDirty syncs all files if too many are dirty.
func (f *files) limitDirty() error {
	if f.dirtyFiles() < f.limit {
		return nil
	}
	return f.sync()
}

func (f *files) dirtyFiles() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.dirty)
}

// syncers is the number of files that are synced at a time. More would be done
// sooner, as the file system's own journal commits for all of them together;
// but whoever waits for a sync of our journal meanwhile would wait behind all.
const syncers = 2

// sync makes durable everything that was written before it was called.
func (f *files) sync() error {
	f.syncing.Lock()
	defer f.syncing.Unlock()
	f.mu.Lock()
	work := make(chan *layerFile, len(f.dirty))
	for file := range f.dirty {
		file.users.Add(1) // keeps it open
		work <- file
	}
	close(work)
	clear(f.dirty)
	dirs := f.dirs
	f.dirs = make(map[string]struct{})
	f.mu.Unlock()

	errs := make(chan error, syncers)
	for range syncers {
		go func() {
			var failure error
			for file := range work {
				if err := file.Sync(); err != nil {
					failure = fmt.Errorf("sync %v: %w", file.id, err)
				}
				f.release(file)
			}
			errs <- failure
		}()
	}
	var failure error
	for range syncers {
		failure = errors.Join(failure, <-errs)
	}
	for dir := range dirs {
		if err := f.fs.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failure = errors.Join(failure, fmt.Errorf("sync directory %s: %w", dir, err))
		}
	}
	return failure
}

// remove deletes the file of a layer, and the volume's directory with the
// last one. It is fine if there is none.
func (f *files) remove(id layerID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if file := f.open[id]; file != nil {
		delete(f.open, id)
		delete(f.dirty, file)
		f.release(file) // the last user closes it
	}
	if err := f.fs.Remove(id.name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %v: %w", id, err)
	}
	dir := volumeDir(id.ref.Volume)
	f.dirs[dir] = struct{}{}
	if f.fs.Remove(dir) == nil { // it fails while other files are in it
		delete(f.made, id.ref.Volume)
		f.dirs[layerDir] = struct{}{}
	}
	return nil
}

// close closes all files. Nobody may use any.
func (f *files) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var failure error
	for _, file := range f.open {
		failure = errors.Join(failure, file.Close())
	}
	clear(f.open)
	clear(f.dirty)
	return failure
}
