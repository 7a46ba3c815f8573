package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/localsnap/localsnap/api/client"
)

const (
	writethrough = "qemu-nbd writethrough"
	writeback    = "qemu-nbd writeback"
	ceph         = "Ceph RBD"
)

// job is something that fio does, on us and on others.
type job struct {
	name  string
	args  []string
	goals map[string]float64 // how many times faster than a peer we mean to be, by the peer's name
	// prepare makes the volume that the job runs on; its peer is then /vol,
	// which has neither snapshots nor a parent, and its goal is goal.
	prepare func(context.Context, *localsnap) (string, error)
	goal    float64
}

func (j job) unit() string {
	if strings.Contains(strings.Join(j.args, " "), "--bs=1m") {
		return "MiB/s"
	}
	return "IOPS"
}

func jobs(span time.Duration, size int) []job {
	timed := func(rw, bs string, depth int, more ...string) []string {
		return append([]string{"--rw=" + rw, "--bs=" + bs, "--iodepth=" + strconv.Itoa(depth),
			"--size=" + strconv.Itoa(size) + "g", "--time_based", "--runtime=" + strconv.FormatFloat(span.Seconds(), 'f', -1, 64)}, more...)
	}
	return []job{
		{name: "4k random write QD1", args: timed("randwrite", "4k", 1), goals: map[string]float64{writethrough: 0.65, ceph: 5}},
		{name: "4k random write QD32", args: timed("randwrite", "4k", 32), goals: map[string]float64{writethrough: 2.8, ceph: 10}},
		{name: "4k random read QD1", args: timed("randread", "4k", 1), goals: map[string]float64{writethrough: 0.65, ceph: 3}},
		{name: "4k random read QD32", args: timed("randread", "4k", 32), goals: map[string]float64{writethrough: 0.8, ceph: 3}},
		{name: "1m sequential write QD8", args: timed("write", "1m", 8, "--end_fsync=1"), goals: map[string]float64{writeback: 0.5, ceph: 2}},
		{name: "1m sequential read QD8", args: timed("read", "1m", 8), goals: map[string]float64{writeback: 1, ceph: 1.5}},
		{name: "4k first write QD1, fresh clone", args: timed("randwrite", "4k", 1), prepare: freshClone, goal: 0.9},
		{name: "4k first write QD1, after a snapshot", args: timed("randwrite", "4k", 1), prepare: freshSnapshot, goal: 0.9},
		{name: "4k random read QD32, fresh clone", args: timed("randread", "4k", 32), prepare: freshClone, goal: 0.9},
	}
}

// base makes the volume that is snapshotted and cloned, so that /vol stays
// without snapshots.
func (l *localsnap) base(ctx context.Context) (string, error) {
	const base = "/base"
	if l.hasBase {
		return base, nil
	}
	l.hasBase = true
	return base, l.create(ctx, base)
}

func freshSnapshot(ctx context.Context, l *localsnap) (string, error) {
	volume, _, err := l.snapshot(ctx)
	return volume, err
}

func freshClone(ctx context.Context, l *localsnap) (string, error) {
	base, name, err := l.snapshot(ctx)
	if err != nil {
		return "", err
	}
	clone := "/clone-" + name
	_, err = l.api.Clone(ctx, client.CloneRequest{User: user, File: base, Name: name, Destination: clone})
	return clone, err
}

// snapshot takes one of the base under a name of its own.
func (l *localsnap) snapshot(ctx context.Context) (volume, name string, err error) {
	if volume, err = l.base(ctx); err != nil {
		return "", "", err
	}
	l.snapshots++
	name = "s" + strconv.Itoa(l.snapshots)
	_, err = l.api.CreateSnapshot(ctx, client.CreateSnapshotRequest{User: user, File: volume, Name: name})
	return volume, name, err
}

// command is something other than reading and writing that is to be quick.
type command struct {
	name string
	goal time.Duration
	// run does it a number of times, and returns how long each took.
	run func(context.Context, *localsnap) ([]time.Duration, error)
}

func commands() []command {
	return []command{
		{"snapshot, under 4k random writes QD8", 10 * time.Millisecond, snapshotUnderLoad},
		{"snapshot of 1 TiB", 10 * time.Millisecond, onHuge(func(ctx context.Context, l *localsnap, volume, name string) error {
			_, err := l.api.CreateSnapshot(ctx, client.CreateSnapshotRequest{User: user, File: volume, Name: name})
			return err
		})},
		{"clone of 1 TiB", 10 * time.Millisecond, onHuge(func(ctx context.Context, l *localsnap, volume, name string) error {
			_, err := l.api.Clone(ctx, client.CloneRequest{User: user, File: volume, Name: "first", Destination: "/" + name})
			return err
		})},
		{"rollback of 1 TiB", 20 * time.Millisecond, onHuge(func(ctx context.Context, l *localsnap, volume, name string) error {
			_, err := l.api.Recover(ctx, client.RecoverRequest{User: user, File: volume, Name: "first"})
			return err
		})},
		{"flatten of a full clone", 5150 * time.Millisecond, flattenFull}, // half of what RBD needs for 2 GiB
	}
}

const hugeGiB = 1024

// onHuge times do on a volume of 1 TiB with a snapshot called first.
func onHuge(do func(ctx context.Context, l *localsnap, volume, name string) error) func(context.Context, *localsnap) ([]time.Duration, error) {
	return func(ctx context.Context, l *localsnap) ([]time.Duration, error) {
		l.hugeVolumes++
		volume := "/huge-" + strconv.Itoa(l.hugeVolumes)
		if err := l.api.CreateFile(ctx, client.CreateFileRequest{User: user, File: volume, Size: hugeGiB}); err != nil {
			return nil, err
		}
		if _, err := l.api.CreateSnapshot(ctx, client.CreateSnapshotRequest{User: user, File: volume, Name: "first"}); err != nil {
			return nil, err
		}
		var took []time.Duration
		for i := range 20 {
			began := time.Now()
			if err := do(ctx, l, volume, fmt.Sprintf("of-huge-%d-%d", l.hugeVolumes, i)); err != nil {
				return nil, err
			}
			took = append(took, time.Since(began))
		}
		return took, nil
	}
}

func snapshotUnderLoad(ctx context.Context, l *localsnap) ([]time.Duration, error) {
	volume, err := l.base(ctx)
	if err != nil {
		return nil, err
	}
	where, err := l.open(ctx, volume)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := runFio(ctx, l, append(where, "--rw=randwrite", "--bs=4k", "--iodepth=8", "--size=1g", "--time_based", "--runtime=3600"))
		ended <- err
	}()
	var took []time.Duration
	for range 100 {
		select {
		case err := <-ended:
			return nil, fmt.Errorf("the writer ended: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
		began := time.Now()
		if _, _, err := l.snapshot(ctx); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	cancel()
	<-ended
	return took, nil
}

func flattenFull(ctx context.Context, l *localsnap) ([]time.Duration, error) {
	var took []time.Duration
	for range 3 {
		clone, err := freshClone(ctx, l)
		if err != nil {
			return nil, err
		}
		began := time.Now()
		if err := l.api.Flatten(ctx, client.FlattenRequest{User: user, File: clone}); err != nil {
			return nil, err
		}
		for done := false; !done; time.Sleep(10 * time.Millisecond) {
			files, err := l.api.ListFile(ctx, client.ListFileRequest{User: user, File: clone})
			if err != nil {
				return nil, err
			}
			done = len(files.FileInfos) == 1 && files.FileInfos[0].Status == client.FileDone
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}
