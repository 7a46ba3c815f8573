package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
	"github.com/localsnap/localsnap/cluster"
	"github.com/localsnap/localsnap/fsm"
)

// pauseTimeout bounds how long a writer may take to let its writes in flight
// finish.
const pauseTimeout = 3 * time.Second

// do carries out a command. One that takes a snapshot is carried out while the
// volume's writer, if it has one, is paused.
func (t *term) do(ctx context.Context, command fsm.Command) (any, error) {
	ctx, done := t.within(ctx)
	defer done()
	switch c := command.(type) {
	case fsm.CreateSnapshot:
		return t.aroundWriter(ctx, c.Path, func(a fsm.Attachment) (any, error) {
			c.Attachment, c.Turn = a.ID, a.Turn
			return t.node.Apply(ctx, c)
		})
	case fsm.Clone:
		if c.Snapshot == uuid.Nil && c.Name == "" {
			return t.aroundWriter(ctx, c.Path, func(a fsm.Attachment) (any, error) {
				c.Attachment, c.Turn = a.ID, a.Turn
				return t.node.Apply(ctx, c)
			})
		}
	}
	return t.node.Apply(ctx, command)
}

// aroundWriter calls apply with the attachment of the paused writer of a
// volume, or with none if the volume has no writer.
func (t *term) aroundWriter(ctx context.Context, path string, apply func(fsm.Attachment) (any, error)) (any, error) {
	for {
		var volume fsm.Volume
		var writer fsm.Attachment
		err := t.node.ReadLocal(func(state *fsm.State) (err error) {
			if volume, err = state.Volume(fsm.Root, path); err == nil {
				writer, _ = state.Writer(volume.ID)
			}
			return err
		})
		var value any
		if err != nil || writer.ID == 0 {
			value, err = apply(fsm.Attachment{}) // which says what is wrong, in the order of the contract
		} else {
			value, err = t.pauseWriter(ctx, writer, apply)
		}
		if !refused(err, fsm.Stale) && !errors.Is(err, errNotPaused) {
			return value, err
		}
		if !wait(ctx, 10*time.Millisecond) {
			return nil, errors.Join(ctx.Err(), err)
		}
	}
}

// errNotPaused: the writer could not be paused, and nothing was done.
var errNotPaused = errors.New("writer could not be paused")

// pauseWriter calls apply while a writer is paused.
func (t *term) pauseWriter(ctx context.Context, writer fsm.Attachment, apply func(fsm.Attachment) (any, error)) (any, error) {
	unlock, err := t.pausing.lock(ctx, writer.Volume)
	if err != nil {
		return nil, err
	}
	defer unlock()
	conn, _ := t.holder(writer)
	if conn == nil {
		return nil, fmt.Errorf("%w: gateway %s is not connected", errNotPaused, writer.Gateway)
	}
	asked, cancel := context.WithTimeout(ctx, pauseTimeout)
	err = wire.Ask(asked, conn, wire.KindPause, wire.Pause{Attachment: writer.ID}, nil)
	cancel()
	if err != nil {
		t.proceed(conn, writer)
		return nil, fmt.Errorf("%w: %w", errNotPaused, err)
	}
	value, err := apply(writer)
	var refusal *fsm.Error
	if err == nil || errors.As(err, &refusal) {
		t.proceed(conn, writer)
	} else if !errors.Is(err, cluster.ErrNotLeader) {
		// It may still take effect. Resuming will void it.
		conn.Close()
	}
	return value, err
}

// proceed lets a paused writer go on, with the context that holds now.
func (t *term) proceed(conn *wire.Conn, writer fsm.Attachment) {
	var held fsm.Context
	err := t.node.ReadLocal(func(state *fsm.State) (err error) {
		held, err = state.Context(writer.ID)
		return err
	})
	if err != nil {
		return // the attachment has ended
	}
	body, err := json.Marshal(wire.Proceed{Attachment: writer.ID, Context: stamp(held)})
	if err != nil {
		panic(fmt.Sprintf("coordinator: encode a context: %v", err))
	}
	conn.Start(wire.KindProceed, body, nil, func(_ []byte, err error) {
		if err != nil && !errors.Is(err, wire.ErrUnavailable) {
			t.log.Warn("writer did not proceed", "attachment", writer.ID, "err", err)
		}
	})
}

// volumeLocks are locks by volume, which a context can give up waiting for.
type volumeLocks struct {
	mu    sync.Mutex
	locks map[chunk.VolumeID]*volumeLock
}

type volumeLock struct {
	users int
	held  chan struct{} // full while locked
}

func (l *volumeLocks) lock(ctx context.Context, volume chunk.VolumeID) (unlock func(), err error) {
	l.mu.Lock()
	if l.locks == nil {
		l.locks = make(map[chunk.VolumeID]*volumeLock)
	}
	lock := l.locks[volume]
	if lock == nil {
		lock = &volumeLock{held: make(chan struct{}, 1)}
		l.locks[volume] = lock
	}
	lock.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if lock.users--; lock.users == 0 {
			delete(l.locks, volume)
		}
	}
	select {
	case lock.held <- struct{}{}:
		return func() { <-lock.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
