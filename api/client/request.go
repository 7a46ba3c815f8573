package client

import (
	"fmt"
	"net/url"
	"reflect"
	"strings"
)

// The fields of a request are its parameters. What is left empty is not sent.
// Paths are absolute. User is the owner of what the request is about, or
// "root", who may do everything.

// CreateFileRequest makes a volume. Parents of File must exist.
type CreateFileRequest struct {
	User        string
	File        string
	Size        uint64 // GiB
	StripeUnit  uint64 // bytes, a multiple of 4 KiB that divides the chunk size; 0 if StripeCount is
	StripeCount uint64 // 1 to 64; 0 for no stripes
	PoolSet     string // default: the default poolset
}

// CreateDirRequest makes a directory.
type CreateDirRequest struct {
	User string
	File string
}

// DeleteFileRequest deletes a volume or an empty directory.
type DeleteFileRequest struct {
	User string
	File string
}

// ListFileRequest asks for the volume or directory File, or else for the
// entries of the directory Dir, sorted by name.
type ListFileRequest struct {
	User string
	Dir  string
	File string
	Page
}

// Page says which part of a list is wanted.
type Page struct {
	Limit  uint64 // most elements; default: 10
	Offset uint64 // elements to pass over
}

// RenameRequest gives a volume another path.
type RenameRequest struct {
	User        string
	File        string
	Destination string
}

// ExtendRequest makes a volume larger.
type ExtendRequest struct {
	User string
	File string
	Size uint64 // GiB
}

// RestoreFileRequest takes a deleted volume out of /RecycleBin, back to where
// it was.
type RestoreFileRequest struct {
	User string
	File string // in /RecycleBin
}

// ChildrenRequest asks for the clones that read from a volume's snapshots, or
// from the one with a Name.
type ChildrenRequest struct {
	User string
	File string
	Name string
}

// CreateSnapshotRequest takes a snapshot.
type CreateSnapshotRequest struct {
	User string
	File string
	Name string
}

// DeleteSnapshotRequest deletes the snapshot Name of the volume File, or else
// that with a UUID, which must belong to File if that is set.
type DeleteSnapshotRequest struct {
	User string
	File string
	Name string
	UUID string
}

// CancelSnapshotRequest cancels a snapshot that is not finished.
type CancelSnapshotRequest struct {
	User string
	File string
	UUID string
}

// SnapshotInfoRequest asks for the snapshot with a UUID (which must belong to
// File if that is set), or else for that with a Name of the volume File, or
// else for all of the volume File, or else for all of the user.
type SnapshotInfoRequest struct {
	User string
	File string
	Name string
	UUID string
	Page
}

// SnapshotListRequest asks for all users' snapshots that match.
type SnapshotListRequest struct {
	User   string
	UUID   string
	File   string
	Status *SnapshotStatus
	Page
}

// CloneRequest makes a volume with the content of the snapshot Name of the
// volume File. That is a lazy clone: it can be used at once, and reads from the
// snapshot until it is flattened.
//
// Or else, of Source: the UUID of a snapshot, or the path of a volume, for its
// present content. Unless that is Lazy, flattening starts by itself.
type CloneRequest struct {
	User        string
	File        string
	Name        string
	Readonly    bool // only with File and Name
	Source      string
	Lazy        bool // only with Source
	Destination string
	Poolset     string // default: that of the volume, and no other is supported
}

// RecoverRequest makes a volume's content that of the snapshot Name of the
// volume File, or else that of the snapshot with the UUID Source, which must
// belong to the volume Destination.
type RecoverRequest struct {
	User        string
	File        string
	Name        string
	Source      string
	Destination string // only with Source
	Lazy        bool   // only with Source, and only remembered: it is done at once
}

// FlattenRequest makes the clone File, or else that with the task UUID,
// independent of what it was cloned from.
type FlattenRequest struct {
	User string
	File string
	UUID string
}

// CloneTasksRequest asks for the user's task with a UUID, or else for those of
// the volume File, or else for all.
type CloneTasksRequest struct {
	User string
	UUID string
	File string
	Page
}

// CleanCloneTaskRequest removes the record of a finished task.
type CleanCloneTaskRequest struct {
	User string
	UUID string
}

// CloneTaskListRequest asks for all users' tasks that match.
type CloneTaskListRequest struct {
	User        string
	UUID        string
	Source      string
	Destination string
	Status      *TaskStatus
	Type        *TaskType
	Page
}

// CloneRefStatusRequest asks whether clones depend on a volume.
type CloneRefStatusRequest struct {
	User   string
	Source string // path
}

// version is the generation that the client says it speaks.
const version = "1.5"

// encode returns the query of a request. Bools are always sent, as some are
// required.
func encode(action string, request any) string {
	query := "Action=" + action + "&Version=" + version
	v := reflect.ValueOf(request)
	for _, field := range reflect.VisibleFields(v.Type()) {
		value := v.FieldByIndex(field.Index)
		if field.Anonymous || value.IsZero() && field.Type.Kind() != reflect.Bool {
			continue
		}
		text := fmt.Sprint(reflect.Indirect(value))
		query += "&" + field.Name + "=" + escape(text)
	}
	return query
}

// escape is url.QueryEscape for a server to which a plus is a plus.
func escape(value string) string {
	return strings.ReplaceAll(url.QueryEscape(value), "+", "%20")
}
