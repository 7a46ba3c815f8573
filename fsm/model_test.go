package fsm

import (
	"slices"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// model is the contract once more, with plain maps and pointers, and with the
// content of every volume and snapshot as a value instead of layers. Its
// methods say how a command is refused (0: it succeeds), and, if it succeeds,
// what it does to the model.
type model struct {
	limit     int
	retention uint64
	dirs      map[string]string // path -> owner
	volumes   map[string]*mVolume
	snapshots map[uuid.UUID]*mSnapshot
	tasks     map[uuid.UUID]*mTask
	attached  map[uint64]*mAttachment
}

const blocks = 3

type content [blocks]int

type mVolume struct {
	id         chunk.VolumeID
	path, user string
	was        string
	size       uint64
	data       content
	readOnly   bool
	parent     *mSnapshot
	flattening bool
	origin     Clone  // as it was given, if it is a clone
	source     string // of the origin
	task       *mTask // of the origin
	recovered  *mTask
	trash      string // where it was
	trashTime  uint64
}

type mSnapshot struct {
	id       uuid.UUID
	name     string
	of       *mVolume
	data     content
	size     uint64
	deleting bool
	hidden   bool
}

type mTask struct {
	id          uuid.UUID
	user        string
	source      string
	destination string
	of          *mVolume
	recover     bool
	lazy        bool
}

type mAttachment struct {
	id       uint64
	of       *mVolume
	snapshot *mSnapshot
	readOnly bool
	turn     uint64
	data     content     // what a reader sees
	view     *chunk.View // as it was given to the reader
}

func newModel(limit int, retention uint64) *model {
	return &model{
		limit: limit, retention: retention,
		dirs:      map[string]string{"/": Root, RecycleBin: Root},
		volumes:   map[string]*mVolume{},
		snapshots: map[uuid.UUID]*mSnapshot{},
		tasks:     map[uuid.UUID]*mTask{},
		attached:  map[uint64]*mAttachment{},
	}
}

func (m *model) exists(path string) bool { return m.dirs[path] != "" || m.volumes[path] != nil }

// inside says why nothing can be made at path, in two steps.
func (m *model) inside(path string) (exists, admits func(user string) Kind) {
	dir, _ := split(path)
	exists = func(string) Kind {
		switch {
		case m.volumes[dir] != nil:
			return InvalidArgument
		case m.dirs[dir] == "":
			return NotExist
		}
		return 0
	}
	admits = func(user string) Kind {
		switch {
		case dir == "/":
			return 0
		case user != Root && m.dirs[dir] != user:
			return NotOwner
		case dir == RecycleBin:
			return Unsupported
		}
		return 0
	}
	return exists, admits
}

func firstOf(kinds ...Kind) Kind {
	for _, k := range kinds {
		if k != 0 {
			return k
		}
	}
	return 0
}

func when(condition bool, k Kind) Kind {
	if condition {
		return k
	}
	return 0
}

// live finds a volume that user may change.
func (m *model) live(user, path string) (*mVolume, Kind) {
	v := m.volumes[path]
	switch owner := m.dirs[path]; {
	case v == nil && owner == "":
		return nil, NotExist
	case v == nil && user != Root && user != owner:
		return nil, NotOwner
	case v == nil:
		return nil, Unsupported
	case user != Root && user != v.user:
		return nil, NotOwner
	case v.trash != "":
		return nil, BadStatus
	}
	return v, 0
}

func (m *model) snapshotsOf(v *mVolume) (visible, hidden []*mSnapshot) {
	for _, n := range m.snapshots {
		if n.of == v && n.hidden {
			hidden = append(hidden, n)
		} else if n.of == v {
			visible = append(visible, n)
		}
	}
	return visible, hidden
}

func (m *model) named(path, name string) *mSnapshot {
	for _, n := range m.snapshots {
		if n.of.path == path && n.name == name && !n.hidden {
			return n
		}
	}
	return nil
}

// clones of a snapshot, live or in the trash.
func (m *model) clones(n *mSnapshot, trashed bool) (clones []*mVolume) {
	for _, v := range m.volumes {
		if v.parent == n && (v.trash != "") == trashed {
			clones = append(clones, v)
		}
	}
	return clones
}

func (m *model) heads(v *mVolume) (writer *mAttachment, readers int) {
	for _, a := range m.attached {
		if a.of == v && a.snapshot == nil && a.readOnly {
			readers++
		} else if a.of == v && a.snapshot == nil {
			writer = a
		}
	}
	return writer, readers
}

func (m *model) pinned(n *mSnapshot) bool {
	for _, a := range m.attached {
		if a.snapshot == n {
			return true
		}
	}
	return false
}

func (m *model) occupied(v *mVolume) bool {
	writer, readers := m.heads(v)
	return v.flattening || writer != nil || readers > 0
}

// drop makes a volume disappear, with the hidden snapshot that it used last.
func (m *model) drop(v *mVolume) {
	delete(m.volumes, v.path)
	m.unhide(v.parent)
}

func (m *model) unhide(n *mSnapshot) {
	if n != nil && n.hidden && len(m.clones(n, true))+len(m.clones(n, false)) == 0 {
		delete(m.snapshots, n.id)
	}
}

func (m *model) createVolume(c CreateVolume) (Kind, func(any)) {
	exists, admits := m.inside(c.Path)
	if k := firstOf(exists(c.User), admits(c.User)); k != 0 {
		return k, nil
	}
	if m.exists(c.Path) {
		v := m.volumes[c.Path]
		return when(v == nil || v.user != c.User || v.size != c.Size || v.task != nil, Exists), func(any) {}
	}
	return 0, func(value any) {
		m.volumes[c.Path] = &mVolume{id: value.(Volume).ID, path: c.Path, user: c.User, size: c.Size}
	}
}

func (m *model) createDir(c CreateDir) (Kind, func(any)) {
	exists, admits := m.inside(c.Path)
	if k := firstOf(exists(c.User), admits(c.User)); k != 0 {
		return k, nil
	}
	if m.exists(c.Path) {
		return when(m.dirs[c.Path] != c.User, Exists), func(any) {}
	}
	return 0, func(any) { m.dirs[c.Path] = c.User }
}

func (m *model) delete(c Delete) (Kind, func(any)) {
	if owner := m.dirs[c.Path]; owner != "" {
		full := false
		for path := range m.dirs {
			dir, _ := split(path)
			full = full || path != "/" && dir == c.Path
		}
		for path := range m.volumes {
			dir, _ := split(path)
			full = full || dir == c.Path
		}
		return firstOf(
			when(c.User != Root && c.User != owner, NotOwner),
			when(c.Path == "/" || c.Path == RecycleBin, Unsupported),
			when(full, BadStatus),
		), func(any) { delete(m.dirs, c.Path) }
	}
	v := m.volumes[c.Path]
	switch {
	case v == nil:
		return 0, func(any) {}
	case c.User != Root && c.User != v.user:
		return NotOwner, nil
	case v.trash != "":
		return 0, func(any) { m.drop(v) }
	}
	visible, hidden := m.snapshotsOf(v)
	used := slices.ContainsFunc(hidden, func(n *mSnapshot) bool { return len(m.clones(n, false)) > 0 })
	return firstOf(when(len(visible) > 0 || used, UnderSnapshot), when(m.occupied(v), Occupied)), func(any) {
		for _, n := range hidden {
			for _, clone := range m.clones(n, true) {
				m.drop(clone)
			}
		}
		if v.parent != nil {
			delete(m.tasks, v.task.id)
		}
		if m.retention == 0 {
			m.drop(v)
			return
		}
		delete(m.volumes, v.path)
		_, name := split(v.path)
		v.trash, v.trashTime = v.path, c.Time
		v.path = RecycleBin + "/" + trashName(name, v.id)
		m.volumes[v.path] = v
	}
}

// moved finds the volume at destination if it came there from path.
func (m *model) moved(user, path, destination string) bool {
	v := m.volumes[destination]
	return !m.exists(path) && v != nil && v.was == path && (user == Root || user == v.user)
}

func (m *model) move(v *mVolume, path string) {
	for id, t := range m.tasks {
		if t.destination == path && t.of != v {
			delete(m.tasks, id)
		}
		if t.destination == v.path && t.of == v {
			t.destination = path
		}
	}
	delete(m.volumes, v.path)
	v.was, v.path = v.path, path
	m.volumes[path] = v
}

func (m *model) restoreFile(c RestoreFile) (Kind, func(any)) {
	for path := range m.volumes {
		if dir, _ := split(c.Path); dir == RecycleBin && m.moved(c.User, c.Path, path) && m.volumes[path].trash == "" {
			return 0, func(any) {}
		}
	}
	if _, k := m.live(c.User, c.Path); k != BadStatus {
		return firstOf(k, BadStatus), nil
	}
	v := m.volumes[c.Path]
	exists, admits := m.inside(v.trash)
	return firstOf(exists(c.User), admits(c.User), when(m.exists(v.trash), Exists)), func(any) {
		path := v.trash
		v.trash = ""
		m.move(v, path)
		if v.parent != nil {
			m.tasks[v.task.id] = v.task
		}
	}
}

func (m *model) rename(c Rename) (Kind, func(any)) {
	if m.moved(c.User, c.Path, c.Destination) {
		return 0, func(any) {}
	}
	exists, admits := m.inside(c.Destination)
	v, k := m.live(c.User, c.Path)
	if k == NotExist {
		return k, nil
	}
	if k := exists(c.User); k != 0 {
		return k, nil
	}
	if k == NotOwner {
		return k, nil
	}
	if k := firstOf(admits(c.User), k); k != 0 {
		return k, nil
	}
	if c.Path == c.Destination {
		return 0, func(any) {}
	}
	return firstOf(when(v.flattening, BadStatus), when(m.exists(c.Destination), Exists)),
		func(any) { m.move(v, c.Destination) }
}

func (m *model) extend(c Extend) (Kind, func(any)) {
	v, k := m.live(c.User, c.Path)
	if k != 0 {
		return k, nil
	}
	if v.size == c.Size {
		return 0, func(any) {}
	}
	return firstOf(when(c.Size < v.size, InvalidArgument), when(v.flattening, BadStatus)),
		func(any) { v.size, v.recovered = c.Size, nil }
}

// freezable says why no snapshot can be taken.
func (m *model) freezable(v *mVolume, attachment, turn uint64) Kind {
	visible, hidden := m.snapshotsOf(v)
	w, _ := m.heads(v)
	return firstOf(
		when(len(visible)+len(hidden) >= m.limit, SnapshotLimit),
		when(w != nil && (w.id != attachment || w.turn != turn), Stale),
	)
}

func (m *model) createSnapshot(c CreateSnapshot) (Kind, func(any)) {
	v, k := m.live(c.User, c.Path)
	if k != 0 {
		return k, nil
	}
	if n := m.named(c.Path, c.Name); n != nil {
		return when(n.deleting, Exists), func(any) {}
	}
	return m.freezable(v, c.Attachment, c.Turn), func(any) {
		m.snapshots[c.UUID] = &mSnapshot{id: c.UUID, name: c.Name, of: v, data: v.data, size: v.size}
	}
}

func (m *model) deleteSnapshot(c DeleteSnapshot) (Kind, func(any)) {
	n := m.snapshots[c.UUID]
	if c.UUID == uuid.Nil {
		if n = m.named(c.Path, c.Name); n == nil && m.dirs[c.Path] != "" {
			_, k := m.live(c.User, c.Path)
			return k, nil
		}
	}
	if n == nil || n.hidden {
		return 0, func(any) {}
	}
	return firstOf(
			when(c.User != Root && c.User != n.of.user, NotOwner),
			when(c.UUID != uuid.Nil && c.Path != "" && c.Path != n.of.path, NameMismatch),
			when(len(m.clones(n, false)) > 0, SnapshotInUse),
		), func(any) {
			for _, clone := range m.clones(n, true) {
				m.drop(clone)
			}
			n.deleting = true
		}
}

// snapshot finds the snapshot that a clone or recover is to be made of.
func (m *model) snapshot(user string, id uuid.UUID, path, name string) (*mSnapshot, Kind) {
	n := m.snapshots[id]
	if id == uuid.Nil {
		if n = m.named(path, name); n == nil && m.dirs[path] != "" {
			return nil, firstOf(when(user != Root && user != m.dirs[path], NotOwner), Unsupported)
		}
	}
	return n, when(n == nil || n.hidden, NotExist)
}

func (m *model) clone(c Clone) (Kind, func(any)) {
	var n *mSnapshot
	var from *mVolume
	var k Kind
	source := c.Path
	if c.Snapshot != uuid.Nil || c.Name != "" {
		if n, k = m.snapshot(Root, c.Snapshot, c.Path, c.Name); n != nil {
			from, source = n.of, n.id.String()
		} else if c.Snapshot != uuid.Nil {
			source = c.Snapshot.String()
		} else {
			source = ""
		}
	} else if from = m.volumes[c.Path]; from == nil {
		if _, k = m.live(c.User, c.Path); k == 0 {
			k = NotExist
		}
	}
	there := m.volumes[c.Destination]
	if there != nil && there.task != nil && there.user == c.User && there.source == source &&
		there.origin.Lazy == c.Lazy && there.origin.ReadOnly == c.ReadOnly {
		return 0, func(any) {}
	}
	exists, admits := m.inside(c.Destination)
	if k := firstOf(k, exists(c.User)); k != 0 {
		return k, nil
	}
	k = firstOf(
		when(c.User != Root && c.User != from.user, NotOwner),
		admits(c.User),
		when(from.trash != "", BadStatus),
		when(n != nil && n.deleting, InvalidSnapshot),
		when(m.exists(c.Destination), Exists),
		when(n == nil && k == 0, m.freezable(from, c.Attachment, c.Turn)),
	)
	return k, func(value any) {
		if n == nil {
			n = &mSnapshot{id: c.Hidden, of: from, data: from.data, size: from.size, hidden: true}
			m.snapshots[n.id] = n
		}
		v := &mVolume{
			id: value.(Task).Volume, path: c.Destination, user: c.User, size: n.size, data: n.data, readOnly: c.ReadOnly,
			parent: n, flattening: !c.Lazy, origin: c, source: source,
		}
		v.task = &mTask{id: c.UUID, user: c.User, source: source, destination: c.Destination, of: v, lazy: c.Lazy}
		m.volumes[v.path] = v
		m.record(v.task)
	}
}

// record keeps a task instead of what it supersedes.
func (m *model) record(t *mTask) {
	for id, old := range m.tasks {
		if old.destination == t.destination && (old.of != t.of || old.recover == t.recover) {
			delete(m.tasks, id)
		}
	}
	m.tasks[t.id] = t
}

func (m *model) running(t *mTask) bool {
	return !t.recover && m.volumes[t.of.path] == t.of && t.of.parent != nil && t.of.trash == ""
}

func (m *model) task(user string, id uuid.UUID) (*mTask, Kind) {
	t := m.tasks[id]
	if t == nil {
		return nil, NotExist
	}
	return t, when(user != Root && user != t.user, NotOwner)
}

func (m *model) flatten(c Flatten) (Kind, func(any)) {
	if c.UUID != uuid.Nil {
		t, k := m.task(c.User, c.UUID)
		return k, func(any) {
			if m.running(t) {
				t.of.flattening = true
			}
		}
	}
	v, k := m.live(c.User, c.Path)
	return k, func(any) { v.flattening = v.parent != nil }
}

func (m *model) flattenDone(c FlattenDone) (Kind, func(any)) {
	for _, v := range m.volumes {
		if v.id == c.Volume && v.parent != nil {
			return when(!v.flattening, BadStatus), func(any) {
				parent := v.parent
				v.parent, v.flattening = nil, false
				m.unhide(parent)
			}
		}
	}
	return 0, func(any) {}
}

func (m *model) recover(c Recover) (Kind, func(any)) {
	if c.Destination != "" && !m.exists(c.Destination) {
		return NotExist, nil
	}
	n, k := m.snapshot(c.User, c.Snapshot, c.Path, c.Name)
	if k != 0 {
		return k, nil
	}
	v := n.of
	if c.User != Root && c.User != v.user {
		return NotOwner, nil
	}
	if c.Destination != "" && c.Destination != v.path {
		owner := m.dirs[c.Destination]
		if owner == "" {
			owner = m.volumes[c.Destination].user
		}
		return firstOf(when(c.User != Root && c.User != owner, NotOwner), Unsupported), nil
	}
	if t := v.recovered; t != nil && m.tasks[t.id] == t && t.source == n.id.String() && t.user == c.User && t.lazy == c.Lazy {
		return 0, func(any) {}
	}
	return firstOf(when(n.deleting, InvalidSnapshot), when(m.occupied(v), Occupied)), func(any) {
		v.data, v.size = n.data, n.size
		v.recovered = &mTask{id: c.UUID, user: c.User, source: n.id.String(), destination: v.path, of: v, recover: true, lazy: c.Lazy}
		m.record(v.recovered)
	}
}

func (m *model) cleanTask(c CleanTask) (Kind, func(any)) {
	t, k := m.task(c.User, c.UUID)
	if k != 0 {
		return k, nil
	}
	return when(m.running(t), TaskRunning), func(any) { delete(m.tasks, t.id) }
}

func (m *model) attach(c Attach) (Kind, func(any)) {
	if c.Snapshot != "" {
		n, k := m.snapshot(Root, uuid.Nil, c.Path, c.Snapshot)
		if k != 0 {
			return k, nil
		}
		return firstOf(when(!c.ReadOnly, Unsupported), when(n.deleting, InvalidSnapshot)), func(value any) {
			x := value.(Context)
			m.attached[x.Attachment.ID] = &mAttachment{id: x.Attachment.ID, of: n.of, snapshot: n, readOnly: true, data: n.data, view: x.View}
		}
	}
	v, k := m.live(Root, c.Path)
	if k != 0 {
		return k, nil
	}
	writer, readers := m.heads(v)
	return firstOf(
			when(writer != nil, Occupied),
			when(!c.ReadOnly && v.readOnly, Unsupported),
			when(!c.ReadOnly && readers > 0, Occupied),
		), func(value any) {
			x := value.(Context)
			a := &mAttachment{id: x.Attachment.ID, of: v, readOnly: c.ReadOnly, turn: 1, data: v.data, view: x.View}
			m.attached[a.id] = a
			if !c.ReadOnly {
				v.recovered = nil
			}
		}
}

func (m *model) resume(c Resume) (Kind, func(any)) {
	a := m.attached[c.Attachment]
	return when(a == nil, NotExist), func(any) { a.turn++ }
}

func (m *model) expireTrash(c ExpireTrash) (Kind, func(any)) {
	return 0, func(any) {
		for _, v := range m.volumes {
			if v.trash != "" && v.trashTime <= c.Before {
				m.drop(v)
			}
		}
	}
}
