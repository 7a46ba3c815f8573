package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/localsnap/localsnap/chunkserver/wire"
	"github.com/localsnap/localsnap/fsm"
)

// endAttachments ends those of gateways that are gone, and of readers of
// snapshots that are being deleted.
func (t *term) endAttachments(ctx context.Context) error {
	var held []fsm.Attachment
	deleting := make(map[uuid.UUID]bool)
	err := t.node.ReadLocal(func(state *fsm.State) error {
		held = state.Attachments()
		for _, a := range held {
			if a.Snapshot == uuid.Nil {
				continue
			}
			snapshot, err := state.SnapshotByUUID(fsm.Root, a.Snapshot, "")
			if err != nil {
				return err
			}
			deleting[a.Snapshot] = snapshot.Status == fsm.SnapshotDeleting
		}
		return nil
	})
	if err != nil {
		return err
	}
	var failures []error
	for _, a := range held {
		conn, gone := t.holder(a)
		switch {
		case gone:
			t.log.Info("ending an attachment that no gateway holds", "attachment", a.ID, "volume", a.Volume, "gateway", a.Gateway)
		case deleting[a.Snapshot] && conn != nil:
			asked, cancel := context.WithTimeout(ctx, callTimeout)
			err := wire.Ask(asked, conn, wire.KindRevoke, wire.Revoke{Attachment: a.ID}, nil)
			cancel()
			// One that the gateway does not have it has just given back.
			if err != nil && !errors.Is(err, wire.ErrNotExist) {
				failures = append(failures, fmt.Errorf("revoke attachment %d: %w", a.ID, err))
				continue
			}
		default:
			continue
		}
		if err := t.end(ctx, a); err != nil {
			failures = append(failures, err)
			continue
		}
		t.ring()
	}
	return errors.Join(failures...)
}

// end ends an attachment that was not given back: nothing of a writer's may
// arrive any more.
func (t *term) end(ctx context.Context, a fsm.Attachment) error {
	if !a.ReadOnly {
		if err := t.fence(ctx, a); err != nil {
			return fmt.Errorf("fence attachment %d: %w", a.ID, err)
		}
	}
	if _, err := t.node.Apply(ctx, fsm.Detach{Attachment: a.ID}); err != nil {
		return fmt.Errorf("end attachment %d: %w", a.ID, err)
	}
	return nil
}

// expireTrash purges volumes that have been in the recycle bin long enough.
func (t *term) expireTrash(ctx context.Context) error {
	before := uint64(0)
	err := t.node.ReadLocal(func(state *fsm.State) error {
		oldest, ok := state.OldestTrash()
		retention := time.Duration(state.Settings().Retention) * time.Microsecond
		if latest := uint64(time.Now().Add(-retention).UnixMicro()); ok && oldest <= latest {
			before = latest
		}
		return nil
	})
	if err != nil || before == 0 {
		return err
	}
	_, err = t.node.Apply(ctx, fsm.ExpireTrash{Before: before})
	t.ring()
	return err
}
