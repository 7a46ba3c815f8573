package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/volume"
)

// views is a model of what a cluster's user may see: of each volume and
// snapshot, what its blocks hold. It carries out what it models on a fleet,
// and compares.
type views struct {
	*fleet
	ctx     context.Context
	places  []uint64 // the blocks that are used, by offset
	stamp   uint64   // of the latest write
	volumes map[string]*modelled
	took    map[string]time.Duration // by the latest request of a kind
}

// content is what the blocks of a view hold: the stamps of those that are not
// zeros.
type content map[uint64]uint64

// modelled is a volume.
type modelled struct {
	head      content
	snapshots map[string]content
	parent    string // PATH@NAME of what a clone may still read from
	writer    *volume.Volume
}

func (f *fleet) views(ctx context.Context, places ...uint64) *views {
	return &views{fleet: f, ctx: ctx, places: places, volumes: make(map[string]*modelled), took: make(map[string]time.Duration)}
}

// must fails the test with what the caller was about to do.
func (v *views) must(err error, format string, args ...any) {
	v.t.Helper()
	if err != nil {
		v.t.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}

// refused makes sure that the API has refused something with a code.
func (v *views) refused(err error, code client.Code) {
	v.t.Helper()
	if !client.Refused(err, code) {
		v.t.Fatalf("got %v, want code %d", err, code)
	}
}

// block is the content of a block that was written with a stamp.
func block(stamp uint64) []byte {
	b := make([]byte, chunk.BlockSize)
	for i := 0; stamp != 0 && i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], stamp<<16|uint64(i))
	}
	return b
}

func (v *views) create(path string, gib uint64) {
	v.t.Helper()
	v.must(v.users.CreateFile(v.ctx, client.CreateFileRequest{User: "ann", File: path, Size: gib}), "create %s", path)
	v.volumes[path] = &modelled{head: content{}, snapshots: make(map[string]content)}
}

// attach opens a volume for writing.
func (v *views) attach(path string) *modelled {
	v.t.Helper()
	m := v.volumes[path]
	if m.writer == nil {
		w, err := v.session.Attach(v.ctx, path, "", false)
		v.must(err, "attach %s", path)
		m.writer = w
	}
	return m
}

func (v *views) detach(path string) {
	v.t.Helper()
	if m := v.volumes[path]; m.writer != nil {
		v.must(m.writer.Close(v.ctx), "detach %s", path)
		m.writer = nil
	}
}

// write writes a block with a new stamp at each of some places.
func (v *views) write(path string, places ...uint64) {
	v.t.Helper()
	m := v.attach(path)
	for _, at := range places {
		v.stamp++
		v.must(m.writer.WriteAt(v.ctx, block(v.stamp), at), "write %s at %d", path, at)
		m.head[at] = v.stamp
	}
}

// discard gives up the places within a range.
func (v *views) discard(path string, off, n uint64) {
	v.t.Helper()
	m := v.attach(path)
	v.must(m.writer.Discard(v.ctx, off, n), "discard of %s", path)
	maps.DeleteFunc(m.head, func(at, _ uint64) bool { return off <= at && at < off+n })
}

func (v *views) snapshot(path, name string) {
	v.t.Helper()
	began := time.Now()
	_, err := v.users.CreateSnapshot(v.ctx, client.CreateSnapshotRequest{User: "ann", File: path, Name: name})
	v.took["snapshot"] = time.Since(began)
	v.must(err, "snapshot %s@%s", path, name)
	v.volumes[path].snapshots[name] = maps.Clone(v.volumes[path].head)
}

// uuid is a snapshot's.
func (v *views) uuid(path, name string) string {
	v.t.Helper()
	found, err := v.users.GetFileSnapshotInfo(v.ctx, client.SnapshotInfoRequest{User: "ann", File: path, Name: name})
	v.must(err, "find %s@%s", path, name)
	return found.Snapshots[0].UUID
}

// rollback recovers a volume, in the old style of the API or the new.
func (v *views) rollback(path, name string, old bool) {
	v.t.Helper()
	v.detach(path)
	request := client.RecoverRequest{User: "ann", File: path, Name: name}
	if old {
		request = client.RecoverRequest{User: "ann", Source: v.uuid(path, name), Destination: path}
	}
	var task string
	v.must(v.whenFree(func() (err error) {
		began := time.Now()
		task, err = v.users.Recover(v.ctx, request)
		v.took["rollback"] = time.Since(began)
		return err
	}), "recover %s@%s", path, name)
	tasks, err := v.users.GetCloneTasks(v.ctx, client.CloneTasksRequest{User: "ann", UUID: task})
	v.must(err, "task of a recover")
	if got := tasks.TaskInfos[0]; got.TaskStatus != client.TaskDone || got.TaskType != client.TaskRecover || got.File != path {
		v.t.Fatalf("task of a recover of %s: %+v", path, got)
	}
	v.volumes[path].head = maps.Clone(v.volumes[path].snapshots[name])
}

// clone makes a lazy clone of a snapshot.
func (v *views) clone(path, name, destination string) {
	v.t.Helper()
	began := time.Now()
	_, err := v.users.Clone(v.ctx, client.CloneRequest{User: "ann", File: path, Name: name, Destination: destination})
	v.took["clone"] = time.Since(began)
	v.must(err, "clone %s@%s", path, name)
	v.volumes[destination] = &modelled{
		head:      maps.Clone(v.volumes[path].snapshots[name]),
		snapshots: make(map[string]content),
		parent:    path + "@" + name,
	}
}

// flatten begins to flatten a clone; flattened waits for the end.
func (v *views) flatten(path string) {
	v.t.Helper()
	v.must(v.users.Flatten(v.ctx, client.FlattenRequest{User: "ann", File: path}), "flatten %s", path)
}

func (v *views) flattened(path string) {
	v.t.Helper()
	v.await(path+" to be flattened", func() bool {
		got, err := v.users.ListFile(v.ctx, client.ListFileRequest{User: "ann", File: path})
		v.must(err, "list %s", path)
		return got.FileInfos[0].Status == client.FileDone
	})
	v.volumes[path].parent = ""
}

// deleteSnapshot begins to delete; snapshots of that name are gone after gone.
func (v *views) deleteSnapshot(path, name string) {
	v.t.Helper()
	v.must(v.users.DeleteSnapshot(v.ctx, client.DeleteSnapshotRequest{User: "ann", File: path, Name: name}), "delete %s@%s", path, name)
	delete(v.volumes[path].snapshots, name)
}

func (v *views) gone(path, name string) {
	v.t.Helper()
	v.await(path+"@"+name+" to go", func() bool {
		_, err := v.users.GetFileSnapshotInfo(v.ctx, client.SnapshotInfoRequest{User: "ann", File: path, Name: name})
		return client.Refused(err, client.NotExist)
	})
}

func (v *views) delete(path string) {
	v.t.Helper()
	v.detach(path)
	v.must(v.deleteFile(path), "delete %s", path)
	delete(v.volumes, path)
}

func (v *views) deleteFile(path string) error {
	v.t.Helper()
	return v.whenFree(func() error {
		return v.users.DeleteFile(v.ctx, client.DeleteFileRequest{User: "ann", File: path})
	})
}

// whenFree repeats what is refused because the volume is attached: for a
// moment it still is when the answer that it no longer is, or that it ever
// was, is lost with the leader.
func (v *views) whenFree(do func() error) (err error) {
	v.t.Helper()
	v.await("the volume to be free", func() bool {
		err = do()
		return !client.Refused(err, client.Occupied)
	})
	return err
}

// purgeTrash purges what lies in the recycle bin.
func (v *views) purgeTrash() {
	v.t.Helper()
	trash, err := v.users.ListFile(v.ctx, client.ListFileRequest{User: "ann", Dir: "/RecycleBin", Page: client.Page{Limit: 1000}})
	v.must(err, "list the recycle bin")
	for _, file := range trash.FileInfos {
		v.must(v.users.DeleteFile(v.ctx, client.DeleteFileRequest{User: "ann", File: file.File}), "delete %s", file.File)
	}
}

// compare reads every place of every view.
func (v *views) compare() {
	v.t.Helper()
	var group errgroup.Group
	group.SetLimit(8)
	for path, m := range v.volumes {
		group.Go(func() error { return v.compareView(path, "", m.writer, m.head) })
		for name, want := range m.snapshots {
			group.Go(func() error { return v.compareView(path, name, nil, want) })
		}
	}
	if err := group.Wait(); err != nil {
		v.t.Fatal(err)
	}
}

// compareView reads every place of a view, through what has it open, or else
// through an attachment of its own.
func (v *views) compareView(path, name string, open *volume.Volume, want content) (err error) {
	if open == nil {
		if open, err = v.session.Attach(v.ctx, path, name, true); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, open.Close(v.ctx)) }()
	}
	got := make([]byte, chunk.BlockSize)
	for _, at := range v.places {
		if at >= open.Size() {
			continue
		}
		if err := open.ReadAt(v.ctx, got, at); err != nil {
			return fmt.Errorf("%s@%s: %w", path, name, err)
		}
		if !bytes.Equal(got, block(want[at])) {
			return fmt.Errorf("%s@%s at %d holds the stamp %d, want %d (or a mixture)",
				path, name, at, binary.LittleEndian.Uint64(got)>>16, want[at])
		}
	}
	return nil
}

// median is the one in the middle.
func median(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)/2]
}
