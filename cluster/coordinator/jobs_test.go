package coordinator

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"testing"

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
