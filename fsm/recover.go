package fsm

import (
	"cmp"

	"github.com/google/uuid"
)

// maxRanges bounds the ranges of a lineage. Each rollback to a snapshot that
// was taken after a rollback adds one, and every operation carries views.
const maxRanges = 256

// Recover makes the content of a volume that of its snapshot, which is named by
// UUID, or else by Path and Name. Its value is the Task.
type Recover struct {
	User        string
	Time        uint64
	Snapshot    uuid.UUID
	Path        string
	Name        string
	Destination string // if set, the path of the volume, to be compared
	Lazy        bool   // only remembered: it is done at once
	UUID        uuid.UUID
}

func (c Recover) apply(s *State) (any, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	n, err := s.recoverable(c)
	if err != nil {
		return nil, err
	}
	v := s.volume(n.Volume)
	if t, ok := load[Task](s, v.Recovered[:]); ok && t.Source == n.UUID.String() && t.User == c.User && t.Lazy == c.Lazy {
		return s.follow(t), nil
	}
	if err := s.canRecover(c, v, n); err != nil {
		return nil, err
	}
	v.Seq++
	v.Lineage, v.Size = n.Lineage.Rollback(v.Seq), n.Size
	v.Garbage, v.Recovered = s.index, c.UUID
	put(s, v)
	return s.record(Task{
		UUID: c.UUID, User: c.User, Type: TaskRecover, Source: n.UUID.String(), FromSnapshot: true,
		Destination: v.Path, Volume: v.ID, Time: c.Time, Lazy: c.Lazy,
	}), nil
}

func (c Recover) check() error {
	err := cmp.Or(checkUser(c.User), checkUUID(c.UUID), checkGiven(c.Destination, checkPath))
	if c.Snapshot == uuid.Nil {
		err = cmp.Or(err, checkPath(c.Path), checkSnapshot(c.Name))
	}
	return err
}

// recoverable returns the snapshot, if it exists and belongs to the user, as
// does the destination.
func (s *State) recoverable(c Recover) (n Snapshot, err error) {
	if c.Destination != "" {
		if _, ok := s.lookup(c.Destination); !ok {
			return n, refuse(NotExist, "%s does not exist", c.Destination)
		}
	}
	if c.Snapshot != uuid.Nil {
		n, err = s.SnapshotByUUID(c.User, c.Snapshot, "")
	} else {
		n, err = s.Snapshot(c.User, c.Path, c.Name)
	}
	if err != nil || c.Destination == "" || c.Destination == n.Path {
		return n, err
	}
	if _, err := s.File(c.User, c.Destination); err != nil {
		return n, err
	}
	return n, refuse(Unsupported, "snapshot %s belongs to %s: only that can be recovered from it", n.UUID, n.Path)
}

// canRecover refuses what the state of the volume and its snapshot forbids.
func (s *State) canRecover(c Recover, v Volume, n Snapshot) error {
	if n.Status != SnapshotDone {
		return refuse(InvalidSnapshot, "snapshot %s of %s is being deleted", n.Name, v.Path)
	}
	if err := s.idle(v); err != nil {
		return err
	}
	if len(n.Lineage) >= maxRanges {
		return refuse(Unsupported, "snapshot %s of %s has %d rollbacks behind it: copy the volume", n.Name, v.Path, len(n.Lineage)-1)
	}
	if _, ok := load[Task](s, c.UUID[:]); ok {
		return refuse(Exists, "another task has the UUID %s", c.UUID)
	}
	return nil
}
