package main

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// scattered are places all over a volume: its first and last block, and some
// in chunks of several copysets between them.
func scattered(gib uint64) []uint64 {
	size := gib << 30
	places := []uint64{0, size - chunk.BlockSize}
	for i := range uint64(6) {
		at := size / 7 * (i + 1)
		places = append(places, at-at%chunk.BlockSize, at-at%chunk.Size)
	}
	return places
}

// A snapshot, a clone and a rollback touch no chunk: they are done while no
// chunkserver runs, and 1 TiB takes no longer than 1 GiB.
func TestNothingIsTouched(t *testing.T) {
	t.Parallel()
	f := startFleet(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	sizes := []uint64{1, 1024}
	v := f.views(ctx, append(scattered(1), scattered(1024)...)...)
	path := func(gib uint64) string { return fmt.Sprintf("/v%d", gib) }
	for _, gib := range sizes {
		v.create(path(gib), gib)
		v.write(path(gib), scattered(gib)...)
		v.snapshot(path(gib), "a")
		v.write(path(gib), scattered(gib)[:8]...)
		v.snapshot(path(gib), "b")
		v.write(path(gib), scattered(gib)[4:]...)
		v.detach(path(gib))
	}
	for i := range f.chunkservers {
		f.stop(&f.chunkservers[i])
	}
	took := make(map[string]*[2][]time.Duration) // by kind of request and by size
	for i := range 5 {
		for j, gib := range sizes {
			v.snapshot(path(gib), fmt.Sprint("s", i))
			v.clone(path(gib), "a", fmt.Sprint(path(gib), "-", i))
			v.rollback(path(gib), string("ab"[i%2]), i%3 == 0)
			for kind, t := range v.took {
				if took[kind] == nil {
					took[kind] = new([2][]time.Duration)
				}
				took[kind][j] = append(took[kind][j], t)
			}
		}
	}
	for i := range f.chunkservers {
		f.startChunkserver(i)
	}
	v.compare()
	for kind, times := range took {
		small, large := median(times[0]), median(times[1])
		t.Logf("%s: %v of 1 GiB, %v of 1 TiB", kind, small, large)
		// Below some milliseconds it is the machine that is measured.
		if large > 5*max(small, 10*time.Millisecond) {
			t.Errorf("%s takes %v of 1 GiB but %v of 1 TiB", kind, small, large)
		}
	}
}

// A volume goes back to older and newer snapshots, with clones made and
// flattened in between: every view keeps what it had.
func TestRollbacks(t *testing.T) {
	t.Parallel()
	f := startFleet(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const gib = 1024
	places := scattered(gib)
	v := f.views(ctx, places...)
	v.create("/v", gib)
	v.write("/v", places[:6]...)
	v.snapshot("/v", "old")
	v.write("/v", places[3:9]...)
	v.discard("/v", 0, chunk.Size)
	v.snapshot("/v", "middle")
	v.clone("/v", "middle", "/before")
	v.write("/v", places[6:]...)
	v.snapshot("/v", "new")
	v.compare()

	// Who uses the volume is not to be surprised.
	_, err := f.users.Recover(ctx, client.RecoverRequest{User: "ann", File: "/v", Name: "old"})
	v.refused(err, client.Occupied)
	v.write("/v", places[0])
	v.compare()

	v.rollback("/v", "middle", false)
	v.compare()
	v.write("/v", places[1], places[7])
	v.snapshot("/v", "on-middle")
	v.rollback("/v", "old", true)
	v.compare()
	v.write("/v", places[2], places[8])
	v.snapshot("/v", "on-old")
	v.clone("/v", "on-old", "/after")
	v.write("/after", places[0], places[9])
	v.compare()
	v.flatten("/before")
	v.rollback("/v", "new", false) // newer than where it is
	v.compare()
	v.flattened("/before")
	v.compare()
	v.deleteSnapshot("/v", "middle") // on which a later one rests
	v.rollback("/v", "old", false)
	v.compare()
	v.gone("/v", "middle")
	v.compare()
	v.rollback("/v", "on-middle", true)
	v.compare()
	v.write("/v", places...)
	v.deleteSnapshot("/v", "old")
	v.deleteSnapshot("/v", "new")
	v.gone("/v", "old")
	v.gone("/v", "new")
	v.compare()

	// A clone that is being flattened can't be rolled back.
	v.snapshot("/after", "s")
	v.write("/after", places[1])
	v.detach("/after")
	for i := range f.chunkservers {
		f.stop(&f.chunkservers[i]) // so that flattening takes its time
	}
	v.flatten("/after")
	_, err = f.users.Recover(ctx, client.RecoverRequest{User: "ann", File: "/after", Name: "s"})
	v.refused(err, client.Occupied)
	for i := range f.chunkservers {
		f.startChunkserver(i)
	}
	v.flattened("/after")
	v.rollback("/after", "s", false)
	v.compare()
	v.deleteSnapshot("/v", "on-old")
	v.deleteSnapshot("/v", "on-middle")
	v.deleteSnapshot("/after", "s")
	v.gone("/v", "on-old")
	v.gone("/v", "on-middle")
	v.gone("/after", "s")
	v.compare()
	for _, path := range []string{"/v", "/before", "/after"} {
		v.delete(path)
	}
	v.purgeTrash()
	f.await("the space to come back", func() bool { return f.blocks() == 0 })
}
