package fsm

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Trash says where a volume in /RecycleBin came from.
type Trash struct {
	Time uint64 // of its deletion, microseconds since the epoch
	Path string // where it was
	Task *Task  // its clone task, if that was not finished
}

// Delete moves a volume to /RecycleBin (or, without retention, or if it is
// there already, starts to purge it), or removes an empty directory. What
// doesn't exist is deleted already.
type Delete struct {
	User string
	Time uint64
	Path string
}

// RestoreFile takes a volume out of /RecycleBin, back to where it was. Its
// value is the Volume.
type RestoreFile struct {
	User string
	Path string // in /RecycleBin
}

// ExpireTrash starts to purge the volumes, oldest first and at most a thousand,
// that were deleted at a time or before. Its value is their number, an int.
type ExpireTrash struct {
	Before uint64 // microseconds since the epoch
}

// maxExpired bounds what one ExpireTrash does.
const maxExpired = 1000

// OldestTrash returns when the volume that lies in /RecycleBin longest was
// deleted, or false if none lies there.
func (s *State) OldestTrash() (time uint64, ok bool) {
	s.scan(byTrash, "", "", func(key, _ []byte) bool {
		time, ok = fromNumber(key), true
		return false
	})
	return time, ok
}

func (c Delete) apply(s *State) (any, error) {
	if err := cmp.Or(checkUser(c.User), checkPath(c.Path)); err != nil {
		return nil, err
	}
	if _, ok := s.lookup(c.Path); !ok {
		return nil, nil
	}
	f, err := s.File(c.User, c.Path)
	if err != nil {
		return nil, err
	}
	if f.Directory != nil {
		return nil, f.Directory.delete(s)
	}
	return nil, s.discard(*f.Volume, c.Time)
}

// discard moves a volume towards its end.
func (s *State) discard(v Volume, time uint64) error {
	if v.Trash != nil {
		s.startPurge(v)
		return nil
	}
	if s.count(bySeq, visible(v.ID)) > 0 {
		return refuse(UnderSnapshot, "%s has snapshots", v.Path)
	}
	hidden := s.uuids(bySeq, hidden(v.ID))
	for _, id := range hidden {
		if s.count(byParent, children(id, true)) > 0 {
			return refuse(UnderSnapshot, "%s has clones that are not flattened", v.Path)
		}
	}
	if err := s.idle(v); err != nil {
		return err
	}
	for _, id := range hidden {
		s.purgeTrashed(id)
	}
	v = s.volume(v.ID) // without the hidden snapshots, it has got garbage
	trash := &Trash{Time: time, Path: v.Path, Task: s.takeUnfinished(v)}
	if s.Settings().Retention == 0 {
		s.startPurge(v)
		return nil
	}
	_, name := split(v.Path)
	v.Path, v.Trash = join(RecycleBin, trashName(name, v.ID)), trash
	put(s, v)
	return nil
}

// idle refuses a volume that is attached or being flattened.
func (s *State) idle(v Volume) error {
	if v.Flattening {
		return refuse(Occupied, "%s is being flattened", v.Path)
	}
	if s.count(byHead, heads(v.ID, writer))+s.count(byHead, heads(v.ID, reader)) > 0 {
		return refuse(Occupied, "%s is attached", v.Path)
	}
	return nil
}

// trashName is the name in /RecycleBin of what had a name: <name>-<id>, with as
// much of the name as there is room for.
func trashName(name string, id chunk.VolumeID) string {
	suffix := fmt.Sprintf("-%d", id)
	end := min(len(name), maxName-len(suffix))
	for end < len(name) && !utf8.RuneStart(name[end]) {
		end--
	}
	return name[:end] + suffix
}

// startPurge takes a volume's name away, and everything that it refers to.
func (s *State) startPurge(v Volume) {
	parent := v.Parent
	v.Path, v.Trash, v.Parent, v.Recovered = "", nil, uuid.Nil, uuid.Nil
	v.Purging, v.Garbage = true, s.index
	put(s, v)
	s.release(parent)
}

// purgeTrashed starts to purge the clones in /RecycleBin that need a snapshot.
func (s *State) purgeTrashed(snapshot uuid.UUID) {
	for _, id := range s.ids(byParent, children(snapshot, false)) {
		s.startPurge(s.volume(id))
	}
}

func (c RestoreFile) apply(s *State) (any, error) {
	if err := cmp.Or(checkUser(c.User), checkPath(c.Path)); err != nil {
		return nil, err
	}
	if v, ok := s.restored(c.User, c.Path); ok {
		return v, nil
	}
	v, err := s.Volume(c.User, c.Path)
	if err != nil {
		return nil, err
	}
	if v.Trash == nil {
		return nil, refuse(BadStatus, "%s is not deleted", c.Path)
	}
	dir, err := s.parent(v.Trash.Path)
	if err != nil {
		return nil, err
	}
	if err := dir.admits(c.User); err != nil {
		return nil, err
	}
	if _, ok := s.lookup(v.Trash.Path); ok {
		return nil, refuse(Exists, "%s, where %s was, exists again", v.Trash.Path, c.Path)
	}
	trash := *v.Trash
	v.Trash = nil
	v = s.move(v, trash.Path)
	if trash.Task != nil {
		put(s, *trash.Task)
	}
	return v, nil
}

// restored returns the volume that was restored from a path in /RecycleBin, if
// a command that is now repeated has done so.
func (s *State) restored(user, path string) (Volume, bool) {
	dir, name := split(path)
	id, err := strconv.ParseUint(name[strings.LastIndexByte(name, '-')+1:], 10, 64)
	if dir != RecycleBin || err != nil {
		return Volume{}, false
	}
	v, err := s.VolumeByID(chunk.VolumeID(id))
	if err != nil || v.Purging {
		return Volume{}, false
	}
	return s.moved(user, path, v.Path)
}

func (c ExpireTrash) apply(s *State) (any, error) {
	var expired []chunk.VolumeID
	s.scan(byTrash, "", "", func(key, _ []byte) bool {
		if fromNumber(key) > c.Before {
			return false
		}
		expired = append(expired, chunk.VolumeID(fromNumber(key[8:])))
		return len(expired) < maxExpired
	})
	for _, id := range expired {
		s.startPurge(s.volume(id))
	}
	return len(expired), nil
}
