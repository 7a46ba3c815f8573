package fsm

import (
	"cmp"
	"encoding/binary"
	"fmt"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// RecycleBin is the path of the directory that holds deleted volumes.
const RecycleBin = "/RecycleBin"

// Directory is a named set of volumes and directories. It is numbered like a
// volume.
type Directory struct {
	ID   chunk.VolumeID
	Path string
	User string // its owner
	Time uint64 // of creation, microseconds since the epoch
}

// The directories that are always there.
const (
	rootID       chunk.VolumeID = 1
	recycleBinID chunk.VolumeID = 2
)

func (d Directory) table() string { return "directories" }

func (d Directory) key() []byte { return []byte(number(d.ID)) }

func (d Directory) entries() []entry {
	if d.ID == rootID {
		return nil
	}
	dir, name := split(d.Path)
	return []entry{{byName, text(dir), name, fileRef(isDirectory, d.ID)}}
}

// What a name may lead to.
const (
	isVolume    = 'v'
	isDirectory = 'd'
)

// fileRef leads from a name to its volume or directory: u8 which | u64 id.
func fileRef(which byte, id chunk.VolumeID) string {
	return string(binary.BigEndian.AppendUint64([]byte{which}, uint64(id)))
}

// File is an entry of a directory: exactly one of the two is set.
type File struct {
	Volume    *Volume
	Directory *Directory
}

func (f File) owner() string {
	if f.Volume != nil {
		return f.Volume.User
	}
	return f.Directory.User
}

// CreateDir makes a directory. Its value is the Directory.
type CreateDir struct {
	User string
	Time uint64
	Path string
}

// File returns the volume or directory at path. It must belong to user.
func (s *State) File(user, path string) (File, error) {
	if err := cmp.Or(checkUser(user), checkPath(path)); err != nil {
		return File{}, err
	}
	f, ok := s.lookup(path)
	if !ok {
		return File{}, refuse(NotExist, "%s does not exist", path)
	}
	if !owns(user, f.owner()) {
		return File{}, refuse(NotOwner, "%s does not belong to %s", path, user)
	}
	return f, nil
}

// List returns entries of the directory at path, everybody's and to every user,
// in the order of their names, and their total number.
func (s *State) List(user, path string, p Page) (files []File, total int, err error) {
	if err := cmp.Or(checkUser(user), checkPath(path)); err != nil {
		return nil, 0, err
	}
	if _, err := s.directory(path); err != nil {
		return nil, 0, err
	}
	files, total = page(s, byName, text(path), p, s.file, nil)
	return files, total, nil
}

// makeDirectories makes the directories that are always there.
func (s *State) makeDirectories(time uint64) {
	put(s, Directory{ID: rootID, Path: "/", User: Root, Time: time})
	put(s, Directory{ID: recycleBinID, Path: RecycleBin, User: Root, Time: time})
	if s.last(counterFile) == 0 {
		s.next(counterFile)
		s.next(counterFile)
	}
}

// file follows a fileRef.
func (s *State) file(ref []byte) File {
	which, key := ref[0], ref[1:]
	if which == isVolume {
		v, ok := load[Volume](s, key)
		if ok {
			return File{Volume: &v}
		}
	}
	d, ok := load[Directory](s, key)
	if !ok {
		must(fmt.Errorf("a name leads to %x, which does not exist", ref))
	}
	return File{Directory: &d}
}

// lookup returns what has a name.
func (s *State) lookup(path string) (File, bool) {
	if path == "/" {
		return s.file([]byte(fileRef(isDirectory, rootID))), true
	}
	dir, name := split(path)
	ref := s.find(byName, text(dir), name)
	if ref == nil {
		return File{}, false
	}
	return s.file(ref), true
}

// directory returns the directory at path.
func (s *State) directory(path string) (Directory, error) {
	f, ok := s.lookup(path)
	switch {
	case !ok:
		return Directory{}, refuse(NotExist, "directory %s does not exist", path)
	case f.Directory == nil:
		return Directory{}, refuse(InvalidArgument, "%s is a volume, not a directory", path)
	}
	return *f.Directory, nil
}

// parent returns the directory that path is, or would be, in.
func (s *State) parent(path string) (Directory, error) {
	dir, _ := split(path)
	return s.directory(dir)
}

// admits refuses users who may not make anything in the directory.
func (d Directory) admits(user string) error {
	switch {
	case d.ID == rootID:
		return nil
	case !owns(user, d.User):
		return refuse(NotOwner, "directory %s does not belong to %s", d.Path, user)
	case d.ID == recycleBinID:
		return refuse(Unsupported, "only deleted volumes get into %s", RecycleBin)
	}
	return nil
}

func (c CreateDir) apply(s *State) (any, error) {
	if err := cmp.Or(checkUser(c.User), checkPath(c.Path)); err != nil {
		return nil, err
	}
	if c.Path == "/" {
		return nil, refuse(Exists, "/ is the root directory")
	}
	dir, err := s.parent(c.Path)
	if err != nil {
		return nil, err
	}
	if err := dir.admits(c.User); err != nil {
		return nil, err
	}
	if f, ok := s.lookup(c.Path); ok {
		if f.Directory != nil && f.Directory.User == c.User {
			return *f.Directory, nil
		}
		return nil, refuse(Exists, "%s exists already", c.Path)
	}
	d := Directory{ID: chunk.VolumeID(s.next(counterFile)), Path: c.Path, User: c.User, Time: c.Time}
	put(s, d)
	return d, nil
}

// delete removes an empty directory.
func (d Directory) delete(s *State) error {
	if d.ID == rootID || d.ID == recycleBinID {
		return refuse(Unsupported, "directory %s is always there", d.Path)
	}
	if n := s.count(byName, text(d.Path)); n > 0 {
		return refuse(BadStatus, "directory %s has %d entries", d.Path, n)
	}
	remove(s, d)
	return nil
}
