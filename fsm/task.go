package fsm

import (
	"cmp"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Task is the record of a clone or recover.
type Task struct {
	UUID         uuid.UUID
	Number       uint64 // tasks are listed in this order
	User         string
	Type         TaskType
	Source       string // the snapshot's UUID, or the path of a volume
	FromSnapshot bool   // what Source is
	Destination  string // path of the volume; after a rename, the new one
	Volume       chunk.VolumeID
	Time         uint64 // of creation, microseconds since the epoch
	Lazy         bool

	Status   TaskStatus `json:"-"` // follows from the volume; filled in by queries
	Progress int        `json:"-"` // percent; likewise
}

func (t Task) table() string { return "tasks" }

func (t Task) key() []byte { return t.UUID[:] }

func (t Task) entries() []entry {
	n, id := number(t.Number), string(t.UUID[:])
	return []entry{
		{byNumber, "", n, id},
		{byUser, text(t.User), n, id},
		{byDestination, text(t.Destination), n, id},
	}
}

// TaskType is what the contract calls the type of a task.
type TaskType uint8

const (
	TaskClone   TaskType = 0
	TaskRecover TaskType = 1
)

// TaskStatus is what the contract calls the status of a task. The contract
// knows more; these are the ones that occur.
type TaskStatus uint8

const (
	TaskDone          TaskStatus = 0
	TaskCloning       TaskStatus = 1
	TaskMetaInstalled TaskStatus = 7 // a lazy clone, usable, not flattened
)

// CleanTask removes the record of a finished task.
type CleanTask struct {
	User string
	UUID uuid.UUID
}

// TaskFilter chooses tasks; what is left empty matches all.
type TaskFilter struct {
	User        string
	UUID        uuid.UUID
	Source      string
	Destination string
	Status      *TaskStatus
	Type        *TaskType
}

// Task returns a task. It must belong to user.
func (s *State) Task(user string, id uuid.UUID) (Task, error) {
	if err := checkUser(user); err != nil {
		return Task{}, err
	}
	t, ok := load[Task](s, id[:])
	switch {
	case !ok:
		return t, refuse(NotExist, "task %s does not exist", id)
	case !owns(user, t.User):
		return t, refuse(NotOwner, "task %s does not belong to %s", id, user)
	}
	return s.follow(t), nil
}

// Tasks returns the tasks that match, oldest first, and their total number.
func (s *State) Tasks(f TaskFilter, p Page) (tasks []Task, total int, err error) {
	err = cmp.Or(checkGiven(f.User, checkUser), checkGiven(f.Source, checkSource), checkGiven(f.Destination, checkPath))
	if err != nil {
		return nil, 0, err
	}
	tasks, total = s.tasks(f, p)
	return tasks, total, nil
}

func (s *State) tasks(f TaskFilter, p Page) (tasks []Task, total int) {
	get := func(id []byte) Task {
		t, _ := load[Task](s, id)
		return s.follow(t)
	}
	index, group, match := byNumber, "", f.match
	switch {
	case f.UUID != uuid.Nil:
		t, err := s.Task(Root, f.UUID)
		if err != nil || !f.match(&t) {
			return []Task{}, 0
		}
		return single(t, p), 1
	case f.Destination != "":
		index, group = byDestination, text(f.Destination)
	case f.User != "":
		index, group = byUser, text(f.User)
	}
	if f == (TaskFilter{User: f.User}) || f == (TaskFilter{Destination: f.Destination}) {
		match = nil // what an index says is enough
	}
	return page(s, index, group, p, get, match)
}

// checkSource refuses what can't be the source of a task: neither the UUID of a
// snapshot nor the path of a volume.
func checkSource(source string) error {
	if _, err := uuid.Parse(source); err == nil {
		return nil
	}
	return checkPath(source)
}

func (f TaskFilter) match(t *Task) bool {
	return (f.User == "" || f.User == t.User) &&
		(f.Source == "" || f.Source == t.Source) &&
		(f.Destination == "" || f.Destination == t.Destination) &&
		(f.Status == nil || *f.Status == t.Status) &&
		(f.Type == nil || *f.Type == t.Type)
}

// follow fills in what follows from the volume.
func (s *State) follow(t Task) Task {
	t.Status, t.Progress = TaskDone, 100
	v, ok := load[Volume](s, Volume{ID: t.Volume}.key())
	if !ok || t.Type != TaskClone || v.Trash != nil {
		return t
	}
	switch v.Status() {
	case VolumeFlattening:
		t.Status, t.Progress = TaskCloning, 5+v.Progress*9/10
	case VolumeUnflattened:
		t.Status, t.Progress = TaskMetaInstalled, 5
	}
	return t
}

// record stores a new task. An earlier one of the same type gives way to it:
// clients can't tell apart what a destination has two of.
func (s *State) record(t Task) Task {
	s.dropTasks(t.Destination, t.Volume)
	for _, old := range s.tasksAt(t.Destination) {
		if old.Type == t.Type {
			remove(s, old)
		}
	}
	t.Number = s.next(counterTask)
	put(s, t)
	return s.follow(t)
}

// tasksAt returns the tasks of a destination.
func (s *State) tasksAt(path string) []Task {
	var tasks []Task
	for _, id := range s.uuids(byDestination, text(path)) {
		t, _ := load[Task](s, id[:])
		tasks = append(tasks, t)
	}
	return tasks
}

// dropTasks removes what is left of volumes that were at a destination before
// the one that is there now.
func (s *State) dropTasks(path string, now chunk.VolumeID) {
	for _, t := range s.tasksAt(path) {
		if t.Volume != now {
			remove(s, t)
		}
	}
}

// takeUnfinished removes the task of a clone that is not flattened, and returns
// it; nil for another volume. It is there, as it can't be cleaned before.
func (s *State) takeUnfinished(v Volume) *Task {
	if v.Status() == VolumeDone {
		return nil
	}
	t, _ := load[Task](s, v.Origin.Task[:])
	remove(s, t)
	return &t
}

func (c CleanTask) apply(s *State) (any, error) {
	t, err := s.Task(c.User, c.UUID)
	if err != nil {
		return nil, err
	}
	if t.Status != TaskDone {
		return nil, refuse(TaskRunning, "task %s is not finished", c.UUID)
	}
	remove(s, t)
	return nil, nil
}
