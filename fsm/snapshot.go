package fsm

import (
	"cmp"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// maxSnapshotLimit bounds what a cluster may be set to allow: the head and all
// snapshots must be nameable in one operation.
const maxSnapshotLimit = chunk.MaxViews - 1

// Snapshot is a volume's content as of a moment.
type Snapshot struct {
	UUID     uuid.UUID
	Volume   chunk.VolumeID
	Path     string `json:"-"` // of the volume; filled in by queries
	Name     string
	User     string // its owner: that of the volume
	Time     uint64 // of creation, microseconds since the epoch
	Size     uint64 // bytes
	Seq      chunk.Seq
	Lineage  chunk.Lineage
	Hidden   bool // made by Clone of a volume; without a name, gone with its last clone
	Status   SnapshotStatus
	Progress int // percent of creation (always 100), or of deletion
}

func (n Snapshot) table() string { return "snapshots" }

func (n Snapshot) key() []byte { return n.UUID[:] }

func (n Snapshot) entries() []entry {
	id := string(n.UUID[:])
	if n.Hidden {
		return []entry{{bySeq, hidden(n.Volume), number(n.Seq), id}}
	}
	entries := []entry{
		{bySeq, visible(n.Volume), number(n.Seq), id},
		{bySnapshot, number(n.Volume), n.Name, id},
		{byOwner, text(n.User), number(n.Volume) + number(n.Seq), id},
		{byVolume, "", number(n.Volume) + number(n.Seq), id},
	}
	if n.Status == SnapshotDeleting {
		entries = append(entries, entry{byDeletion, number(n.Volume), number(n.Seq), id})
	}
	return entries
}

// visible and hidden are the groups of a volume's snapshots in bySeq.
func visible(id chunk.VolumeID) string { return "v" + number(id) }
func hidden(id chunk.VolumeID) string  { return "h" + number(id) }

// SnapshotStatus is what the contract calls the status of a snapshot. The
// contract knows more; these are the ones that occur.
type SnapshotStatus uint8

const (
	SnapshotDone     SnapshotStatus = 0
	SnapshotDeleting SnapshotStatus = 2
)

// CreateSnapshot takes a snapshot. If the volume has a writer it must be paused
// in the turn that is named, else the command is Stale. Its value is the
// Snapshot.
type CreateSnapshot struct {
	User       string
	Time       uint64
	Path       string
	Name       string
	UUID       uuid.UUID
	Attachment uint64 // of the paused writer; 0 if there is none
	Turn       uint64 // of the paused writer
}

// DeleteSnapshot deletes a snapshot, named by UUID, or else by Path and Name.
// What doesn't exist is deleted already.
type DeleteSnapshot struct {
	User string
	UUID uuid.UUID
	Path string // with a UUID: if set, the volume that it must belong to
	Name string
}

// SnapshotFilter chooses snapshots; what is left empty matches all.
type SnapshotFilter struct {
	User   string
	UUID   uuid.UUID
	Path   string
	Status *SnapshotStatus
}

// Snapshot returns a snapshot by the path of its volume and its name. It must
// belong to user.
func (s *State) Snapshot(user, path, name string) (Snapshot, error) {
	if err := cmp.Or(checkUser(user), checkPath(path), checkSnapshot(name)); err != nil {
		return Snapshot{}, err
	}
	f, ok := s.lookup(path)
	if ok && f.Volume != nil {
		if id := s.find(bySnapshot, number(f.Volume.ID), name); id != nil {
			return s.SnapshotByUUID(user, uuid.UUID(id), "")
		}
		return Snapshot{}, refuse(NotExist, "%s has no snapshot %s", path, name)
	}
	_, err := s.Volume(user, path)
	return Snapshot{}, err
}

// SnapshotByUUID returns a snapshot. It must belong to user and, if path is not
// empty, to the volume there.
func (s *State) SnapshotByUUID(user string, id uuid.UUID, path string) (Snapshot, error) {
	if err := cmp.Or(checkUser(user), checkGiven(path, checkPath)); err != nil {
		return Snapshot{}, err
	}
	n, ok := load[Snapshot](s, id[:])
	switch {
	case !ok || n.Hidden:
		return Snapshot{}, refuse(NotExist, "snapshot %s does not exist", id)
	case !owns(user, n.User):
		return Snapshot{}, refuse(NotOwner, "snapshot %s does not belong to %s", id, user)
	}
	n.Path = s.volume(n.Volume).Path
	if path != "" && path != n.Path {
		return Snapshot{}, refuse(NameMismatch, "snapshot %s belongs to %s, not to %s", id, n.Path, path)
	}
	return n, nil
}

// Snapshots returns the snapshots that match, by volume and sequence number,
// and their total number.
func (s *State) Snapshots(f SnapshotFilter, p Page) (snapshots []Snapshot, total int, err error) {
	if err := cmp.Or(checkGiven(f.User, checkUser), checkGiven(f.Path, checkPath)); err != nil {
		return nil, 0, err
	}
	snapshots, total = s.snapshots(f, p)
	return snapshots, total, nil
}

func (s *State) snapshots(f SnapshotFilter, p Page) (snapshots []Snapshot, total int) {
	if f.UUID != uuid.Nil {
		n, err := s.SnapshotByUUID(Root, f.UUID, f.Path)
		if err != nil || !f.match(&n) {
			return []Snapshot{}, 0
		}
		return single(n, p), 1
	}
	get := func(id []byte) Snapshot { return s.snapshot(uuid.UUID(id)) }
	match := f.match
	if f.Status == nil && (f.Path == "" || f.User == "") {
		match = nil // what an index says is enough
	}
	if f.Path != "" {
		v, err := s.Volume(Root, f.Path)
		if err != nil {
			return []Snapshot{}, 0
		}
		return page(s, bySeq, visible(v.ID), p, get, match)
	}
	if f.User != "" {
		return page(s, byOwner, text(f.User), p, get, match)
	}
	return page(s, byVolume, "", p, get, match)
}

func (f SnapshotFilter) match(n *Snapshot) bool {
	return (f.User == "" || f.User == n.User) && (f.Status == nil || *f.Status == n.Status)
}

// CancelSnapshot answers a request to cancel a snapshot. As snapshots are
// finished at once, it comes too late.
func (s *State) CancelSnapshot(user, path string, id uuid.UUID) error {
	v, err := s.Volume(user, path)
	if err != nil {
		return err
	}
	if n, ok := load[Snapshot](s, id[:]); ok && n.Volume != v.ID && !n.Hidden {
		return refuse(NameMismatch, "snapshot %s belongs to another volume than %s", id, path)
	}
	return refuse(CancelFinished, "snapshot %s is finished, or does not exist", id)
}

// SnapshotView is what a reader of a snapshot sees.
func (s *State) SnapshotView(id uuid.UUID) (*chunk.View, error) {
	n, ok := load[Snapshot](s, id[:])
	if !ok {
		return nil, refuse(NotExist, "snapshot %s does not exist", id)
	}
	return chunk.NewView(n.Volume, n.Lineage, s.below(s.volume(n.Volume))), nil
}

// snapshot returns a snapshot that must exist, as something refers to it.
func (s *State) snapshot(id uuid.UUID) Snapshot {
	n, ok := load[Snapshot](s, id[:])
	if !ok {
		must(refuse(NotExist, "snapshot %s does not exist", id))
	}
	n.Path = s.volume(n.Volume).Path
	return n
}

// snapshotsOf returns all snapshots of a volume, the hidden ones last.
func (s *State) snapshotsOf(v Volume) []Snapshot {
	ids := append(s.uuids(bySeq, visible(v.ID)), s.uuids(bySeq, hidden(v.ID))...)
	snapshots := make([]Snapshot, len(ids))
	for i, id := range ids {
		snapshots[i], _ = load[Snapshot](s, id[:])
	}
	return snapshots
}

func (c CreateSnapshot) apply(s *State) (any, error) {
	if err := cmp.Or(checkUser(c.User), checkPath(c.Path), checkSnapshot(c.Name), checkUUID(c.UUID)); err != nil {
		return nil, err
	}
	v, err := s.liveVolume(c.User, c.Path)
	if err != nil {
		return nil, err
	}
	if id := s.find(bySnapshot, number(v.ID), c.Name); id != nil {
		n := s.snapshot(uuid.UUID(id))
		if n.Status == SnapshotDeleting {
			return nil, refuse(Exists, "snapshot %s of %s is still being deleted", c.Name, c.Path)
		}
		return n, nil
	}
	if err := s.canFreeze(v, c.UUID, c.Attachment, c.Turn); err != nil {
		return nil, err
	}
	return s.freeze(v, Snapshot{UUID: c.UUID, Name: c.Name, Time: c.Time}), nil
}

func checkUUID(id uuid.UUID) error {
	if id == uuid.Nil {
		return refuse(InvalidArgument, "a UUID is missing")
	}
	return nil
}

// canFreeze refuses if no snapshot can be taken of a volume.
func (s *State) canFreeze(v Volume, id uuid.UUID, attachment, turn uint64) error {
	if _, ok := load[Snapshot](s, id[:]); ok {
		return refuse(Exists, "another snapshot has the UUID %s", id)
	}
	limit := s.Settings().SnapshotLimit
	if s.count(bySeq, visible(v.ID))+s.count(bySeq, hidden(v.ID)) >= limit {
		return refuse(SnapshotLimit, "%s has %d snapshots, more are not allowed", v.Path, limit)
	}
	if w, ok := s.Writer(v.ID); ok && (w.ID != attachment || w.Turn != turn) {
		return refuse(Stale, "%s has a writer that is not paused", v.Path)
	}
	return nil
}

// freeze takes a snapshot and lets the volume go on with the next sequence
// number.
func (s *State) freeze(v Volume, n Snapshot) Snapshot {
	n.Volume, n.Path, n.User, n.Size = v.ID, v.Path, v.User, v.Size
	n.Seq, n.Lineage = v.Seq, v.Lineage.Freeze(v.Seq)
	n.Status, n.Progress = SnapshotDone, 100
	put(s, n)
	v.Seq++
	put(s, v)
	s.erode(v.ID)
	return n
}

func (c DeleteSnapshot) apply(s *State) (any, error) {
	n, ok, err := s.named(c)
	if !ok || err != nil || n.Status == SnapshotDeleting {
		return nil, err
	}
	if clones := s.count(byParent, children(n.UUID, true)); clones > 0 {
		return nil, refuse(SnapshotInUse, "snapshot %s of %s has %d clones that are not flattened", n.Name, n.Path, clones)
	}
	s.purgeTrashed(n.UUID)
	n.Status, n.Progress = SnapshotDeleting, 0
	put(s, n)
	s.erode(n.Volume)
	return nil, nil
}

// named returns the snapshot that is to be deleted, if it exists.
func (s *State) named(c DeleteSnapshot) (n Snapshot, ok bool, err error) {
	if c.UUID != uuid.Nil {
		n, err = s.SnapshotByUUID(c.User, c.UUID, c.Path)
	} else {
		n, err = s.Snapshot(c.User, c.Path, c.Name)
	}
	if e, refused := err.(*Error); refused && e.Kind == NotExist {
		return n, false, nil
	}
	return n, err == nil, err
}

// purgeable reports whether nobody can see a snapshot any more.
func (s *State) purgeable(n Snapshot) bool {
	return n.Status == SnapshotDeleting && s.count(byReader, string(n.UUID[:])) == 0
}

// release lets go of a snapshot that a clone has read through to. A hidden one
// goes with its last clone.
func (s *State) release(id uuid.UUID) {
	n, ok := load[Snapshot](s, id[:])
	if !ok || !n.Hidden || s.count(byParent, children(id, true))+s.count(byParent, children(id, false)) > 0 {
		return
	}
	remove(s, n)
	v := s.volume(n.Volume)
	v.Garbage = s.index
	put(s, v)
	s.erode(v.ID)
}
