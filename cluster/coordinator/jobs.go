package coordinator

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/fsm"
)

const (
	// maxJobs is how many volumes are worked on at once, for each kind of job.
	maxJobs = 4
	// jobWidth is how many operations of one job are under way.
	jobWidth = 8
	// progressPeriod is the least time between two reports of one job.
	progressPeriod = 200 * time.Millisecond
)

// jobs is the long work of one kind: on several volumes at once, and again on
// those for which it has failed.
type jobs struct {
	term *term
	kind string
	list func(*fsm.State) []chunk.VolumeID // those that need work, ascending
	work func(context.Context, chunk.VolumeID) error

	latest  chunk.VolumeID // that work was begun on; the next ones have their turn first
	running sync.WaitGroup

	mu      sync.Mutex
	volumes map[chunk.VolumeID]struct{} // that are being worked on, at most maxJobs
}

func (t *term) jobs(kind string, list func(*fsm.State) []chunk.VolumeID, work func(context.Context, chunk.VolumeID) error) *jobs {
	return &jobs{term: t, kind: kind, list: list, work: work, volumes: make(map[chunk.VolumeID]struct{})}
}

// run works until the term ends.
func (j *jobs) run() {
	j.term.loop(time.Second, j.begin)()
	j.running.Wait()
}

// begin begins as much work as there is room for. Work that succeeds rings,
// which fills its place; work that fails is tried again at the next tick.
func (j *jobs) begin(ctx context.Context) error {
	var open []chunk.VolumeID
	err := j.term.node.ReadLocal(func(state *fsm.State) error {
		open = j.list(state)
		return nil
	})
	if err != nil {
		return err
	}
	next, _ := slices.BinarySearch(open, j.latest+1)
	for _, id := range slices.Concat(open[next:], open[:next]) {
		if !j.claim(id) {
			continue
		}
		j.latest = id
		j.running.Go(func() {
			err := j.work(ctx, id)
			j.yield(id)
			if err == nil {
				j.term.ring()
			} else if ctx.Err() == nil {
				j.term.log.Warn("job will be tried again", "job", j.kind, "volume", id, "err", err)
			}
		})
	}
	return nil
}

// claim reserves a volume for work, if there is room and it is free.
func (j *jobs) claim(id chunk.VolumeID) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, busy := j.volumes[id]; busy || len(j.volumes) >= maxJobs {
		return false
	}
	j.volumes[id] = struct{}{}
	return true
}

// yield undoes claim.
func (j *jobs) yield(id chunk.VolumeID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.volumes, id)
}

// progress reports how far a job has come, as often as is worth a commit.
type progress struct {
	total  int
	report func(percent int) error

	mu       sync.Mutex
	done     int
	reported int
	last     time.Time
}

// step counts one part of the job as done.
func (p *progress) step() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	percent := p.done * 100 / p.total
	if percent == p.reported || time.Since(p.last) < progressPeriod {
		return nil
	}
	p.reported, p.last = percent, time.Now()
	return p.report(percent)
}

// flatten gives a clone what its views read from its ancestors.
func (t *term) flatten(ctx context.Context, id chunk.VolumeID) error {
	var volume fsm.Volume
	var views []*chunk.View
	err := t.node.ReadLocal(func(state *fsm.State) (err error) {
		if volume, err = state.VolumeByID(id); err == nil {
			views, err = state.FlattenViews(id)
		}
		return err
	})
	if err != nil {
		return err
	}
	indices, err := t.chunks(ctx, ancestors(views))
	if err != nil {
		return err
	}
	work := progress{total: len(indices), report: func(percent int) error {
		_, err := t.node.Apply(ctx, fsm.FlattenProgress{Volume: id, Percent: percent})
		return err
	}}
	err = parallel(ctx, len(indices), jobWidth, func(ctx context.Context, i int) error {
		op := chunk.Op{Kind: chunk.OpFlatten, Ref: chunk.Ref{Volume: id, Index: indices[i]}, Len: chunk.MaxOp, Views: views}
		for ; op.Off < chunk.Size; op.Off += chunk.MaxOp {
			if err := t.submit(ctx, t.locate(volume, indices[i]), op); err != nil {
				return err
			}
		}
		return work.step()
	})
	if err != nil {
		return err
	}
	_, err = t.node.Apply(ctx, fsm.FlattenDone{Volume: id})
	if err == nil {
		t.log.Info("flattened", "volume", volume.Path, "chunks", len(indices))
	}
	return err
}

// ancestors lists the volumes that views read through to.
func ancestors(views []*chunk.View) []chunk.VolumeID {
	var ids []chunk.VolumeID
	for _, view := range views {
		for v := view.Parent(); v != nil; v = v.Parent() {
			ids = append(ids, v.Volume())
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// purge frees what no view of a volume sees any more.
func (t *term) purge(ctx context.Context, id chunk.VolumeID) error {
	var job fsm.Purge
	err := t.node.ReadLocal(func(state *fsm.State) (err error) {
		job, err = state.Purge(id)
		return err
	})
	if err != nil {
		return err
	}
	indices, err := t.chunks(ctx, []chunk.VolumeID{id})
	if err != nil {
		return err
	}
	work := progress{total: len(indices), report: func(percent int) error {
		if len(job.Snapshots) == 0 {
			return nil
		}
		_, err := t.node.Apply(ctx, fsm.PurgeProgress{Snapshots: job.Snapshots, Percent: percent})
		return err
	}}
	err = parallel(ctx, len(indices), jobWidth, func(ctx context.Context, i int) error {
		op := chunk.Op{Kind: chunk.OpPurge, Ref: chunk.Ref{Volume: id, Index: indices[i]}, Views: job.Views, UpTo: job.UpTo}
		if err := t.submit(ctx, t.locate(job.Volume, indices[i]), op); err != nil {
			return err
		}
		return work.step()
	})
	if err != nil {
		return err
	}
	_, err = t.node.Apply(ctx, job.Done())
	if err == nil {
		t.log.Info("purged", "volume", id, "chunks", len(indices), "snapshots", len(job.Snapshots))
	}
	return err
}

// locate returns the copyset of a volume's chunk.
func (t *term) locate(v fsm.Volume, index uint32) chunk.CopysetID {
	t.mu.Lock()
	defer t.mu.Unlock()
	return chunk.Locate(v.Root, index, len(t.copysets))
}
