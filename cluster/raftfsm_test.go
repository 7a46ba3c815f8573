package cluster

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/localsnap/localsnap/fsm"
)

func newMachine(t *testing.T) *machine {
	t.Helper()
	state, err := fsm.Open(filepath.Join(t.TempDir(), "fsm.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(state.Check(), state.Close()); err != nil {
			t.Error(err)
		}
	})
	return &machine{state: state, disk: newGuard(nowhere{}, time.Hour)}
}

func command(index uint64, c fsm.Command) *raft.Log {
	return &raft.Log{Index: index, Type: raft.LogCommand, Data: fsm.Encode(c)}
}

// persisted is what a snapshot writes.
func persisted(t *testing.T, s raft.FSMSnapshot) []byte {
	t.Helper()
	defer s.Release()
	b := new(buffer)
	if err := s.Persist(b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type buffer struct{ bytes.Buffer }

func (*buffer) ID() string    { return "buffer" }
func (*buffer) Cancel() error { return nil }
func (*buffer) Close() error  { return nil }

func TestResponsesMatchEntries(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	configuration := &raft.Log{Index: 3, Type: raft.LogConfiguration, Data: []byte("not a command")}
	responses := m.ApplyBatch([]*raft.Log{command(2, register(1, "one")), configuration, command(4, register(2, ""))})
	if r, ok := responses[0].(fsm.Result); !ok || r.Err != nil || r.Value.(fsm.Node).Address != "one" {
		t.Errorf("first command: %#v", responses[0])
	}
	if responses[1] != nil {
		t.Errorf("configuration: %#v", responses[1])
	}
	if r, ok := responses[2].(fsm.Result); !ok || r.Err == nil {
		t.Errorf("refused command: %#v", responses[2])
	}
	if r := m.Apply(&raft.Log{Index: 5, Type: raft.LogConfiguration}); r != nil {
		t.Errorf("configuration alone: %#v", r)
	}
	if m.state.Applied() != 4 || m.reached != 5 {
		t.Errorf("applied %d, reached %d", m.state.Applied(), m.reached)
	}
}

// What is applied between the taking of a snapshot and its writing isn't in it.
func TestSnapshotIsOfItsIndex(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.Apply(command(1, register(1, "before")))
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	m.Apply(command(2, register(1, "after")))

	other := newMachine(t)
	if err := other.Restore(io.NopCloser(bytes.NewReader(persisted(t, s)))); err != nil {
		t.Fatal(err)
	}
	if other.state.Applied() != 1 {
		t.Errorf("the snapshot at entry 1 is at %d", other.state.Applied())
	}
	other.state.View(func(s *fsm.State) error {
		if v := values(s)[1]; v != "before" {
			t.Errorf("the snapshot holds %q", v)
		}
		return nil
	})
	// It goes on from there, and takes snapshots at once.
	if _, err := other.Snapshot(); err != nil {
		t.Error(err)
	}
	other.capture.Release()
	other.Apply(command(2, register(1, "after")))
	mine, _ := m.state.Digest()
	if theirs, err := other.state.Digest(); err != nil || theirs != mine {
		t.Errorf("after the same entries: %x, %x, %v", mine, theirs, err)
	}
}

func TestNoSnapshotDuringReplay(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	entries := []*raft.Log{command(1, register(1, "one")), command(2, register(1, "two"))}
	m.ApplyBatch(entries)
	restarted := &machine{state: m.state, disk: m.disk}
	restarted.ApplyBatch(entries[:1])
	if s, err := restarted.Snapshot(); err == nil {
		t.Error("a state at entry 2 was taken for that of entry 1")
		s.Release()
	}
	restarted.ApplyBatch(entries[1:])
	s, err := restarted.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	s.Release()
}

// A snapshot that is never written does not hold up the next state.
func TestRestoreUnderOpenSnapshot(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.Apply(command(1, register(1, "one")))
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	state := persisted(t, s)
	stale, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	promptly(t, "Restore", func() {
		if err := m.Restore(io.NopCloser(bytes.NewReader(state))); err != nil {
			t.Error(err)
		}
	})
	if err := stale.Persist(new(buffer)); err == nil {
		t.Error("a snapshot of a replaced state was written")
	}
	stale.Release()
}

func TestFailedRestoreBreaks(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.Apply(command(1, register(1, "one")))
	if err := m.Restore(io.NopCloser(bytes.NewReader([]byte("garbage")))); err == nil {
		t.Error("garbage was restored")
	}
	<-m.disk.broken
}

func TestStateIsWatched(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.disk.limit = time.Nanosecond
	until(t, "a batch to take too long", func() bool {
		m.Apply(command(m.reached+1, register(1, "one")))
		return m.disk.err() != nil
	})
}
