package coordinator

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/fsm"
)

// gate keeps operations waiting until their volume is let go.
type gate struct {
	mu      sync.Mutex
	waiting map[chunk.VolumeID]chan struct{} // closed to let go
	most    int                              // volumes that have waited at once
}

func (g *gate) pass(ctx context.Context, op chunk.Op) error {
	g.mu.Lock()
	let := g.waiting[op.Ref.Volume]
	if let == nil {
		let = make(chan struct{})
		g.waiting[op.Ref.Volume] = let
	}
	g.most = max(g.most, len(g.waiting))
	g.mu.Unlock()
	select {
	case <-let:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// holds reports whether operations on a volume have arrived.
func (g *gate) holds(id chunk.VolumeID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting[id] != nil
}

// let lets go of everything that has arrived, and of what follows on it.
func (g *gate) let(pool *fakePool) {
	pool.onSubmit(nil)
	g.mu.Lock()
	defer g.mu.Unlock()
	for let := range maps.Values(g.waiting) {
		close(let)
	}
	clear(g.waiting)
}

// Work that is asked for while other work runs begins at once if there is
// room, and else when there is.
func TestJobsBeginWhenThereIsRoom(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c, _ := r.lead()
	r.makeVolume(c, "/source", 1)
	g := &gate{waiting: make(map[chunk.VolumeID]chan struct{})}
	r.pool.onSubmit(g.pass)
	for i := range maxJobs {
		id := r.cloneAndFlatten(c, "/source", fmt.Sprint("/clone", i))
		r.await(fmt.Sprint("job ", i, " to begin beside the others"), func() bool { return g.holds(id) })
	}
	last := r.cloneAndFlatten(c, "/source", "/last")
	r.do(c, fsm.CreateVolume{User: fsm.Root, Path: "/other", Size: 1 << 30}) // rings
	g.let(r.pool)
	r.await("all jobs to end", r.idle)
	if g.most != maxJobs || r.pool.count(last) == 0 {
		t.Errorf("%d volumes were worked on at once, want %d; the last with %d operations", g.most, maxJobs, r.pool.count(last))
	}
}

// Work that fails again and again leaves room for other work.
func TestFailingJobsMakeRoom(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c, _ := r.lead()
	source := r.makeVolume(c, "/source", 1)
	var bad sync.Map
	r.pool.onSubmit(func(_ context.Context, op chunk.Op) error {
		if _, ok := bad.Load(op.Ref.Volume); ok {
			return chunk.ErrDamaged
		}
		return nil
	})
	for i := range maxJobs {
		bad.Store(source+1+chunk.VolumeID(i), true) // as they will be numbered
		r.cloneAndFlatten(c, "/source", fmt.Sprint("/clone", i))
	}
	good := r.cloneAndFlatten(c, "/source", "/good")
	r.await("the one that can be flattened", func() bool {
		status := fsm.VolumeFlattening
		r.node.ReadLocal(func(s *fsm.State) error {
			v, err := s.VolumeByID(good)
			status = v.Status()
			return err
		})
		return status == fsm.VolumeDone
	})
}

// A leader is deposed when its work has come as far as the k-th operation, for
// every k; that one takes effect or is lost. The next leader completes the work.
func TestLeaderChangesBetweenAnyTwoOperations(t *testing.T) {
	t.Parallel()
	const chunks = 2
	r := newRig(t)
	for k := 0; !r.deposeAt(k, k%2 == 1, chunks); k++ {
		if k > 1000 {
			t.Fatal("the work never ends")
		}
	}
}

// deposeAt has one leader begin to flatten a clone and to purge everything
// else, until its k-th operation, and another one complete that. It reports
// whether the first one got to the end.
func (r *rig) deposeAt(k int, lost bool, chunks uint32) (ended bool) {
	r.t.Helper()
	path := func(name string) string { return fmt.Sprintf("/%s%d", name, k) }
	c, depose := r.lead()
	source := r.makeVolume(c, path("source"), chunks)
	scrap := r.makeVolume(c, path("scrap"), chunks)
	var seen int
	var mu sync.Mutex
	reached := make(chan struct{})
	r.pool.onSubmit(func(ctx context.Context, _ chunk.Op) error {
		mu.Lock()
		now := seen
		seen++
		mu.Unlock()
		switch {
		case now < k:
			return nil
		case now == k:
			close(reached)
			if !lost {
				return nil
			}
		}
		<-ctx.Done() // until the connection ends
		return ctx.Err()
	})
	clone := r.cloneAndFlatten(c, path("source"), path("clone"))
	r.do(c, fsm.Delete{User: fsm.Root, Path: path("scrap")}, fsm.ExpireTrash{Before: now()})
	r.await("the operation, or the end", func() bool {
		select {
		case <-reached:
			return true
		default:
			ended = r.idle()
			return ended
		}
	})
	depose()

	r.pool.onSubmit(nil)
	_, depose = r.lead()
	r.await("the next leader", r.idle)
	depose()
	r.verify(clone, source, scrap, chunks)
	return ended
}

// verify checks the results of deposeAt.
func (r *rig) verify(clone, source, scrap chunk.VolumeID, chunks uint32) {
	r.t.Helper()
	want, got := make(map[chunk.Ref]int), make(map[chunk.Ref]int) // bytes flattened
	for i := range chunks {
		want[chunk.Ref{Volume: clone, Index: i}] = chunk.Size
	}
	type place struct {
		ref chunk.Ref
		off uint32
	}
	flat := make(map[place]bool)
	r.pool.mu.Lock()
	for _, op := range r.pool.ops {
		at := place{op.Ref, op.Off}
		if op.Kind == chunk.OpFlatten && op.Ref.Volume == clone && !flat[at] {
			flat[at] = true
			got[op.Ref] += int(op.Len)
		}
	}
	left := slices.Sorted(maps.Keys(r.pool.chunks[scrap]))
	kept := len(r.pool.chunks[source])
	r.pool.mu.Unlock()
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("flattened (-want +got):\n%s", diff)
	}
	if len(left) > 0 || kept != int(chunks) {
		r.t.Errorf("left of what was deleted: %v; of the source: %d chunks", left, kept)
	}
	r.node.ReadLocal(func(s *fsm.State) error {
		if v, err := s.VolumeByID(clone); err != nil || v.Status() != fsm.VolumeDone {
			r.t.Errorf("clone: %+v, error %v", v, err)
		}
		if v, err := s.VolumeByID(scrap); err == nil {
			r.t.Errorf("deleted, and yet: %+v", v)
		}
		return nil
	})
}
