package main

import (
	"bytes"
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/volume"
	"github.com/localsnap/localsnap/fsm"
)

// A volume is written all over its copysets, when a chunkserver fails, then the
// metadata leader, then another chunkserver for a while: writing goes on as soon
// as it can, and everything is there, in all copies when the first one is back.
func TestWritingGoesOnWithoutAChunkserver(t *testing.T) {
	t.Parallel()
	f := startFleet(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := f.users.CreateFile(ctx, client.CreateFileRequest{User: "ann", File: "/v", Size: 1}); err != nil {
		t.Fatal(err)
	}
	v, err := f.session.Attach(ctx, "/v", "", false)
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(ctx, t, v)
	w.goOn(f)
	f.stop(&f.chunkservers[0])
	t.Logf("a chunkserver failed: longest write %v", w.goOn(f))
	f.await("the copysets to go on without it", func() bool {
		return !slices.ContainsFunc(f.copysets(), func(set chunk.Copyset) bool { return set.Member(1).State != chunk.Out || set.Primary == 1 })
	})
	leader := f.leader()
	f.stop(&f.servers[leader])
	t.Logf("the leader failed: longest write %v", w.goOn(f))
	f.startServer(leader)
	// One of the last two is waited for, and its copy is as good as ever.
	f.stop(&f.chunkservers[1])
	f.startChunkserver(1)
	t.Logf("another chunkserver restarted: longest write %v", w.goOn(f))
	for _, set := range f.copysets() {
		if m := set.Member(2); m.State != chunk.InSync {
			t.Fatalf("chunkserver 2 does not count: %+v", set)
		}
	}
	f.startChunkserver(0)
	f.await("all copies to be in sync", func() bool {
		return !slices.ContainsFunc(f.copysets(), func(set chunk.Copyset) bool {
			return slices.ContainsFunc(set.Members, func(m chunk.Member) bool { return m.State != chunk.InSync })
		})
	})
	t.Logf("the first chunkserver is back: longest write %v", w.goOn(f))
	w.stop()
	w.compare()
	f.await("all copies to be identical", func() bool {
		reply, err := f.users.ListCopysets(ctx, client.ListCopysetsRequest{Verify: true})
		return err == nil && !slices.ContainsFunc(reply.Copysets, func(c client.Copyset) bool { return c.Copies != client.CopiesIdentical })
	})
	if err := v.Close(ctx); err != nil {
		t.Error(err)
	}
}

// copysets are the configurations, as a leader knows them.
func (f *fleet) copysets() (sets []chunk.Copyset) {
	f.t.Helper()
	f.await("a leader to tell the copysets", func() bool {
		return f.servers[f.leader()].server.node.Read(f.t.Context(), func(s *fsm.State) error {
			sets = s.Copysets(fsm.DefaultPool)
			return nil
		}) == nil
	})
	return sets
}

// writer writes blocks one after the other, each in another chunk than the one
// before, with the number of the write.
type writer struct {
	ctx     context.Context
	t       *testing.T
	v       *volume.Volume
	written atomic.Int64
	longest atomic.Int64 // nanoseconds
	stopped atomic.Bool
	done    chan struct{}
}

const writerBlocks = 256 // that are written over and over, in as many chunks

func newWriter(ctx context.Context, t *testing.T, v *volume.Volume) *writer {
	w := &writer{ctx: ctx, t: t, v: v, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for n := int64(0); !w.stopped.Load(); n++ {
			began := time.Now()
			if err := v.WriteAt(ctx, w.block(n), w.offset(n)); err != nil {
				t.Errorf("write %d: %v", n, err)
				return
			}
			w.longest.Store(max(w.longest.Load(), int64(time.Since(began))))
			w.written.Store(n + 1)
		}
	}()
	return w
}

func (w *writer) block(n int64) []byte {
	return bytes.Repeat([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}, chunk.BlockSize/4)
}

func (w *writer) offset(n int64) uint64 {
	at := uint64(n) % writerBlocks
	return at*w.v.Size()/writerBlocks + chunk.BlockSize*(at%7)
}

// goOn waits until each block was written twice, and returns how long the
// longest write took.
func (w *writer) goOn(f *fleet) time.Duration {
	f.t.Helper()
	from := w.written.Load()
	w.longest.Store(0)
	f.await("writing to go on", func() bool { return w.t.Failed() || w.written.Load() > from+2*writerBlocks })
	return time.Duration(w.longest.Load())
}

func (w *writer) stop() {
	w.stopped.Store(true)
	<-w.done
}

// compare checks that every block is what was written last.
func (w *writer) compare() {
	w.t.Helper()
	p := make([]byte, chunk.BlockSize)
	last := w.written.Load()
	for n := max(0, last-writerBlocks); n < last; n++ {
		if err := w.v.ReadAt(w.ctx, p, w.offset(n)); err != nil {
			w.t.Fatal(err)
		}
		if !bytes.Equal(p, w.block(n)) {
			w.t.Fatalf("block %d holds %x", n, p[:4])
		}
	}
}
