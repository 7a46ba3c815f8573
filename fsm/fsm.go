// Package fsm is the metadata of a cluster: a deterministic state machine over
// one bbolt file. It knows nothing of consensus, clocks or randomness; equal
// logs give equal states, however they are cut into batches.
//
// # The story
//
// Names lead to directories and volumes; both are numbered from one counter,
// and a number is never used again. A volume has a sequence number, at which
// its data is written. [CreateSnapshot] freezes the present number and goes on
// with the next, [Recover] lets the volume go on from an older lineage of
// numbers, [Clone] makes a volume whose views continue in those of a snapshot
// (see package chunk). None of them touches data: what they leave to be done
// is work for the leader, which finds it in the state ([State.Flattening],
// [State.Purges], [State.OldestTrash], [State.Swept]) and reports it done by a
// command. A leader that is replaced leaves nothing behind that its successor
// can't see.
//
// A deleted volume lies in /RecycleBin until it expires; then it is purging: it
// has no name, and is gone when its last chunk is. A deleted snapshot keeps its
// name until its data is purged, and stays readable for those who read it.
//
// # Invariants
//
// [FSM.Check] verifies these, and every test ends with it.
//
//   - A clone's parent exists and is neither deleting nor hidden without use.
//   - A view reaches through at most chunk.MaxDepth volumes.
//   - A volume has one writer or any number of readers.
//   - A volume in the recycle bin, or purging, has no snapshot and no attachment.
//   - A hidden snapshot has a clone.
//   - What is garbage belongs to a volume that is found to be purged, and no
//     view of it is left.
//   - A path has at most one clone task and one recover task.
//   - Every index and every count is what the records say (see index.go and rank.go).
//
// # Rules for commands
//
// A command checks its values, then existence, then ownership, then state, and
// refuses with an [*Error] before it has changed anything. Who repeats a
// command that took effect gets the same answer, not a refusal. Paths and names
// are keys here and are never used as names of files.
package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
)

// FSM is the state machine. Its methods may be called concurrently, but Apply
// and Restore by one goroutine at a time.
type FSM struct {
	path    string
	applied atomic.Uint64

	mu sync.RWMutex // held for writing while db is replaced
	db *bbolt.DB
}

// Entry is a command at its place in the log.
type Entry struct {
	Index uint64
	Data  []byte // see Encode
}

// Result is the answer to a command: what its documentation promises as Value,
// or an *Error. The zero Result answers an entry that had been applied before.
type Result struct {
	Value any
	Err   error
}

// Open opens the state in the file at path, and makes it if there is none.
func Open(path string) (*FSM, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := create(path); err != nil {
			return nil, fmt.Errorf("create metadata: %w", err)
		}
	}
	f := &FSM{path: path}
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

// open opens the file that is in place.
func (f *FSM) open() error {
	db, err := openFile(f.path, false)
	if err != nil {
		return fmt.Errorf("open metadata: %w", err)
	}
	f.db = db
	return db.View(func(tx *bbolt.Tx) error {
		f.applied.Store((&State{tx: tx}).applied())
		return nil
	})
}

// format is the version of the file's layout.
const format uint64 = 2

var keyFormat = []byte("format")

// openFile opens a bbolt file and makes sure that it is whole and of our format.
func openFile(path string, readOnly bool) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:  time.Second, // another process has it
		ReadOnly: readOnly,
		// An open view would hold up Apply when the file outgrows its
		// mapping; a mapping costs nothing until it is used.
		InitialMmapSize: 1 << 30,
		FreelistType:    bbolt.FreelistMapType,
		NoFreelistSync:  true,
	})
	if err != nil {
		return nil, err
	}
	err = db.View(func(tx *bbolt.Tx) error {
		if info, err := os.Stat(path); err != nil || info.Size() < tx.Size() {
			return errors.Join(err, fmt.Errorf("%s is shorter than %d bytes", path, tx.Size()))
		}
		meta := tx.Bucket([]byte(bucketMeta))
		if meta == nil {
			return fmt.Errorf("%s holds no metadata", path)
		}
		if got := meta.Get(keyFormat); string(got) != number(format) {
			return fmt.Errorf("%s has format %x, this version knows %x", path, got, number(format))
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// create makes the file of an empty state.
func create(path string) error {
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	db, err := bbolt.Open(tmp, 0o600, &bbolt.Options{NoFreelistSync: true})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		s := &State{tx: tx}
		s.setApplied(0)
		s.makeDirectories(0)
		return s.bucket(bucketMeta).Put(keyFormat, []byte(number(format)))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	return install(tmp, path)
}

// install puts a synced file durably into the place of path.
func install(tmp, path string) error {
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Close waits for views to end and closes the file.
func (f *FSM) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.db.Close()
}

// Apply carries out commands in one durable transaction, and answers each.
// Entries up to Applied are skipped. It panics if the file fails or if it meets
// a command that it doesn't understand: to continue would be to diverge.
func (f *FSM) Apply(entries []Entry) []Result {
	f.mu.RLock()
	defer f.mu.RUnlock()
	results := make([]Result, len(entries))
	applied := f.applied.Load()
	err := f.db.Update(func(tx *bbolt.Tx) error {
		for i, e := range entries {
			if e.Index <= applied {
				continue
			}
			c, err := decode(e.Data)
			if err != nil {
				panic(fmt.Errorf("fsm: entry %d: %w", e.Index, err))
			}
			results[i].Value, results[i].Err = c.apply(&State{tx: tx, index: e.Index})
			applied = e.Index
		}
		(&State{tx: tx}).setApplied(applied)
		return nil
	})
	if err != nil {
		panic(fmt.Errorf("fsm: commit up to entry %d: %w", applied, err))
	}
	f.applied.Store(applied)
	return results
}

// Applied is the index of the last entry applied.
func (f *FSM) Applied() uint64 { return f.applied.Load() }

// View calls fn with a consistent state that it may query until it returns. It
// returns what fn returns.
func (f *FSM) View(fn func(*State) error) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.db.View(func(tx *bbolt.Tx) error { return fn(&State{tx: tx}) })
}

// WriteTo writes a consistent copy of the state that includes everything
// applied before the call. Apply goes on meanwhile.
func (f *FSM) WriteTo(w io.Writer) (n int64, err error) {
	err = f.View(func(s *State) error {
		n, err = s.tx.WriteTo(w)
		return err
	})
	return n, err
}

// Restore replaces the state by a copy that WriteTo made. If it fails before
// the copy is known to be whole, the state is as it was.
func (f *FSM) Restore(r io.Reader) error {
	tmp := f.path + ".tmp"
	if err := receive(r, tmp); err != nil {
		return fmt.Errorf("restore metadata: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.db.Close(); err != nil {
		return fmt.Errorf("restore metadata: %w", err)
	}
	if err := install(tmp, f.path); err != nil {
		return fmt.Errorf("restore metadata: %w", err)
	}
	return f.open()
}

// receive writes a copy to a file of its own and makes sure that it is whole.
func receive(r io.Reader, tmp string) error {
	file, err := os.Create(tmp)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, r)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	// Read-only, bbolt looks at no page before openFile knows that all exist.
	db, err := openFile(tmp, true)
	if err != nil {
		return err
	}
	return db.Close()
}

// Digest is a hash of the whole state: equal on all servers that have applied
// the same entries.
func (f *FSM) Digest() (digest [sha256.Size]byte, err error) {
	hash := sha256.New()
	write := func(p []byte) {
		hash.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		hash.Write(p)
	}
	err = f.View(func(s *State) error {
		for _, name := range buckets {
			write([]byte(name))
			must(s.bucket(name).ForEach(func(k, v []byte) error {
				write(k)
				write(v)
				return nil
			}))
		}
		return nil
	})
	hash.Sum(digest[:0])
	return digest, err
}
