package fsm

import "fmt"

// Kind says why a command or a query was refused. Kinds are results of
// replicated commands: new ones are appended, none is ever renumbered.
type Kind uint8

const (
	// InvalidArgument: a value is well-formed but unacceptable.
	InvalidArgument Kind = 1 + iota
	// NotExist: the volume, directory, snapshot, task, pool, node or
	// attachment does not exist.
	NotExist
	// NotOwner: the object belongs to another user.
	NotOwner
	// Exists: the name is taken, and not by what the same command made.
	Exists
	// BadStatus: the object's state forbids it, and no other kind says why.
	BadStatus
	// Unsupported: this kind of object can't do that.
	Unsupported
	// NameMismatch: the snapshot belongs to another volume than was named.
	NameMismatch
	// InvalidSnapshot: the snapshot is being deleted, or is in error.
	InvalidSnapshot
	// CancelFinished: the snapshot to cancel is finished, or unknown.
	CancelFinished
	// SnapshotInUse: the snapshot has clones that read from it.
	SnapshotInUse
	// SnapshotLimit: the volume has as many snapshots as it may have.
	SnapshotLimit
	// UnderSnapshot: the volume has snapshots.
	UnderSnapshot
	// Occupied: the volume is attached or being flattened.
	Occupied
	// TaskRunning: the task is not finished.
	TaskRunning
	// Stale: the command was decided on facts that are no longer so (the
	// writer's turn, a copyset's epoch). Look again and decide anew.
	Stale

	kindsEnd
)

// Kinds lists every kind, for tables that must be total.
func Kinds() []Kind {
	var kinds []Kind
	for k := InvalidArgument; k < kindsEnd; k++ {
		kinds = append(kinds, k)
	}
	return kinds
}

// Error is a refusal. The state is as it was before.
type Error struct {
	Kind   Kind
	Detail string // one human sentence: what was wrong with which value
}

func (e *Error) Error() string { return e.Detail }

func refuse(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Detail: fmt.Sprintf(format, args...)}
}
