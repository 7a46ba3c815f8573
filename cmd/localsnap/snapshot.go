package main

import (
	"context"
	"fmt"
	"io"

	"github.com/localsnap/localsnap/api/client"
)

type snapshotCmd struct {
	access `embed:""`

	Create   snapshotCreate   `cmd:"" help:"Take a snapshot of a volume, also while it is in use."`
	List     snapshotList     `cmd:"" help:"List the snapshots of a volume, or all of yours."`
	Show     snapshotShow     `cmd:"" help:"Show one snapshot."`
	Rollback snapshotRollback `cmd:"" help:"Make a volume's content that of a snapshot."`
	Delete   snapshotDelete   `cmd:"" help:"Delete a snapshot. Its space is freed in the background."`
}

type snapshotCreate struct {
	Snapshot snapshotName `arg:"" help:"VOLUME@NAME, as in /vol@monday."`
}

func (*snapshotCreate) Help() string {
	return "It takes milliseconds, however large the volume is. For example:\n\n  localsnap snapshot create /vol@monday\n  nbdcopy nbd://127.0.0.1:10809//vol@monday monday.raw"
}

func (c *snapshotCreate) Run(ctx context.Context, a *access) error {
	_, err := get(ctx, a, a.api.CreateSnapshot, client.CreateSnapshotRequest{User: a.User, File: c.Snapshot.file, Name: c.Snapshot.name})
	if err != nil {
		return advise(err, c.Snapshot.file)
	}
	var s client.Snapshot
	if a.JSON {
		if s, err = a.snapshot(ctx, c.Snapshot); err != nil {
			return err
		}
	}
	return a.say(s, "made %v", c.Snapshot)
}

// snapshot returns the snapshot of a name.
func (a *access) snapshot(ctx context.Context, name snapshotName) (client.Snapshot, error) {
	reply, err := get(ctx, a, a.api.GetFileSnapshotInfo, client.SnapshotInfoRequest{User: a.User, File: name.file, Name: name.name})
	if err != nil {
		return client.Snapshot{}, advise(err, name.String())
	}
	if len(reply.Snapshots) != 1 {
		return client.Snapshot{}, fmt.Errorf("the server lists %d snapshots as %v", len(reply.Snapshots), name)
	}
	return reply.Snapshots[0], nil
}

type snapshotList struct {
	Volume string `arg:"" optional:"" help:"Whose snapshots. Default: all of yours."`
	All    bool   `help:"Those of all users."`
	window
}

func (*snapshotList) Help() string {
	return "For example:\n\n  localsnap snapshot list /vol\n  localsnap snapshot list --all --json"
}

func (c *snapshotList) Run(ctx context.Context, a *access) error {
	list, err := collect(c.window, func(p client.Page) ([]client.Snapshot, error) {
		if c.All {
			reply, err := get(ctx, a, a.api.GetFileSnapshotList, client.SnapshotListRequest{File: c.Volume, Page: p})
			return reply.Snapshots, err
		}
		reply, err := get(ctx, a, a.api.GetFileSnapshotInfo, client.SnapshotInfoRequest{User: a.User, File: c.Volume, Page: p})
		return reply.Snapshots, err
	})
	if err != nil {
		return advise(err, c.Volume)
	}
	return a.show(list, func(w io.Writer) error { return printSnapshots(w, list) })
}

type snapshotShow struct {
	Snapshot snapshotName `arg:"" help:"VOLUME@NAME."`
}

func (*snapshotShow) Help() string { return "For example:\n\n  localsnap snapshot show /vol@monday" }

func (c *snapshotShow) Run(ctx context.Context, a *access) error {
	s, err := a.snapshot(ctx, c.Snapshot)
	if err != nil {
		return err
	}
	return a.show(s, func(w io.Writer) error { return printSnapshots(w, []client.Snapshot{s}) })
}

type snapshotRollback struct {
	Snapshot snapshotName `arg:"" help:"VOLUME@NAME."`
}

func (*snapshotRollback) Help() string {
	return `What the volume holds now is given up; take a snapshot before if you may want it back. Later snapshots stay,
and can be rolled back to. The volume must not be in use. For example:

  localsnap snapshot create /vol@before
  localsnap snapshot rollback /vol@monday`
}

func (c *snapshotRollback) Run(ctx context.Context, a *access) error {
	id, err := get(ctx, a, a.api.Recover, client.RecoverRequest{User: a.User, File: c.Snapshot.file, Name: c.Snapshot.name})
	if err != nil {
		return advise(err, c.Snapshot.file)
	}
	return a.sayTask(ctx, id, "rolled %s back to %v", c.Snapshot.file, c.Snapshot)
}

type snapshotDelete struct {
	Snapshot snapshotName `arg:"" help:"VOLUME@NAME."`
	waiting
}

func (*snapshotDelete) Help() string {
	return "A snapshot with clones can't be deleted before they are flattened or deleted. For example:\n\n  localsnap snapshot delete /vol@monday --wait"
}

func (c *snapshotDelete) Run(ctx context.Context, a *access) error {
	if _, err := a.snapshot(ctx, c.Snapshot); err != nil {
		return err
	}
	err := tell(ctx, a, a.api.DeleteSnapshot, client.DeleteSnapshotRequest{User: a.User, File: c.Snapshot.file, Name: c.Snapshot.name})
	if err != nil {
		return advise(err, c.Snapshot.String())
	}
	if c.Wait {
		err := a.follow(ctx, fmt.Sprintf("deletion of %v", c.Snapshot), "snapshot list "+c.Snapshot.file, func(ctx context.Context) (int, bool, error) {
			s, err := a.snapshot(ctx, c.Snapshot)
			if client.Refused(err, client.NotExist) {
				return 100, true, nil
			}
			return s.Progress, false, err
		})
		if err != nil {
			return err
		}
	}
	return a.say(struct{ File, Name string }{c.Snapshot.file, c.Snapshot.name}, "deleted %v", c.Snapshot)
}
