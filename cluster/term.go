package cluster

import (
	"context"

	"github.com/hashicorp/raft"
)

// term is a time during which this member leads.
type term struct {
	context.Context // ends with it, with the reason as its cause
	end             context.CancelCauseFunc
}

// Lead calls fn each time this member has become leader and has applied all
// that earlier leaders answered. The context of a call ends when the
// leadership does or the member closes, with a cause that is an ErrNotLeader,
// or with ctx. The next call is not made before fn has returned. Lead returns
// when ctx has ended or the member closes, and fn has returned.
//
// Another member may lead already while fn has yet to learn that its term is
// over: its commands are then refused, or must be refused by what they say.
func (n *Node) Lead(ctx context.Context, fn func(term context.Context)) {
	for {
		t := n.awaitTerm(ctx)
		if t == nil {
			return
		}
		n.lead(ctx, t, fn)
		select {
		case <-t.Done():
		case <-ctx.Done():
			return
		}
	}
}

// lead calls fn for one term.
func (n *Node) lead(ctx context.Context, t *term, fn func(context.Context)) {
	leading, cancel := context.WithCancelCause(t)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
	// It fails only when the term is over, or about to be.
	if n.barrier(leading) == nil {
		fn(leading)
	}
}

// awaitTerm returns the present term when there is one, and nil when there
// will be none.
func (n *Node) awaitTerm(ctx context.Context) *term {
	for {
		n.mu.Lock()
		t, changed := n.term, n.changed
		n.mu.Unlock()
		if t != nil {
			return t
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		case <-n.closing:
			return nil
		}
	}
}

func (n *Node) beginTerm() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refusing() != nil {
		return
	}
	ctx, end := context.WithCancelCause(context.Background())
	n.setTermLocked(&term{ctx, end})
}

// endTerm ends the present term, if any.
func (n *Node) endTerm(cause error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.term != nil {
		n.term.end(cause)
		n.setTermLocked(nil)
	}
}

func (n *Node) setTermLocked(t *term) {
	n.term = t
	close(n.changed)
	n.changed = make(chan struct{})
}

// watch acts on what Raft and the disk report, until Raft has stopped.
//
// Raft waits until a change of its leadership is taken from notify. So when it
// leads anew, the context of its last term has ended.
func (n *Node) watch() {
	defer close(n.watched)
	broken := n.disk.broken
	for {
		select {
		case leads := <-n.notify:
			if leads {
				n.beginTerm()
			} else {
				n.endTerm(errLost)
			}
		case o := <-n.leaders:
			n.config.Log.Info("cluster: leader changed", "leader", string(o.Data.(raft.LeaderObservation).LeaderID))
		case <-broken:
			broken = nil
			n.config.Log.Error("cluster: giving up", "error", n.disk.err())
			n.endTerm(n.refusing())
			n.leave()
			n.failed <- n.disk.err()
		case <-n.stopped:
			return
		}
	}
}
