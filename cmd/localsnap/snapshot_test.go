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

// freePortBlock returns a port such that those that dev uses are free.
func freePortBlock(t *testing.T) uint16 {
	t.Helper()
	const size = chunkserverOffset + devChunkservers + 1
search:
	for base := 20000; base < 30000; base += size {
		for port := base; port < base+size; port++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
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

// A writer counts up round by round, in blocks of different copysets, each
// write after the answer to the one before. A snapshot that is one point in
// time shows at most one step between neighbours, c, c, ..., c, c-1, ..., c-1,
// and nothing that was written after it was answered.
func TestSnapshotIsOnePointInTime(t *testing.T) {
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
	writing, stop := context.WithCancel(ctx)
	var begun atomic.Uint64 // rounds
	answers, wrote := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		block := make([]byte, chunk.BlockSize)
		for round := uint64(1); writing.Err() == nil; round++ {
			begun.Store(round)
			for i := range uint64(places) {
				binary.LittleEndian.PutUint64(block, round)
				if err := head.WriteAt(ctx, block, i*chunk.Size); err != nil {
					wrote <- err
					return
				}
				select {
				case answers <- struct{}{}:
				default:
				}
			}
		}
		wrote <- nil
	}()
	var taken [snapshots]uint64 // rounds begun by the answer
	for i := range snapshots {
		for range places * 2 / 3 { // so that the cuts fall everywhere in a round
			select {
			case <-answers:
			case err := <-wrote:
				t.Fatal(err)
			}
		}
		if _, err := users.CreateSnapshot(ctx, client.CreateSnapshotRequest{User: "ann", File: "/v", Name: fmt.Sprint("s", i)}); err != nil {
			t.Fatal(err)
		}
		taken[i] = begun.Load()
	}
	stop()
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	before := uint64(0)
	for i := range snapshots {
		counts := readCounts(ctx, t, d.gateway.session, fmt.Sprint("s", i), places)
		first, last := counts[0], counts[places-1]
		steps := 0
		for j := 1; j < places; j++ {
			if counts[j] != counts[j-1] {
				steps++
			}
		}
		if steps > 1 || first-last > 1 || last < before || first > taken[i] {
			t.Errorf("snapshot %d, taken by round %d, after one of round %d: %v", i, taken[i], before, counts)
		}
		before = last
	}
	if before < snapshots/3 {
		t.Errorf("the last of %d snapshots shows only round %d", snapshots, before)
	}
	if err := head.Close(ctx); err != nil {
		t.Error(err)
	}
}

func readCounts(ctx context.Context, t *testing.T, s *volume.Session, snapshot string, places int) []uint64 {
	t.Helper()
	view, err := s.Attach(ctx, "/v", snapshot, true)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close(ctx)
	counts, word := make([]uint64, places), make([]byte, 8)
	for i := range counts {
		if err := view.ReadAt(ctx, word, uint64(i)*chunk.Size); err != nil {
			t.Fatal(err)
		}
		counts[i] = binary.LittleEndian.Uint64(word)
	}
	return counts
}
