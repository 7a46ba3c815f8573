package api

import (
	"errors"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/fsm"
)

// TestClientSpeaksToServer goes through all methods of the client: what they
// send is what the server takes, and every field of a reply arrives.
func TestClientSpeaksToServer(t *testing.T) {
	t.Parallel()
	world := newWorld(t, func(*fsm.Settings) {})
	server := httptest.NewServer((&Server{Metadata: world, Now: (&clock{now: epoch}).Now}).Handler())
	c := client.New(server.URL)
	t.Cleanup(func() {
		c.HTTP.CloseIdleConnections()
		server.Close()
	})
	ctx, micros := t.Context(), uint64(epoch.UnixMicro())
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	same := func(want, got any) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmpopts.IgnoreTypes(client.Reply{})); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	const ann, gib = "ann", 1 << 30

	must(c.CreateDir(ctx, client.CreateDirRequest{User: ann, File: "/d"}))
	must(c.CreateFile(ctx, client.CreateFileRequest{
		User: ann, File: "/d/a b+c", Size: 1, StripeUnit: 4096, StripeCount: 2, PoolSet: "default"}))
	must(c.Extend(ctx, client.ExtendRequest{User: ann, File: "/d/a b+c", Size: 2}))
	must(c.Rename(ctx, client.RenameRequest{User: ann, File: "/d/a b+c", Destination: "/d/v"}))
	must(c.DeleteFile(ctx, client.DeleteFileRequest{User: ann, File: "/d/v"}))
	must(c.RestoreFile(ctx, client.RestoreFileRequest{User: ann, File: "/RecycleBin/v-4"}))
	files, err := c.ListFile(ctx, client.ListFileRequest{User: ann, Dir: "/d", Page: client.Page{Limit: 1}})
	must(err)
	volume := client.FileInfo{File: "/d/v", User: ann, Time: micros + 2e6, FileLength: 2 * gib, StripeUnit: 4096, StripeCount: 2, Progress: 100}
	same(client.FilesReply{TotalCount: 1, FileInfos: []client.FileInfo{volume}}, files)

	snapshot, err := c.CreateSnapshot(ctx, client.CreateSnapshotRequest{User: ann, File: "/d/v", Name: "s"})
	must(err)
	snapshots, err := c.GetFileSnapshotInfo(ctx, client.SnapshotInfoRequest{User: ann, UUID: snapshot})
	must(err)
	want := client.SnapshotsReply{TotalCount: 1, Snapshots: []client.Snapshot{{
		UUID: snapshot, User: ann, File: "/d/v", SeqNum: 1, Name: "s", Time: micros + 8e6, FileLength: 2 * gib, Progress: 100,
	}}}
	same(want, snapshots)
	status := client.SnapshotDone
	snapshots, err = c.GetFileSnapshotList(ctx, client.SnapshotListRequest{User: ann, File: "/d/v", Status: &status})
	must(err)
	same(want, snapshots)

	lazy, err := c.Clone(ctx, client.CloneRequest{User: ann, File: "/d/v", Name: "s", Readonly: true, Destination: "/lazy", Poolset: "default"})
	must(err)
	full, err := c.Clone(ctx, client.CloneRequest{User: ann, Source: snapshot, Destination: "/full"})
	must(err)
	children, err := c.Children(ctx, client.ChildrenRequest{User: ann, File: "/d/v", Name: "s"})
	must(err)
	same(client.FilesReply{TotalCount: 2, FileInfos: []client.FileInfo{
		{File: "/lazy", User: ann, Time: micros + 11e6, FileLength: 2 * gib, StripeUnit: 4096, StripeCount: 2, Status: client.Unflattened, Readonly: true},
		{File: "/full", User: ann, Time: micros + 12e6, FileLength: 2 * gib, StripeUnit: 4096, StripeCount: 2, Status: client.Flattening},
	}}, children)
	references, err := c.GetCloneRefStatus(ctx, client.CloneRefStatusRequest{User: ann, Source: "/d/v"})
	must(err)
	same(client.RefStatusReply{RefStatus: client.Referenced, CloneFileInfo: []client.CloneFile{}}, references)

	must(c.Flatten(ctx, client.FlattenRequest{User: ann, UUID: lazy}))
	running, clones := client.TaskCloning, client.TaskClone
	tasks, err := c.GetCloneTaskList(ctx, client.CloneTaskListRequest{Source: snapshot, Status: &running, Type: &clones, Page: client.Page{Offset: 1}})
	must(err)
	same(client.TasksReply{TotalCount: 2, TaskInfos: []client.TaskInfo{{
		UUID: full, User: ann, File: "/full", Src: snapshot, TaskStatus: client.TaskCloning,
		Time: micros + 12e6, FileType: client.FromSnapshot, Progress: 5,
	}}}, tasks)

	recovered, err := c.Recover(ctx, client.RecoverRequest{User: ann, Source: snapshot, Destination: "/d/v", Lazy: true})
	must(err)
	tasks, err = c.GetCloneTasks(ctx, client.CloneTasksRequest{User: ann, File: "/d/v"})
	must(err)
	same(client.TasksReply{TotalCount: 1, TaskInfos: []client.TaskInfo{{
		UUID: recovered, User: ann, File: "/d/v", Src: snapshot, TaskType: client.TaskRecover,
		Time: micros + 17e6, IsLazy: true, FileType: client.FromSnapshot, Progress: 100,
	}}}, tasks)
	must(c.CleanCloneTask(ctx, client.CleanCloneTaskRequest{User: ann, UUID: recovered}))

	for want, err := range map[client.Code]error{
		client.CancelFinished: c.CancelSnapshot(ctx, client.CancelSnapshotRequest{User: ann, File: "/d/v", UUID: snapshot}),
		client.SnapshotInUse:  c.DeleteSnapshot(ctx, client.DeleteSnapshotRequest{User: ann, File: "/d/v", Name: "s"}),
		client.NameMismatch:   c.DeleteSnapshot(ctx, client.DeleteSnapshotRequest{User: ann, File: "/lazy", UUID: snapshot}),
		client.InvalidUser:    c.DeleteFile(ctx, client.DeleteFileRequest{User: "bob", File: "/d/v"}),
	} {
		var e *client.Error
		if !errors.As(err, &e) || e.Code != want || e.Message != want.Message() || e.Detail == "" || e.RequestID == "" {
			t.Errorf("%v, want code %d", err, want)
		}
	}
}
