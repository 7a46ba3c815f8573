package cluster

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

var errDisk = errors.New("input/output error")

// faulty is a disk whose writes fail or hang from some time on.
type faulty struct {
	disk
	mu   sync.Mutex
	err  error         // of the next writes
	hang chan struct{} // writes wait until it is closed; nil: they don't
}

func (f *faulty) set(err error, hang chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.hang = err, hang
}

func (f *faulty) fault() error {
	f.mu.Lock()
	err, hang := f.err, f.hang
	f.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return err
}

func (f *faulty) StoreLogs(l []*raft.Log) error {
	return errors.Join(f.fault(), f.disk.StoreLogs(l))
}

// nowhere is a disk of which all writes succeed.
type nowhere struct{ disk }

func (nowhere) StoreLog(*raft.Log) error           { return nil }
func (nowhere) StoreLogs([]*raft.Log) error        { return nil }
func (nowhere) DeleteRange(_, _ uint64) error      { return nil }
func (nowhere) Set(_, _ []byte) error              { return nil }
func (nowhere) SetUint64(_ []byte, _ uint64) error { return nil }

// writes are all that change a disk.
var writes = map[string]func(disk) error{
	"StoreLog":    func(d disk) error { return d.StoreLog(&raft.Log{Index: 1}) },
	"StoreLogs":   func(d disk) error { return d.StoreLogs([]*raft.Log{{Index: 1}}) },
	"DeleteRange": func(d disk) error { return d.DeleteRange(1, 2) },
	"Set":         func(d disk) error { return d.Set([]byte("k"), []byte("v")) },
	"SetUint64":   func(d disk) error { return d.SetUint64([]byte("k"), 1) },
}

func TestGuardStaysBroken(t *testing.T) {
	t.Parallel()
	f := &faulty{disk: nowhere{}}
	g := newGuard(f, time.Hour)
	for name, write := range writes {
		if err := write(g); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if g.err() != nil {
		t.Error(g.err())
	}
	f.set(errDisk, nil)
	if err := writes["StoreLogs"](g); !errors.Is(err, errDisk) {
		t.Errorf("a failed write: %v", err)
	}
	f.set(nil, nil)
	g.disk = nil // is not asked again
	for name, write := range writes {
		if err := write(g); !errors.Is(err, errDisk) {
			t.Errorf("%s after a failed write: %v", name, err)
		}
	}
	<-g.broken
}

func TestGuardBoundsWrites(t *testing.T) {
	t.Parallel()
	f := &faulty{disk: nowhere{}}
	g := newGuard(f, time.Millisecond)
	hang := make(chan struct{})
	f.set(nil, hang)
	written := make(chan error)
	go func() { written <- writes["StoreLogs"](g) }()
	<-g.broken
	close(hang)
	if err := <-written; err == nil || err != g.err() {
		t.Errorf("a write that took too long: %v", err)
	}
	if err := g.err(); !strings.Contains(err.Error(), "write the log: the disk takes longer than 1ms") {
		t.Error(err)
	}
}

// A leader whose disk fails or hangs is replaced, although its heartbeats need
// no disk, and confirms nothing any more.
func TestLeaderWithBadDisk(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err  error
		hang bool
		why  string
	}{
		"fails": {errDisk, false, "input/output error"},
		"hangs": {nil, true, "the disk takes longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newTrio(t)
			var disks [3]*faulty
			for i := range c.config {
				c.config[i].DiskTimeout = 2 * time.Second
				c.config[i].disk = func(d disk) disk {
					disks[i] = &faulty{disk: d}
					return disks[i]
				}
			}
			c.startAll()
			c.put(1, "one")
			bad := c.leader()
			n := c.node[bad]
			duty := startDuty(t.Context(), t, n)
			term := <-duty.terms
			var hang chan struct{}
			if test.hang {
				hang = make(chan struct{})
			}
			disks[bad].set(test.err, hang)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			applied := make(chan error)
			go func() {
				_, err := n.Apply(ctx, register(1, "two"))
				applied <- err
			}()
			if err := <-n.Failed(); !strings.Contains(err.Error(), test.why) {
				t.Errorf("gave up because: %v", err)
			}
			<-term.Done()
			if cause := context.Cause(term); !strings.Contains(cause.Error(), test.why) {
				t.Errorf("its term ended with %v", cause)
			}
			if _, err := n.Apply(ctx, register(1, "three")); !errors.Is(err, ErrNotLeader) {
				t.Errorf("Apply after it: %v", err)
			}
			c.node[bad] = nil
			c.put(2, "after")
			c.node[bad] = n
			if hang != nil {
				close(hang)
			}
			if err := <-applied; !errors.Is(err, ErrUnknown) {
				t.Errorf("Apply: %v", err)
			}
			c.stop(bad)
			duty.wait()
			c.settled()
		})
	}
}

func TestCloseGivesUpOnDisk(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	var disks [3]*faulty
	for i := range c.config {
		c.config[i].DiskTimeout = 2 * time.Second
		c.config[i].disk = func(d disk) disk {
			disks[i] = &faulty{disk: d}
			return disks[i]
		}
	}
	c.startAll()
	bad := (c.leader() + 1) % 3
	n := c.node[bad]
	hang := make(chan struct{})
	disks[bad].set(nil, hang)
	c.put(1, "one")
	<-n.Failed()
	c.node[bad] = nil
	promptly(t, "Close", func() {
		if err := n.Close(); err == nil || !strings.Contains(err.Error(), "does not return") {
			t.Errorf("Close while a write hangs: %v", err)
		}
	})
	// What Close could not do meanwhile.
	close(hang)
	promptly(t, "Raft", func() { _ = n.shutdown().Error() })
	close(n.stopped)
	<-n.watched
	if err := n.files.Close(); err != nil {
		t.Error(err)
	}
}
