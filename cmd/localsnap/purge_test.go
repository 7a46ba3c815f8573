package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/fsm"
)

const mib = 1 << 20

// fill writes the first MiB of each of n chunks, from the first on, with one
// byte.
func (v *views) fill(path string, from, n int, with byte) {
	v.t.Helper()
	data := bytes.Repeat([]byte{with}, mib)
	w := v.attach(path).writer
	for i := range n {
		v.must(w.WriteAt(v.ctx, data, uint64(from+i)*chunk.Size), "fill %s", path)
	}
}

// holds makes sure that a view has what fill has written.
func (v *views) holds(path, name string, from, n int, want byte) {
	v.t.Helper()
	view, err := v.session.Attach(v.ctx, path, name, true)
	v.must(err, "attach %s@%s", path, name)
	got := make([]byte, mib)
	for i := range n {
		v.must(view.ReadAt(v.ctx, got, uint64(from+i)*chunk.Size), "read %s@%s", path, name)
		if !bytes.Equal(got, bytes.Repeat([]byte{want}, mib)) {
			v.t.Fatalf("chunk %d of %s@%s holds %d..., want %d", from+i, path, name, got[0], want)
		}
	}
	v.must(view.Close(v.ctx), "detach %s@%s", path, name)
}

// taken waits until the layers take what so many MiB of user data must, on all
// chunkservers together, and little more: file systems keep maps of blocks.
func (v *views) taken(what string, data int) {
	v.t.Helper()
	least := int64(data) * mib * devChunkservers
	var got int64
	defer func() {
		if v.t.Failed() {
			v.t.Logf("%s: %d bytes are taken, want %d", what, got, least)
		}
	}()
	v.await(what, func() bool {
		got = v.blocks()
		return got >= least && got <= least+least/50
	})
	v.t.Logf("%s: %.1f MiB", what, float64(got)/mib)
}

// Deleting is answered at once, without any chunkserver. Its progress is seen
// in the API, and the space of what was deleted comes back, no more and no less.
func TestSpaceComesBack(t *testing.T) {
	t.Parallel()
	f := startFleet(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	v := f.views(ctx)
	const n = 24
	v.taken("before the data", 0)
	v.create("/v", 1)
	v.fill("/v", 0, n, 1)
	v.snapshot("/v", "s")
	v.fill("/v", n/2, n/2, 2)
	v.fill("/v", n, 4, 3)
	v.detach("/v")
	v.clone("/v", "s", "/c")
	v.fill("/c", 0, 1, 4)
	v.detach("/c")
	v.taken("with the data", n+n/2+4+1)
	v.flatten("/c")
	v.flattened("/c")
	v.taken("with the clone flattened", n+n/2+4+n)
	v.holds("/v", "s", 0, n, 1)
	v.holds("/c", "", 1, n-1, 1)

	for i := range f.chunkservers {
		f.stop(&f.chunkservers[i])
	}
	began := time.Now()
	v.deleteSnapshot("/v", "s")
	t.Logf("DeleteSnapshot was answered after %v", time.Since(began))
	began = time.Now()
	v.delete("/c")
	t.Logf("DeleteFile was answered after %v", time.Since(began))
	query := client.SnapshotInfoRequest{User: "ann", File: "/v", Name: "s"}
	found, err := f.users.GetFileSnapshotInfo(ctx, query)
	v.must(err, "find what is being deleted")
	if got := found.Snapshots[0]; got.Status != client.SnapshotDeleting || got.Progress > 99 {
		t.Errorf("while it can't be purged: %+v", got)
	}
	for i := range f.chunkservers {
		f.startChunkserver(i)
	}
	last := 0
	f.await("the snapshot to go", func() bool {
		found, err := f.users.GetFileSnapshotInfo(ctx, query)
		if client.Refused(err, client.NotExist) {
			return true
		}
		v.must(err, "find what is being deleted")
		if got := found.Snapshots[0]; got.Progress < last {
			t.Errorf("progress %d after %d", got.Progress, last)
		} else {
			last = got.Progress
		}
		return false
	})
	v.taken("without the snapshot", n+4+n)
	v.holds("/v", "", 0, n/2, 1)
	v.holds("/v", "", n/2, n/2, 2)

	// What a rollback leaves behind is deleted too.
	v.snapshot("/v", "t")
	v.fill("/v", 0, n, 5)
	v.taken("with the volume overwritten", n+4+n+n)
	v.rollback("/v", "t", false)
	v.taken("after its rollback", n+4+n)
	v.holds("/v", "", 0, n/2, 1)
	v.deleteSnapshot("/v", "t")
	v.gone("/v", "t")
	v.taken("without the snapshot that it went back to", n+4+n)

	// What lies in the recycle bin is whole, and can be taken back.
	bin, err := f.users.ListFile(ctx, client.ListFileRequest{User: "ann", Dir: "/RecycleBin"})
	v.must(err, "list the recycle bin")
	v.must(f.users.RestoreFile(ctx, client.RestoreFileRequest{User: "ann", File: bin.FileInfos[0].File}), "restore /c")
	v.holds("/c", "", 0, 1, 4)
	v.holds("/c", "", 1, n-1, 1)
	v.volumes["/c"] = &modelled{}
	v.delete("/c")
	v.delete("/v")
	v.purgeTrash()
	v.taken("with nothing left", 0)
}

// A deleted volume is purged when it has been in the recycle bin long enough.
func TestRetention(t *testing.T) {
	t.Parallel()
	f := startFleet(t, func(s *fsm.Settings) { s.Retention = uint64(time.Second / time.Microsecond) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	v := f.views(ctx)
	v.create("/v", 1)
	v.fill("/v", 0, 2, 1)
	v.detach("/v")
	began := time.Now()
	v.delete("/v")
	v.taken("after the time in the recycle bin", 0)
	if took := time.Since(began); took < time.Second {
		t.Errorf("purged after %v", took)
	}
	bin, err := f.users.ListFile(ctx, client.ListFileRequest{User: "ann", Dir: "/RecycleBin"})
	v.must(err, "list the recycle bin")
	if len(bin.FileInfos) > 0 {
		t.Errorf("still in the recycle bin: %+v", bin.FileInfos)
	}
}

var (
	depositions = flag.Int("depositions", 3, "leaders to depose amid flattening and purging")
	deposeSeed  = flag.Uint64("depose-seed", 0, "seed of when they are; 0 chooses one")
)

// Leaders are stopped amid flattening and purging, and come back: their
// successors complete the work, and nothing is left over.
func TestJobsOutliveLeaders(t *testing.T) {
	t.Parallel()
	seed := *deposeSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("repeat with -depose-seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	f := startFleet(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(*depositions)*10*time.Second)
	defer cancel()
	v := f.views(ctx)
	const n = 24
	v.create("/v", 1)
	v.fill("/v", 0, n, 1)
	v.snapshot("/v", "kept")
	for i := range *depositions {
		clone := fmt.Sprint("/c", i)
		v.snapshot("/v", "scrap")
		v.fill("/v", i, 2, 2)
		v.clone("/v", "kept", clone)
		v.fill(clone, n, 1, 3)
		v.detach(clone)
		if i > 0 {
			v.delete(fmt.Sprint("/c", i-1))
			v.purgeTrash()
		}
		v.flatten(clone)
		v.deleteSnapshot("/v", "scrap")
		for range 1 + rng.IntN(2) {
			time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
			leader := f.leader()
			f.stop(&f.servers[leader])
			f.leader()
			f.startServer(leader)
		}
		v.flattened(clone)
		v.gone("/v", "scrap")
		v.holds(clone, "", 0, n, 1)
		v.holds(clone, "", n, 1, 3)
		v.holds("/v", "kept", 0, n, 1)
	}
	last := fmt.Sprint("/c", *depositions-1)
	v.taken("with the volume, its snapshot, and the last clone", n+*depositions+1+n+1)
	v.delete(last)
	v.deleteSnapshot("/v", "kept")
	v.gone("/v", "kept")
	v.purgeTrash()
	v.taken("with the volume", n)
	v.delete("/v")
	v.purgeTrash()
	v.taken("with nothing left", 0)
}
