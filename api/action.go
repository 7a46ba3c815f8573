package api

import (
	"context"
	"fmt"
	"time"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/fsm"
)

// action takes the parameters of a request and returns what is to be done. If
// a parameter is refused, that is not looked at.
type action func(*params) operation

// operation carries out a request on the leader.
type operation func(context.Context, Metadata) (reply, error)

// actions is everything that can be asked.
var actions = map[string]action{
	"CreateDir":   createDir,
	"ListFile":    listFile,
	"DeleteFile":  deleteFile,
	"Rename":      rename,
	"RestoreFile": restoreFile,

	"CreateFile": createFile,
	"Extend":     extend,

	"CreateSnapshot":      createSnapshot,
	"DeleteSnapshot":      deleteSnapshot,
	"CancelSnapshot":      cancelSnapshot,
	"GetFileSnapshotInfo": getFileSnapshotInfo,
	"GetFileSnapshotList": getFileSnapshotList,

	"Clone":             clone,
	"Flatten":           flatten,
	"Children":          children,
	"GetCloneRefStatus": getCloneRefStatus,
	"Recover":           recoverVolume,

	"GetCloneTasks":    getCloneTasks,
	"GetCloneTaskList": getCloneTaskList,
	"CleanCloneTask":   cleanCloneTask,

	"ListChunkservers":  listChunkservers,
	"DrainChunkserver":  drainChunkserver,
	"RemoveChunkserver": removeChunkserver,
	"ListCopysets":      listCopysets,
}

// decode returns what a request wants to be done.
func decode(query string, now time.Time) (operation, error) {
	if len(query) > maxQuery {
		return nil, refuse(client.BadRequest, "the query has %d bytes: at most %d are allowed", len(query), maxQuery)
	}
	p := parse(query, uint64(now.UnixMicro()))
	name := p.required("Action")
	take, ok := actions[name]
	if !ok {
		p.fail("parameter Action: %.64q is no action of this service", name)
		return nil, p.err
	}
	p.required("Version")
	do := take(p)
	if p.err != nil {
		return nil, p.err
	}
	return do, nil
}

// query asks the state.
func query(ask func(*fsm.State) (reply, error)) operation {
	return func(ctx context.Context, m Metadata) (answer reply, err error) {
		err = m.Read(ctx, func(s *fsm.State) (err error) {
			answer, err = ask(s)
			return err
		})
		return answer, err
	}
}

// change carries out a command and makes a reply of its value.
func change[T any](c fsm.Command, render func(T) reply) operation {
	return func(ctx context.Context, m Metadata) (reply, error) {
		value, err := m.Do(ctx, c)
		if err != nil {
			return nil, err
		}
		t, ok := value.(T)
		if !ok {
			return nil, fmt.Errorf("%T has the value %T", c, value)
		}
		return render(t), nil
	}
}

// just carries out a command of which only the success is told.
func just(c fsm.Command) operation {
	return func(ctx context.Context, m Metadata) (reply, error) {
		_, err := m.Do(ctx, c)
		return &client.Reply{}, err
	}
}

// cut returns the part of a list that a page is.
func cut[T any](list []T, p fsm.Page) []T {
	list = list[min(p.Offset, len(list)):]
	return list[:min(p.Limit, len(list))]
}
