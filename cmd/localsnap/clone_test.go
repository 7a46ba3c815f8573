package main

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/localsnap/localsnap/api/client"
)

// A clone of a volume's present content, made beside its writer, is one point
// in time; nothing that comes while it is copied up leaves anything behind.
func TestCloneBesideWriter(t *testing.T) {
	t.Parallel()
	f := startFleet(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const clones, places = 4, 24
	v := f.views(ctx)
	v.create("/v", 1)
	w := startCounting(ctx, v.attach("/v").writer, places)
	var tasks [clones]string
	var taken [clones]uint64
	path := func(i int) string { return fmt.Sprint("/c", i) }
	for i := range clones {
		w.await(t, places*2/3)
		task, err := f.users.Clone(ctx, client.CloneRequest{User: "ann", Source: "/v", Destination: path(i)})
		v.must(err, "clone %d", i)
		tasks[i], taken[i] = task, w.begun.Load()
		v.volumes[path(i)] = &modelled{}
		if v.meddle(path(i), task) {
			tasks[i] = ""
		}
	}
	before := uint64(0)
	for i := range clones {
		v.flattened(path(i))
		before = verifyCounts(ctx, t, f.session, path(i), "", places, before, taken[i])
	}
	w.finish(t)
	v.detach("/v")
	for i, task := range tasks {
		if task != "" {
			// The one request whose repetition finds what it did before.
			err := f.users.CleanCloneTask(ctx, client.CleanCloneTaskRequest{User: "ann", UUID: task})
			if !client.Refused(err, client.NotExist) {
				v.must(err, "clean task %d", i)
			}
		}
	}
	left, err := f.users.GetCloneTaskList(ctx, client.CloneTaskListRequest{})
	v.must(err, "list tasks")
	refs, err := f.users.GetCloneRefStatus(ctx, client.CloneRefStatusRequest{User: "ann", Source: "/v"})
	v.must(err, "references")
	if left.TotalCount != 0 || refs.RefStatus != client.Unreferenced {
		t.Errorf("left over: tasks %+v, references %+v", left.TaskInfos, refs)
	}
	f.await("nothing to purge", f.idle)
	v.delete("/v") // refused if a hidden snapshot were left
	for i := range clones {
		v.delete(path(i))
	}
	v.purgeTrash()
	v.taken("with nothing left", 0)
}

// meddle tries to cancel and clean what a clone is made with. It reports
// whether the task has been cleaned, as it can be when it is done.
func (v *views) meddle(path, task string) (cleaned bool) {
	v.t.Helper()
	err := v.users.CancelSnapshot(v.ctx, client.CancelSnapshotRequest{User: "ann", File: "/v", UUID: uuid.NewString()})
	v.refused(err, client.CancelFinished)
	tasks, err := v.users.GetCloneTasks(v.ctx, client.CloneTasksRequest{User: "ann", File: path})
	v.must(err, "tasks of %s", path)
	if got := tasks.TaskInfos[0]; got.UUID != task || got.FileType != client.FromVolume || got.Src != "/v" {
		v.t.Fatalf("task of %s: %+v", path, got)
	}
	if err = v.users.CleanCloneTask(v.ctx, client.CleanCloneTaskRequest{User: "ann", UUID: task}); err != nil {
		v.refused(err, client.TaskRunning)
	}
	return err == nil
}
