package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/localsnap/localsnap/fsm"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// files is what a member keeps in its directory.
type files struct {
	disk      *guard // raft.db
	snapshots raft.SnapshotStore
	state     *fsm.FSM // fsm.db
}

// openFiles opens the directory of a member, or makes it.
func openFiles(c Config) (_ *files, err error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	db, err := raftboltdb.New(raftboltdb.Options{
		Path: filepath.Join(c.Dir, "raft.db"),
		BoltOptions: &bbolt.Options{
			Timeout:        time.Second, // for another process to let go of it
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
		},
	})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, errors.New("another process has it open")
	} else if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	f := &files{disk: newGuard(c.disk(db), c.DiskTimeout)}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := f.claim(c.ID); err != nil {
		return nil, err
	}
	if f.snapshots, err = raft.NewFileSnapshotStoreWithLogger(c.Dir, 2, raftLog(c.Log)); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	if f.state, err = fsm.Open(filepath.Join(c.Dir, "fsm.db")); err != nil {
		return nil, err
	}
	return f, f.reconcile(c)
}

// Close closes what is open.
func (f *files) Close() error {
	var err error
	if f.state != nil {
		err = f.state.Close()
	}
	return errors.Join(err, f.disk.Close())
}

var keyMember = []byte("localsnap member")

// claim makes sure that the directory is no other member's.
func (f *files) claim(id string) error {
	switch owner, err := f.disk.Get(keyMember); {
	case errors.Is(err, raftboltdb.ErrKeyNotFound):
		return f.disk.Set(keyMember, []byte(id))
	case err != nil:
		return err
	case string(owner) != id:
		return fmt.Errorf("the directory is that of server %s", owner)
	}
	return nil
}

// reconcile makes sure that log, snapshots and state fit together, and begins
// the log of a new cluster.
func (f *files) reconcile(c Config) error {
	first, err := f.disk.FirstIndex() // 0: the log is empty
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	last, err := f.disk.LastIndex()
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	snapshots, err := f.snapshots.List()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	var snapshot raft.SnapshotMeta // zero: none
	if len(snapshots) > 0 {
		snapshot = *snapshots[0]
	}
	if first > snapshot.Index+1 {
		return fmt.Errorf("the log begins at entry %d, but the newest snapshot is of entry %d: one has been lost", first, snapshot.Index)
	}
	if applied := f.state.Applied(); applied > max(last, snapshot.Index) {
		return fmt.Errorf("the state is at entry %d, but the log ends at %d: it has been lost or replaced", applied, max(last, snapshot.Index))
	}
	if f.state.Applied() < snapshot.Index {
		if err := f.restore(snapshot.ID); err != nil {
			return fmt.Errorf("restore snapshot %s: %w", snapshot.ID, err)
		}
	}
	return f.bootstrap(c)
}

// restore replaces the state by a snapshot. Raft, which begins after its newest
// one, must find a state that is there. It would find an older one, or none, if
// the server had stopped between receiving the snapshot and installing it, or
// if fsm.db had been lost.
func (f *files) restore(snapshot string) error {
	_, r, err := f.snapshots.Open(snapshot)
	if err != nil {
		return err
	}
	return errors.Join(f.state.Restore(r), r.Close())
}

// bootstrap begins the log of a new cluster.
func (f *files) bootstrap(c Config) error {
	err := raft.BootstrapCluster(c.raft(nil), f.disk, f.disk, f.snapshots, nil, c.membership())
	if errors.Is(err, raft.ErrCantBootstrap) {
		return nil // it isn't new
	}
	return err
}
