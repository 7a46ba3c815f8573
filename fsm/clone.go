package fsm

import (
	"cmp"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Origin says how a clone was made.
type Origin struct {
	Task     uuid.UUID // the answer
	Source   string    // the snapshot's UUID, or the path of a volume
	Lazy     bool
	ReadOnly bool
}

// Clone makes a volume with the content of Snapshot, or else of the snapshot
// Name of the volume Path, or else of the present content of the volume Path,
// by a hidden snapshot, for which Attachment and Turn are as in CreateSnapshot.
// Its value is the Task.
type Clone struct {
	User        string
	Time        uint64
	Snapshot    uuid.UUID
	Path        string
	Name        string
	Destination string
	ReadOnly    bool
	Pool        string    // empty for that of the source
	Lazy        bool      // else flattening begins at once
	UUID        uuid.UUID // for the task
	Hidden      uuid.UUID // for the hidden snapshot
	Attachment  uint64
	Turn        uint64
}

// Flatten begins to make a clone independent of its parent. The clone is named
// by the UUID of its task, or else by its path. A volume that is no clone, or
// no longer, is flat already.
type Flatten struct {
	User string
	UUID uuid.UUID
	Path string
}

// FlattenProgress reports how far the flattening of a clone has come.
type FlattenProgress struct {
	Volume  chunk.VolumeID
	Percent int // 0 to 100
}

// FlattenDone reports that a clone has all data that its views see.
type FlattenDone struct {
	Volume chunk.VolumeID
}

// Flattening lists the clones that are being flattened.
func (s *State) Flattening() []chunk.VolumeID { return s.ids(byFlattening, "") }

// FlattenViews returns all views of a clone, the head frozen at its present
// sequence number.
func (s *State) FlattenViews(id chunk.VolumeID) ([]*chunk.View, error) {
	v, err := s.VolumeByID(id)
	if err != nil {
		return nil, err
	}
	return s.views(v, s.below(v)), nil
}

// Children returns the clones that read through to a snapshot of the volume at
// path; if name is not empty, to that one. The volume must belong to user.
func (s *State) Children(user, path, name string) ([]Volume, error) {
	var snapshots []Snapshot
	if name != "" {
		n, err := s.Snapshot(user, path, name)
		if err != nil {
			return nil, err
		}
		snapshots = []Snapshot{n}
	} else {
		v, err := s.Volume(user, path)
		if err != nil {
			return nil, err
		}
		snapshots = s.snapshotsOf(v)
	}
	clones := []Volume{}
	for _, n := range snapshots {
		for _, id := range s.ids(byParent, children(n.UUID, true)) {
			clones = append(clones, s.volume(id))
		}
	}
	return clones, nil
}

// children is the group of the clones that read through to a snapshot: those
// that are live, or those in /RecycleBin.
func children(snapshot uuid.UUID, live bool) string {
	if live {
		return string(snapshot[:]) + "l"
	}
	return string(snapshot[:]) + "t"
}

// depth is the number of volumes that the views of a volume reach through.
func (s *State) depth(v Volume) int {
	depth := 1
	for ; v.Parent != uuid.Nil; depth++ {
		v = s.volume(s.snapshot(v.Parent).Volume)
	}
	return depth
}

func (c Clone) apply(s *State) (any, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if t, ok := s.cloned(c); ok {
		return t, nil
	}
	source, snap, err := s.source(c)
	if err != nil {
		return nil, err
	}
	dir, err := s.parent(c.Destination)
	c.Pool = cmp.Or(c.Pool, source.Pool)
	if err := cmp.Or(err, s.checkPool(c.Pool)); err != nil {
		return nil, err
	}
	if !owns(c.User, source.User) {
		return nil, refuse(NotOwner, "%s does not belong to %s", source.Path, c.User)
	}
	if err := dir.admits(c.User); err != nil {
		return nil, err
	}
	if err := s.canClone(c, source, snap); err != nil {
		return nil, err
	}
	if snap == nil {
		n := s.freeze(source, Snapshot{UUID: c.Hidden, Time: c.Time, Hidden: true})
		snap = &n
	}
	return s.clone(c, source, *snap), nil
}

func (c Clone) check() error {
	err := cmp.Or(checkUser(c.User), checkNew(c.Destination), checkUUID(c.UUID))
	switch {
	case c.Snapshot != uuid.Nil:
		return err
	case c.Name != "":
		return cmp.Or(err, checkPath(c.Path), checkSnapshot(c.Name))
	}
	return cmp.Or(err, checkPath(c.Path), checkUUID(c.Hidden))
}

// cloned returns the task of an identical command that has been applied. Its
// source may be gone by now, if it was not named by a snapshot's name.
func (s *State) cloned(c Clone) (Task, bool) {
	f, ok := s.lookup(c.Destination)
	if !ok || f.Volume == nil || f.Volume.Origin == nil {
		return Task{}, false
	}
	source := c.Path
	if c.Snapshot != uuid.Nil {
		source = c.Snapshot.String()
	} else if c.Name != "" {
		n, err := s.Snapshot(Root, c.Path, c.Name)
		if err != nil {
			return Task{}, false
		}
		source = n.UUID.String()
	}
	v, origin := f.Volume, f.Volume.Origin
	same := v.User == c.User && (c.Pool == "" || c.Pool == v.Pool) &&
		origin.Source == source && origin.Lazy == c.Lazy && origin.ReadOnly == c.ReadOnly
	return s.cloneTask(*v), same
}

// cloneTask is the task of a clone, made up again if its record was cleaned.
func (s *State) cloneTask(v Volume) Task {
	if t, ok := load[Task](s, v.Origin.Task[:]); ok {
		return s.follow(t)
	}
	_, err := uuid.Parse(v.Origin.Source)
	return s.follow(Task{
		UUID: v.Origin.Task, User: v.User, Type: TaskClone, Source: v.Origin.Source, FromSnapshot: err == nil,
		Destination: v.Path, Volume: v.ID, Time: v.Time, Lazy: v.Origin.Lazy,
	})
}

// source returns the volume whose content is cloned, and the snapshot of it
// unless it is the present content. It does not ask who owns it.
func (s *State) source(c Clone) (Volume, *Snapshot, error) {
	if c.Snapshot == uuid.Nil && c.Name == "" {
		f, ok := s.lookup(c.Path)
		switch {
		case !ok:
			return Volume{}, nil, refuse(NotExist, "%s does not exist", c.Path)
		case f.Volume == nil:
			_, err := s.Volume(c.User, c.Path)
			return Volume{}, nil, err
		}
		return *f.Volume, nil, nil
	}
	n, err := s.SnapshotByUUID(Root, c.Snapshot, "")
	if c.Snapshot == uuid.Nil {
		n, err = s.Snapshot(Root, c.Path, c.Name)
	}
	if err != nil {
		return Volume{}, nil, err
	}
	return s.volume(n.Volume), &n, nil
}

// canClone refuses what the state of the source and destination forbids. snap
// is nil if a hidden snapshot is to be taken.
func (s *State) canClone(c Clone, source Volume, snap *Snapshot) error {
	if source.Trash != nil {
		return refuse(BadStatus, "%s is deleted", source.Path)
	}
	if snap != nil && snap.Status != SnapshotDone {
		return refuse(InvalidSnapshot, "snapshot %s of %s is being deleted", snap.Name, source.Path)
	}
	if _, ok := s.lookup(c.Destination); ok {
		return refuse(Exists, "%s exists already", c.Destination)
	}
	if c.Pool != source.Pool {
		return refuse(Unsupported, "%s is in poolset %s: a clone can't be in poolset %s", source.Path, source.Pool, c.Pool)
	}
	if s.depth(source) >= chunk.MaxDepth {
		return refuse(Unsupported, "%s is %d clones deep: flatten it first", source.Path, chunk.MaxDepth)
	}
	if _, ok := load[Task](s, c.UUID[:]); ok {
		return refuse(Exists, "another task has the UUID %s", c.UUID)
	}
	if snap == nil {
		return s.canFreeze(source, c.Hidden, c.Attachment, c.Turn)
	}
	return nil
}

// clone makes the volume and its task.
func (s *State) clone(c Clone, source Volume, snap Snapshot) Task {
	t := Task{
		UUID: c.UUID, User: c.User, Type: TaskClone, Source: snap.UUID.String(), FromSnapshot: true,
		Destination: c.Destination, Volume: chunk.VolumeID(s.next(counterFile)), Time: c.Time, Lazy: c.Lazy,
	}
	if snap.Hidden {
		t.Source, t.FromSnapshot = c.Path, false
	}
	put(s, Volume{
		ID: t.Volume, Path: c.Destination, User: c.User, Time: c.Time,
		Size: snap.Size, Layout: source.Layout, Pool: source.Pool, ReadOnly: c.ReadOnly,
		Root: source.Root, Seq: 1, Lineage: chunk.NewLineage(),
		Origin: &Origin{Task: c.UUID, Source: t.Source, Lazy: c.Lazy, ReadOnly: c.ReadOnly},
		Parent: snap.UUID, Flattening: !c.Lazy,
	})
	return s.record(t)
}

func (c Flatten) apply(s *State) (any, error) {
	v, err := s.toFlatten(c)
	if err != nil || v.Parent == uuid.Nil || v.Flattening {
		return nil, err
	}
	v.Flattening = true
	put(s, v)
	s.erode(v.ID)
	return nil, nil
}

// toFlatten returns the volume that is to be flattened. That of a task that is
// done may be gone; there is nothing to flatten then.
func (s *State) toFlatten(c Flatten) (Volume, error) {
	if c.UUID == uuid.Nil {
		return s.liveVolume(c.User, c.Path)
	}
	t, err := s.Task(c.User, c.UUID)
	if err != nil || t.Status == TaskDone {
		return Volume{}, err
	}
	return s.VolumeByID(t.Volume)
}

func (c FlattenProgress) apply(s *State) (any, error) {
	if err := checkPercent(c.Percent); err != nil {
		return nil, err
	}
	v, err := s.VolumeByID(c.Volume)
	if err != nil {
		return nil, err
	}
	if v.Flattening && c.Percent > v.Progress {
		v.Progress = c.Percent
		put(s, v)
	}
	return nil, nil
}

func (c FlattenDone) apply(s *State) (any, error) {
	v, err := s.VolumeByID(c.Volume)
	if err != nil || v.Parent == uuid.Nil {
		return nil, err
	}
	if !v.Flattening {
		return nil, refuse(BadStatus, "%s is not being flattened", v.Path)
	}
	parent := v.Parent
	v.Parent, v.Flattening, v.Progress = uuid.Nil, false, 100
	put(s, v)
	s.release(parent)
	return nil, nil
}
