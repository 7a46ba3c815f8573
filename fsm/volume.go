package fsm

import (
	"cmp"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// DefaultPool is the pool of volumes that name none. It is known before it has
// any copysets.
const DefaultPool = "default"

// maxVolumeSize bounds what a cluster may be set to allow, in bytes: the index
// of a chunk has 32 bits, and a set of stripes may be counted whole.
const maxVolumeSize = (1<<32 - chunk.MaxStripes) * chunk.Size

// Volume is a block device with a name.
type Volume struct {
	ID       chunk.VolumeID
	Path     string // empty when purging
	User     string // its owner
	Time     uint64 // of creation, microseconds since the epoch
	Size     uint64 // bytes
	Layout   chunk.Layout
	Pool     string
	ReadOnly bool

	Root    chunk.VolumeID // places its chunks: its own ID, or the Root of what it was cloned from
	Seq     chunk.Seq      // at which it is written
	Lineage chunk.Lineage  // of its head

	Origin     *Origin   // set for ever on a clone
	Parent     uuid.UUID // the snapshot that it reads through to; nil for one that isn't, or is no longer, a lazy clone
	Flattening bool
	Progress   int       // percent of independence: 0 of a lazy clone, 100 of other volumes, between them while flattening
	Recovered  uuid.UUID // the recover task whose result has not been touched since
	Was        string    // path before it was renamed or restored, by which a repetition is known

	Trash   *Trash // set in /RecycleBin
	Purging bool
	Garbage uint64 // index of the last command that left layers that no view sees; 0 when they are purged
	Eroding bool   // what its writer writes over becomes garbage of which no command tells; see erode
}

func (v Volume) table() string { return "volumes" }

func (v Volume) key() []byte { return []byte(number(v.ID)) }

func (v Volume) entries() []entry {
	var entries []entry
	if !v.Purging {
		dir, name := split(v.Path)
		entries = append(entries, entry{byName, text(dir), name, fileRef(isVolume, v.ID)})
	}
	if v.Parent != uuid.Nil {
		entries = append(entries, entry{byParent, children(v.Parent, v.Trash == nil), number(v.ID), ""})
	}
	if v.Flattening {
		entries = append(entries, entry{byFlattening, "", number(v.ID), ""})
	}
	if v.Trash != nil {
		entries = append(entries, entry{byTrash, "", number(v.Trash.Time) + number(v.ID), ""})
	}
	if v.Garbage != 0 {
		entries = append(entries, entry{byGarbage, "", number(v.ID), ""})
	}
	if v.Eroding {
		entries = append(entries, entry{byErosion, "", number(v.ID), ""})
	}
	return entries
}

// VolumeStatus is what the contract calls the status of a volume.
type VolumeStatus uint8

const (
	VolumeDone        VolumeStatus = 0
	VolumeFlattening  VolumeStatus = 1
	VolumeUnflattened VolumeStatus = 2
)

// Status tells how a volume stands to what it was cloned from.
func (v Volume) Status() VolumeStatus {
	switch {
	case v.Flattening:
		return VolumeFlattening
	case v.Parent != uuid.Nil:
		return VolumeUnflattened
	}
	return VolumeDone
}

// CreateVolume makes a volume that reads as zeros. Its value is the Volume.
type CreateVolume struct {
	User   string
	Time   uint64
	Path   string
	Size   uint64 // bytes
	Layout chunk.Layout
	Pool   string // empty for the default
}

// Rename gives a volume another path. Its value is the Volume.
type Rename struct {
	User        string
	Path        string
	Destination string
}

// Extend makes a volume larger. Its value is the Volume.
type Extend struct {
	User string
	Path string
	Size uint64 // bytes
}

// Volume returns the volume at path, which may be in /RecycleBin. It must
// belong to user.
func (s *State) Volume(user, path string) (Volume, error) {
	f, err := s.File(user, path)
	if err != nil {
		return Volume{}, err
	}
	if f.Volume == nil {
		return Volume{}, refuse(Unsupported, "%s is a directory", path)
	}
	return *f.Volume, nil
}

// liveVolume is Volume without those in /RecycleBin.
func (s *State) liveVolume(user, path string) (Volume, error) {
	v, err := s.Volume(user, path)
	if err == nil && v.Trash != nil {
		err = refuse(BadStatus, "%s is deleted", path)
	}
	return v, err
}

// VolumeByID returns a volume, also one that is purging.
func (s *State) VolumeByID(id chunk.VolumeID) (Volume, error) {
	v, ok := load[Volume](s, Volume{ID: id}.key())
	if !ok {
		return v, refuse(NotExist, "volume %d does not exist", id)
	}
	return v, nil
}

// volume returns a volume that must exist, as something refers to it.
// Roots returns the root of every volume that is not wholly purged.
func (s *State) Roots() map[chunk.VolumeID]chunk.VolumeID {
	roots := make(map[chunk.VolumeID]chunk.VolumeID)
	for _, v := range all[Volume](s) {
		roots[v.ID] = v.Root
	}
	return roots
}

func (s *State) volume(id chunk.VolumeID) Volume {
	v, err := s.VolumeByID(id)
	must(err)
	return v
}

// HeadView is what a reader or the writer of a volume sees.
func (s *State) HeadView(id chunk.VolumeID) (*chunk.View, error) {
	v, err := s.VolumeByID(id)
	if err != nil {
		return nil, err
	}
	if v.Purging {
		return nil, refuse(NotExist, "volume %d is being purged", id)
	}
	return chunk.NewView(v.ID, v.Lineage, s.below(v)), nil
}

// below is the view that a volume reads through to, nil if it is flat.
func (s *State) below(v Volume) *chunk.View {
	if v.Parent == uuid.Nil {
		return nil
	}
	snap := s.snapshot(v.Parent)
	return chunk.NewView(snap.Volume, snap.Lineage, s.below(s.volume(snap.Volume)))
}

// views returns all views of a volume on top of parent: the head frozen at the
// present sequence number, and those snapshots that somebody can still read.
func (s *State) views(v Volume, parent *chunk.View) []*chunk.View {
	views := []*chunk.View{chunk.NewView(v.ID, v.Lineage.Freeze(v.Seq), parent)}
	for _, snap := range s.snapshotsOf(v) {
		if !s.purgeable(snap) {
			views = append(views, chunk.NewView(v.ID, snap.Lineage, parent))
		}
	}
	return views
}

func (c CreateVolume) apply(s *State) (any, error) {
	c.Pool = cmp.Or(c.Pool, DefaultPool)
	if err := cmp.Or(checkUser(c.User), checkNew(c.Path), s.checkSize(c.Size), c.checkLayout()); err != nil {
		return nil, err
	}
	dir, err := s.parent(c.Path)
	if err := cmp.Or(err, s.checkPool(c.Pool)); err != nil {
		return nil, err
	}
	if err := dir.admits(c.User); err != nil {
		return nil, err
	}
	if f, ok := s.lookup(c.Path); ok {
		if c.made(f) {
			return *f.Volume, nil
		}
		return nil, refuse(Exists, "%s exists already", c.Path)
	}
	id := chunk.VolumeID(s.next(counterFile))
	v := Volume{
		ID: id, Path: c.Path, User: c.User, Time: c.Time, Size: c.Size, Layout: c.Layout, Pool: c.Pool,
		Root: id, Seq: 1, Lineage: chunk.NewLineage(), Progress: 100,
	}
	put(s, v)
	return v, nil
}

func (c CreateVolume) checkLayout() error {
	if err := c.Layout.Validate(); err != nil {
		return refuse(InvalidArgument, "%v", err)
	}
	return nil
}

// made reports whether f is what an identical command made.
func (c CreateVolume) made(f File) bool {
	v := f.Volume
	return v != nil && v.Origin == nil && v.User == c.User && v.Size == c.Size && v.Layout == c.Layout && v.Pool == c.Pool
}

func (s *State) checkSize(size uint64) error {
	if limits := s.Settings(); size < limits.MinSize || size > limits.MaxSize {
		return refuse(InvalidArgument, "size of %d bytes: must be %d to %d", size, limits.MinSize, limits.MaxSize)
	}
	if size%chunk.BlockSize != 0 {
		return refuse(InvalidArgument, "size of %d bytes: must be a multiple of %d", size, chunk.BlockSize)
	}
	return nil
}

func (c Rename) apply(s *State) (any, error) {
	if err := cmp.Or(checkUser(c.User), checkPath(c.Path), checkNew(c.Destination)); err != nil {
		return nil, err
	}
	if v, ok := s.moved(c.User, c.Path, c.Destination); ok {
		return v, nil
	}
	f, ok := s.lookup(c.Path)
	if !ok {
		return nil, refuse(NotExist, "%s does not exist", c.Path)
	}
	dir, err := s.parent(c.Destination)
	if err != nil {
		return nil, err
	}
	if !owns(c.User, f.owner()) {
		return nil, refuse(NotOwner, "%s does not belong to %s", c.Path, c.User)
	}
	if err := dir.admits(c.User); err != nil {
		return nil, err
	}
	v, err := s.liveVolume(c.User, c.Path)
	if err != nil {
		return nil, err
	}
	if c.Path == c.Destination {
		return v, nil
	}
	if v.Flattening {
		return nil, refuse(BadStatus, "%s is being flattened", c.Path)
	}
	if _, ok := s.lookup(c.Destination); ok {
		return nil, refuse(Exists, "%s exists already", c.Destination)
	}
	return s.move(v, c.Destination), nil
}

// moved returns the volume at destination if a command that was now repeated
// has brought it there from path.
func (s *State) moved(user, path, destination string) (Volume, bool) {
	if _, ok := s.lookup(path); ok {
		return Volume{}, false
	}
	f, ok := s.lookup(destination)
	if !ok || f.Volume == nil || f.Volume.Was != path || !owns(user, f.Volume.User) {
		return Volume{}, false
	}
	return *f.Volume, true
}

// move gives a volume a path that is free, and takes its tasks along.
func (s *State) move(v Volume, path string) Volume {
	s.dropTasks(path, v.ID)
	for _, t := range s.tasksAt(v.Path) {
		if t.Volume == v.ID {
			t.Destination = path
			put(s, t)
		}
	}
	v.Was, v.Path = v.Path, path
	put(s, v)
	return v
}

func (c Extend) apply(s *State) (any, error) {
	if err := cmp.Or(checkUser(c.User), s.checkSize(c.Size)); err != nil {
		return nil, err
	}
	v, err := s.liveVolume(c.User, c.Path)
	switch {
	case err != nil:
		return nil, err
	case c.Size == v.Size:
		return v, nil
	case c.Size < v.Size:
		return nil, refuse(InvalidArgument, "size of %d bytes: %s has %d and can't shrink", c.Size, c.Path, v.Size)
	case v.Flattening:
		return nil, refuse(BadStatus, "%s is being flattened", c.Path)
	}
	v.Size, v.Recovered = c.Size, uuid.Nil
	put(s, v)
	return v, nil
}
