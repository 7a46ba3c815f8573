package cluster

import (
	"bufio"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
	"github.com/localsnap/localsnap/fsm"
)

// machine shows the state to Raft. Raft calls its methods, but not those of
// the captures that it returns, from one goroutine.
type machine struct {
	state   *fsm.FSM
	disk    *guard   // is broken when the state's file is
	reached uint64   // index of the last entry seen
	capture *capture // the latest; nil: none
}

// Apply implements raft.FSM.
func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. The response to a command is an
// fsm.Result; changes of Raft's membership are none of the state's business.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	defer m.disk.watch("apply commands")()
	var entries []fsm.Entry
	for _, l := range logs {
		m.reached = l.Index
		if l.Type == raft.LogCommand {
			entries = append(entries, fsm.Entry{Index: l.Index, Data: l.Data})
		}
	}
	responses := make([]any, len(logs))
	if len(entries) == 0 {
		return responses
	}
	results := m.state.Apply(entries)
	for i, l := range logs {
		if l.Type == raft.LogCommand {
			responses[i], results = results[0], results[1:]
		}
	}
	return responses
}

// Restore implements raft.FSM.
func (m *machine) Restore(r io.ReadCloser) error {
	// The state can't be replaced under an open view, and Raft doesn't come to
	// persist that one before it has the new state.
	if m.capture != nil {
		m.capture.Release()
	}
	if err := m.state.Restore(r); err != nil {
		m.disk.breaks(err)
		return err
	}
	m.reached = m.state.Applied()
	return nil
}

// Snapshot implements raft.FSM.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	// After a restart the log is replayed up to where the state is; meanwhile
	// Raft would label the state with too low an index.
	if applied := m.state.Applied(); m.reached < applied {
		return nil, fmt.Errorf("replaying: at entry %d, the state is at %d", m.reached, applied)
	}
	c, err := newCapture(m.state)
	if err == nil {
		m.capture = c
	}
	return c, err
}

// capture is the state at one moment, not read yet.
type capture struct {
	pipe   *io.PipeReader
	copy   *bufio.Reader
	closed chan struct{} // closed when the view has ended
}

func newCapture(state *fsm.FSM) (*capture, error) {
	r, w := io.Pipe()
	c := &capture{pipe: r, copy: bufio.NewReader(r), closed: make(chan struct{})}
	go func() {
		defer close(c.closed)
		_, err := state.WriteTo(w)
		w.CloseWithError(err)
	}()
	// Its first byte is there: the view is open, later entries aren't in it.
	if _, err := c.copy.Peek(1); err != nil {
		c.Release()
		return nil, err
	}
	return c, nil
}

// Persist implements raft.FSMSnapshot.
func (c *capture) Persist(sink raft.SnapshotSink) error {
	_, err := io.Copy(sink, c.copy)
	return err
}

// Release implements raft.FSMSnapshot.
func (c *capture) Release() {
	c.pipe.Close()
	<-c.closed
}
