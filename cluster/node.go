// Package cluster is one member of the metadata cluster: package fsm,
// replicated by Raft.
//
// # The story
//
// [Open] starts a member. The members elect a leader, which alone takes
// commands ([Node.Apply]) and answers questions whose answers must not be stale
// ([Node.Read]). Work that only a leader does runs under [Node.Lead], in a
// context that ends with the leadership. A member keeps in its directory
//
//	raft.db     the log, the term and the vote (held locked while it is open)
//	snapshots/  the last two copies of the state that shortened the log
//	fsm.db      the state
//
// # Invariants
//
//   - A command that was answered is in the log of a majority, on disk, and in
//     every later leader's state before that leader serves anything.
//   - fsm.db is never ahead of the log and the snapshots: an entry is in the log
//     durably before it is applied. A directory where it is ahead has lost its
//     log, and Open refuses it.
//   - fsm.db may be behind. Entries are applied again from the log, and those
//     that it holds are skipped (by the index that it keeps in the same
//     transaction); if the log no longer reaches back so far, it is first
//     replaced by the newest snapshot.
//   - A snapshot is exactly the state at its index.
//   - A Read begins no earlier than an entry that was committed after the
//     question. Asking the others "do I still lead?" is cheaper, but the
//     library counts an answer to an earlier heartbeat as one to this question:
//     a leader that was paused meanwhile would take it for a yes.
//   - A write to disk that failed, or hung, is the last: nothing after it is
//     confirmed, the member leaves the cluster's network and says so on
//     [Node.Failed]. Otherwise its heartbeats, which need no disk, would keep
//     it leader for ever.
//
// # Limits
//
//   - Membership is that of the configuration at the first start.
//   - A member whose directory was emptied has forgotten its votes and what it
//     had confirmed. It must not be started again under its old id while
//     another member is down.
//   - Members trust whoever reaches their Raft address.
//   - A term or a vote that can't be written makes the library panic, and so
//     does package fsm for a state that can't be.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
	"github.com/localsnap/localsnap/fsm"
)

var (
	// ErrNotLeader: this server does not lead, or not any more. Nothing
	// happened; ask the leader.
	ErrNotLeader = errors.New("not the leader")
	// ErrUnknown: the command may have taken effect, or may yet. All commands
	// may be repeated.
	ErrUnknown = errors.New("outcome unknown")

	errClosed = fmt.Errorf("%w: server is closing", ErrNotLeader)
	errLost   = fmt.Errorf("%w any more", ErrNotLeader)
)

// Node is a running member. Its methods may be called concurrently.
type Node struct {
	*files
	config   Config
	self     Server
	stream   *stream
	raft     *raft.Raft
	shutdown func() raft.Future // raft.Shutdown, once
	close    func() error       // Close, once

	slots   chan struct{}         // holds an element for each request in flight
	notify  chan bool             // Raft says that it has begun, or ceased, to lead
	leaders chan raft.Observation // Raft says whom it takes for the leader
	failed  chan error            // see Failed
	closing chan struct{}         // closed when Close begins
	stopped chan struct{}         // closed when Raft has stopped
	watched chan struct{}         // closed when watch has returned

	mu      sync.Mutex
	term    *term         // nil: not leading
	changed chan struct{} // closed, and replaced, when term changes
}

// maxInFlight is how many requests of its callers a Node hands to Raft at once.
const maxInFlight = 256

// Self is this member.
func (n *Node) Self() Server { return n.self }

// Leader is the member that leads, as far as this one knows.
func (n *Node) Leader() (Server, bool) {
	_, id := n.raft.LeaderWithID()
	return find(n.config.Servers, string(id))
}

// Failed delivers the error for which the member gave up, if it does. It takes
// no part in the cluster any more and should be closed and its process ended.
func (n *Node) Failed() <-chan error { return n.failed }

// Apply carries out a command and returns its value, or the *fsm.Error with
// which it was refused. Any other error is ErrNotLeader or ErrUnknown, or the
// context's if that had ended before anything happened. If it ends later, the
// error is ErrUnknown and the context's.
func (n *Node) Apply(ctx context.Context, c fsm.Command) (any, error) {
	data := fsm.Encode(c)
	future, err := n.submit(ctx, func() raft.Future { return n.raft.Apply(data, 0) })
	if err != nil {
		return nil, fmt.Errorf("apply %T: %w", c, err)
	}
	result := future.(raft.ApplyFuture).Response().(fsm.Result)
	return result.Value, result.Err
}

// Read calls fn with a state that includes everything answered before the call
// to Read, and returns what fn returns. Its own errors are ErrNotLeader, and
// the context's if that ended first. They mean that fn was not called.
func (n *Node) Read(ctx context.Context, fn func(*fsm.State) error) error {
	if err := n.barrier(ctx); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return n.state.View(fn)
}

// ReadLocal calls fn with the state as far as this member, leader or not, has
// it. It may be old.
func (n *Node) ReadLocal(fn func(*fsm.State) error) error { return n.state.View(fn) }

// barrier returns when an entry made after the call, and so all before it, are
// applied here.
func (n *Node) barrier(ctx context.Context) error {
	_, err := n.submit(ctx, func() raft.Future { return n.raft.Barrier(0) })
	if !errors.Is(err, ErrUnknown) {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: %v", ErrNotLeader, err) // a barrier changes nothing
}

// submit hands a request to Raft and waits for its outcome. The future it
// returns has succeeded.
func (n *Node) submit(ctx context.Context, request func() raft.Future) (raft.Future, error) {
	if err := n.acquire(ctx); err != nil {
		return nil, err
	}
	// Raft's futures know no contexts: a goroutine, of which there are as many
	// as slots, waits for each. Close waits for the slots.
	done := make(chan raft.Future, 1)
	go func() {
		defer func() { <-n.slots }()
		future := request()
		_ = future.Error() // waits; the answer stays readable
		done <- future
	}()
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
	case future := <-done:
		return future, outcome(future.Error())
	}
}

// acquire takes a slot, or refuses the request before anything happened.
func (n *Node) acquire(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := n.refusing(); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-n.closing:
		return errClosed
	case n.slots <- struct{}{}:
		return nil
	}
}

// refusing says why nothing is taken on any more, if so.
func (n *Node) refusing() error {
	select {
	case <-n.closing:
		return errClosed
	case <-n.disk.broken:
		return fmt.Errorf("%w: %w", ErrNotLeader, n.disk.err())
	default:
		return nil
	}
}

// outcome translates Raft's answer to a request.
func outcome(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotLeader, err) // refused before it was in any log
	default:
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
}

// Close leaves the cluster in order: it ends the term, hands leadership over,
// lets the requests in flight finish and closes the files. Each step is
// bounded; a healthy member is closed in well under a second.
func (n *Node) Close() error { return n.close() }
