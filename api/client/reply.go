package client

// Reply is what all replies begin with, and all that most consist of.
type Reply struct {
	Code      Code
	Message   string
	RequestID string `json:"RequestId"`
	Detail    string `json:",omitempty"` // only with a failure
}

// Head returns the part that all replies have.
func (r *Reply) Head() *Reply { return r }

// UUIDReply answers CreateSnapshot, with the snapshot's UUID, and Clone and
// Recover, with that of their task.
type UUIDReply struct {
	Reply
	UUID string
}

// FilesReply answers ListFile and Children.
type FilesReply struct {
	Reply
	TotalCount int // without Limit and Offset
	FileInfos  []FileInfo
}

// FileInfo is a volume or directory.
type FileInfo struct {
	File        string // full path
	User        string // its owner
	Type        FileType
	Time        uint64 // of creation, microseconds since the epoch
	FileLength  uint64 // bytes
	StripeUnit  uint64 // bytes
	StripeCount uint64
	Status      FileStatus
	Readonly    bool
	Progress    int // percent: of the flattening while Flattening, 0 while Unflattened, else 100
}

// FileType is the type of a FileInfo.
type FileType int

const (
	Volume      FileType = 0
	Directory   FileType = 1
	UnknownFile FileType = 2
)

// FileStatus tells how a volume stands to what it was cloned from.
type FileStatus int

const (
	FileDone    FileStatus = 0
	Flattening  FileStatus = 1
	Unflattened FileStatus = 2 // a clone that still reads from its parent
)

// SnapshotsReply answers GetFileSnapshotInfo and GetFileSnapshotList.
type SnapshotsReply struct {
	Reply
	TotalCount int // without Limit and Offset
	Snapshots  []Snapshot
}

// Snapshot is a volume's content as of a moment.
type Snapshot struct {
	UUID       string
	User       string // its owner: that of the volume
	File       string // path of the volume
	SeqNum     uint64 // counts up per volume
	Name       string
	Time       uint64 // of creation, microseconds since the epoch
	FileLength uint64 // bytes
	Status     SnapshotStatus
	Progress   int // percent: of the deletion while SnapshotDeleting, else 100
}

// SnapshotStatus is the status of a Snapshot.
type SnapshotStatus int

const (
	SnapshotDone          SnapshotStatus = 0
	SnapshotPending       SnapshotStatus = 1
	SnapshotDeleting      SnapshotStatus = 2
	SnapshotErrorDeleting SnapshotStatus = 3
	SnapshotCanceling     SnapshotStatus = 4
	SnapshotError         SnapshotStatus = 5
)

// TasksReply answers GetCloneTasks and GetCloneTaskList.
type TasksReply struct {
	Reply
	TotalCount int // without Limit and Offset
	TaskInfos  []TaskInfo
}

// TaskInfo is the record of a clone or recover.
type TaskInfo struct {
	UUID       string
	User       string // who asked for it
	File       string // path of the volume that is made or recovered
	Src        string // UUID of a snapshot, or path of a volume
	TaskType   TaskType
	TaskStatus TaskStatus
	Time       uint64 // of creation, microseconds since the epoch
	IsLazy     bool
	FileType   SourceType // what Src is
	NextStep   int        // always 0
	Progress   int        // percent
}

// TaskType is the type of a TaskInfo.
type TaskType int

const (
	TaskClone   TaskType = 0
	TaskRecover TaskType = 1
)

// TaskStatus is the status of a TaskInfo.
type TaskStatus int

const (
	TaskDone          TaskStatus = 0
	TaskCloning       TaskStatus = 1
	TaskRecovering    TaskStatus = 2
	TaskCleaning      TaskStatus = 3
	TaskErrorCleaning TaskStatus = 4
	TaskError         TaskStatus = 5
	TaskRetrying      TaskStatus = 6
	TaskMetaInstalled TaskStatus = 7 // a lazy clone, usable, not flattened
)

// SourceType says what a clone was made of.
type SourceType int

const (
	FromVolume   SourceType = 0
	FromSnapshot SourceType = 1
)

// RefStatusReply answers GetCloneRefStatus.
type RefStatusReply struct {
	Reply
	RefStatus     RefStatus
	TotalCount    int
	CloneFileInfo []CloneFile // those to be checked
}

// RefStatus says whether anything depends on a volume.
type RefStatus int

const (
	Unreferenced RefStatus = 0
	Referenced   RefStatus = 1
	RefUnchecked RefStatus = 2 // if any of CloneFileInfo exists
)

// CloneFile is a clone that may depend on a volume.
type CloneFile struct {
	User  string
	File  string
	Inode uint64
}
