package volume

import (
	"context"
	"fmt"
	"sync"

	"github.com/localsnap/localsnap/chunkserver/wire"
)

// attachment is the right to use a volume, as the leader gave it, and the
// gate that every change passes. A change goes in with the context that it
// will be stamped with and comes out when its outcome is known; the leader
// may hold the gate, and then nothing is in when it is told so.
//
// Invariant: once a hold has been announced as complete, no change goes in
// with the context of before: only the leader's word, on the connection of
// that hold or in answer to a resume on a later one, opens the gate.
type attachment struct {
	id   uint64          // 0: the leader doesn't keep track of it
	life context.Context // ends with the attachment; its cause says why
	kill context.CancelCauseFunc

	mu      sync.Mutex
	context wire.Context
	inside  int
	hold    *hold
	changed chan struct{} // if somebody waits: closed when something changes
}

// hold is one pause. Each has its own, so that whoever waits for it to be
// complete sees when it is over.
type hold struct {
	conn *wire.Conn // on which it was asked for
}

func newAttachment(id uint64, now wire.Context) *attachment {
	a := &attachment{id: id, context: now}
	a.life, a.kill = context.WithCancelCause(context.Background())
	return a
}

// end ends the attachment: nothing goes in any more.
func (a *attachment) end(why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kill(fmt.Errorf("%w: %w", ErrDetached, why))
	a.notify()
}

// err tells why the attachment has ended; nil while it lives.
func (a *attachment) err() error {
	if a.life.Err() == nil {
		return nil
	}
	return context.Cause(a.life)
}

// now is the newest context, which readers use.
func (a *attachment) now() wire.Context {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.context
}

// enter waits until the gate is open, goes in, and returns the context to
// stamp the change with. leave must follow.
func (a *attachment) enter(ctx context.Context) (wire.Context, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.await(ctx, func() bool { return a.hold == nil || a.err() != nil })
	if err == nil {
		err = a.err()
	}
	if err != nil {
		return wire.Context{}, err
	}
	a.inside++
	return a.context, nil
}

func (a *attachment) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inside--; a.inside == 0 {
		a.notify()
	}
}

// pause closes the gate on behalf of a connection to the leader.
func (a *attachment) pause(conn *wire.Conn) *hold {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hold = &hold{conn}
	a.notify()
	return a.hold
}

// complete waits until nothing is in. It fails if the hold is over before.
func (a *attachment) complete(ctx context.Context, h *hold) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.await(ctx, func() bool { return a.inside == 0 || a.hold != h })
	if err == nil && a.hold != h {
		err = fmt.Errorf("%w: the pause is over before it was complete", wire.ErrUnavailable)
	}
	return err
}

// emptied waits until nothing is in, for an attachment that has ended.
func (a *attachment) emptied(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.await(ctx, func() bool { return a.inside == 0 })
}

// proceed opens the gate that was closed on the same connection.
func (a *attachment) proceed(conn *wire.Conn, next wire.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.hold != nil && a.hold.conn != conn {
		return fmt.Errorf("%w: writers were paused on an earlier connection and have not been resumed", wire.ErrUnavailable)
	}
	a.open(next)
	return nil
}

// resume opens the gate as the answer to a resume.
func (a *attachment) resume(next wire.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open(next)
}

func (a *attachment) open(next wire.Context) {
	a.context = next
	a.hold = nil
	a.notify()
}

// notify wakes those who await something. mu must be held.
func (a *attachment) notify() {
	if a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}

// await waits until a condition holds, of life or of what mu guards. mu must
// be held; it is released meanwhile.
func (a *attachment) await(ctx context.Context, holds func() bool) error {
	for !holds() {
		if a.changed == nil {
			a.changed = make(chan struct{})
		}
		changed := a.changed
		a.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		a.mu.Lock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}
