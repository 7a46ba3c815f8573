package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/volume"
)

// startDev runs a cluster in this process until the test ends.
func startDev(t *testing.T) (*dev, *client.Client) {
	t.Helper()
	dir := t.TempDir()
	c := devCmd{Data: dir, LogLevel: slog.LevelError, APIPort: freePortBlock(t), NbdSocket: dir + "/nbd.sock"}
	c.NbdPort = c.APIPort + chunkserverOffset + devChunkservers
	d, err := openDev(&c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- d.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the cluster ended with %v", err)
		}
	})
	select {
	case <-ready:
	case <-time.After(time.Minute):
		t.Fatal("the cluster is not ready after a minute")
	}
	users := client.New(loopback(c.APIPort).String())
	t.Cleanup(users.HTTP.CloseIdleConnections)
	return d, users
}

// nextPort is the port that freePortBlock tries next: tests run in parallel.
var nextPort atomic.Uint32

// freePortBlock returns a port such that those that dev uses are free, and no
// other test is given them.
func freePortBlock(t *testing.T) uint16 {
	t.Helper()
	const first, last, size = 20000, 30000, chunkserverOffset + devChunkservers + 1
search:
	for base := first + nextPort.Add(size); base < last; base = first + nextPort.Add(size) {
		for port := base; port < base+size; port++ {
			l, err := net.Listen("tcp", loopback(uint16(port)).String())
			if err != nil {
				continue search
			}
			l.Close()
		}
		return uint16(base)
	}
	t.Fatal("no free ports")
	return 0
}

// A snapshot beside a writer is one point in time, and shows nothing that was
// written after it was answered.
func TestSnapshotIsOnePointInTime(t *testing.T) {
	t.Parallel()
	d, users := startDev(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const snapshots, places = 15, 24
	if err := users.CreateFile(ctx, client.CreateFileRequest{User: "ann", File: "/v", Size: 1}); err != nil {
		t.Fatal(err)
	}
	head, err := d.gateway.session.Attach(ctx, "/v", "", false)
	if err != nil {
		t.Fatal(err)
	}
	w := startCounting(ctx, head, places)
	var taken [snapshots]uint64 // rounds begun by the answer
	for i := range snapshots {
		w.await(t, places*2/3) // so that the cuts fall everywhere in a round
		if _, err := users.CreateSnapshot(ctx, client.CreateSnapshotRequest{User: "ann", File: "/v", Name: fmt.Sprint("s", i)}); err != nil {
			t.Fatal(err)
		}
		taken[i] = w.begun.Load()
	}
	w.finish(t)
	before := uint64(0)
	for i := range snapshots {
		before = verifyCounts(ctx, t, d.gateway.session, "/v", fmt.Sprint("s", i), places, before, taken[i])
	}
	if before < snapshots/3 {
		t.Errorf("the last of %d snapshots shows only round %d", snapshots, before)
	}
	if err := head.Close(ctx); err != nil {
		t.Error(err)
	}
}

// counter is a writer that counts up round by round, in blocks of different
// copysets, each write after the answer to the one before.
type counter struct {
	begun   atomic.Uint64 // rounds
	answers chan struct{}
	wrote   chan error
	stop    context.CancelFunc
}

func startCounting(ctx context.Context, head *volume.Volume, places uint64) *counter {
	ctx, stop := context.WithCancel(ctx)
	w := &counter{answers: make(chan struct{}, 1), wrote: make(chan error, 1), stop: stop}
	go func() {
		block := make([]byte, chunk.BlockSize)
		for round := uint64(1); ctx.Err() == nil; round++ {
			w.begun.Store(round)
			for i := range places {
				binary.LittleEndian.PutUint64(block, round)
				if err := head.WriteAt(context.WithoutCancel(ctx), block, i*chunk.Size); err != nil {
					w.wrote <- err
					return
				}
				select {
				case w.answers <- struct{}{}:
				default:
				}
			}
		}
		w.wrote <- nil
	}()
	return w
}

// await waits for some writes.
func (w *counter) await(t *testing.T, writes int) {
	t.Helper()
	for range writes {
		select {
		case <-w.answers:
		case err := <-w.wrote:
			t.Fatal(err)
		}
	}
}

// finish ends the round and the writer.
func (w *counter) finish(t *testing.T) {
	t.Helper()
	w.stop()
	if err := <-w.wrote; err != nil {
		t.Fatal(err)
	}
}

// verifyCounts makes sure that a view is one point in time of what a counter
// has written: at most one step between neighbours, c, c, ..., c, c-1, ...,
// c-1, between two rounds. It returns c of the last place.
func verifyCounts(ctx context.Context, t *testing.T, s *volume.Session, path, snapshot string, places int, from, to uint64) uint64 {
	t.Helper()
	view, err := s.Attach(ctx, path, snapshot, true)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close(ctx)
	counts, word := make([]uint64, places), make([]byte, 8)
	steps := 0
	for i := range counts {
		if err := view.ReadAt(ctx, word, uint64(i)*chunk.Size); err != nil {
			t.Fatal(err)
		}
		counts[i] = binary.LittleEndian.Uint64(word)
		if i > 0 && counts[i] != counts[i-1] {
			steps++
		}
	}
	first, last := counts[0], counts[places-1]
	if steps > 1 || first-last > 1 || last < from || first > to {
		t.Errorf("%s@%s, of rounds %d to %d: %v", path, snapshot, from, to, counts)
	}
	return last
}
