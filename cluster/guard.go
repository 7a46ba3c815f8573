package cluster

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// disk is where Raft keeps its log, term and vote.
type disk interface {
	raft.LogStore
	raft.StableStore
	Close() error
}

// guard is a disk that breaks for good: after a write has failed, or taken
// longer than limit, no write succeeds. Raft itself would go on.
type guard struct {
	disk
	limit  time.Duration
	broken chan struct{} // closed when err is set

	once  sync.Once
	cause error
}

func newGuard(d disk, limit time.Duration) *guard {
	return &guard{disk: d, limit: limit, broken: make(chan struct{})}
}

// breaks makes all writes fail from now on, with the first cause given.
func (g *guard) breaks(cause error) {
	g.once.Do(func() {
		g.cause = cause
		close(g.broken)
	})
}

// err says why the disk is broken, if it is.
func (g *guard) err() error {
	select {
	case <-g.broken:
		return g.cause
	default:
		return nil
	}
}

// watch breaks the disk unless the function that it returns is called in time.
func (g *guard) watch(what string) (done func() bool) {
	return time.AfterFunc(g.limit, func() {
		g.breaks(fmt.Errorf("%s: the disk takes longer than %v", what, g.limit))
	}).Stop
}

// write carries out a write and confirms it only if no write has failed.
func (g *guard) write(what string, op func() error) error {
	if err := g.err(); err != nil {
		return err
	}
	done := g.watch(what)
	err := op()
	done()
	if err != nil {
		g.breaks(fmt.Errorf("%s: %w", what, err))
	}
	return g.err()
}

func (g *guard) StoreLog(l *raft.Log) error {
	return g.write("write the log", func() error { return g.disk.StoreLog(l) })
}

func (g *guard) StoreLogs(l []*raft.Log) error {
	return g.write("write the log", func() error { return g.disk.StoreLogs(l) })
}

func (g *guard) DeleteRange(first, last uint64) error {
	return g.write("shorten the log", func() error { return g.disk.DeleteRange(first, last) })
}

func (g *guard) Set(key, value []byte) error {
	return g.write("write the vote", func() error { return g.disk.Set(key, value) })
}

func (g *guard) SetUint64(key []byte, value uint64) error {
	return g.write("write the term", func() error { return g.disk.SetUint64(key, value) })
}
