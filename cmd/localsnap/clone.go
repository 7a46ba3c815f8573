package main

import (
	"context"
	"errors"
	"io"

	"github.com/localsnap/localsnap/api/client"
)

type cloneCmd struct {
	access `embed:""`

	Create  cloneCreate  `cmd:"" help:"Make a volume with the content of a snapshot, or of a volume as it is now."`
	List    cloneList    `cmd:"" help:"List the clones that still read from a volume or snapshot."`
	Flatten cloneFlatten `cmd:"" help:"Make a clone independent of its source, also while it is in use."`
}

type cloneCreate struct {
	Source      source `arg:"" help:"A snapshot, as in /vol@monday, or a volume, as in /vol."`
	Destination string `arg:"" help:"Path of the new volume."`
	ReadOnly    bool   `help:"Nobody may write to the clone. Only of a snapshot."`
	Flatten     bool   `help:"Begin at once to make it independent of its source."`
	waiting
}

func (*cloneCreate) Help() string {
	return `The clone can be used at once, and takes milliseconds however large its source is. It reads from its source what nobody has
written to it yet, until it is flattened. For example:

  localsnap clone create /vol@monday /copy
  localsnap clone create /vol /twin --flatten --wait`
}

func (c *cloneCreate) Validate() error {
	switch {
	case c.Wait && !c.Flatten:
		return errors.New("--wait is for --flatten: a clone can be used at once")
	case c.ReadOnly && c.Source.name == "":
		return errors.New("--read-only is for clones of a snapshot")
	}
	return nil
}

func (c *cloneCreate) Run(ctx context.Context, a *access) error {
	request := client.CloneRequest{User: a.User, File: c.Source.file, Name: c.Source.name, Readonly: c.ReadOnly, Destination: c.Destination}
	if c.Source.name == "" {
		request = client.CloneRequest{User: a.User, Source: c.Source.file, Lazy: !c.Flatten, Destination: c.Destination}
	}
	id, err := get(ctx, a, a.api.Clone, request)
	if err != nil {
		return advise(err, c.Source.String())
	}
	if c.Flatten {
		if err := a.flatten(ctx, c.Destination, c.Wait); err != nil {
			return err
		}
	}
	return a.sayTask(ctx, id, "made %s of %v", c.Destination, c.Source)
}

// flatten begins to flatten a clone, or finds that that has begun, and waits
// for its end if it is to.
func (a *access) flatten(ctx context.Context, path string, wait bool) error {
	if err := tell(ctx, a, a.api.Flatten, client.FlattenRequest{User: a.User, File: path}); err != nil {
		return advise(err, path)
	}
	if !wait {
		return nil
	}
	return a.follow(ctx, "flattening of "+path, "volume show "+path, func(ctx context.Context) (int, bool, error) {
		info, err := a.volume(ctx, path)
		return info.Progress, err == nil && info.Status == client.FileDone, err
	})
}

type cloneList struct {
	Of source `arg:"" help:"A volume, or one of its snapshots, as in /vol@monday."`
}

func (*cloneList) Help() string { return "For example:\n\n  localsnap clone list /vol" }

func (c *cloneList) Run(ctx context.Context, a *access) error {
	reply, err := get(ctx, a, a.api.Children, client.ChildrenRequest{User: a.User, File: c.Of.file, Name: c.Of.name})
	if err != nil {
		return advise(err, c.Of.String())
	}
	return a.show(reply.FileInfos, func(w io.Writer) error { return printVolumes(w, reply.FileInfos) })
}

type cloneFlatten struct {
	Path string `arg:"" help:"The clone."`
	waiting
}

func (*cloneFlatten) Help() string { return "For example:\n\n  localsnap clone flatten /copy --wait" }

func (c *cloneFlatten) Run(ctx context.Context, a *access) error {
	if err := a.flatten(ctx, c.Path, c.Wait); err != nil {
		return err
	}
	if c.Wait {
		return a.sayVolume(ctx, c.Path, "%s is independent", c.Path)
	}
	return a.sayVolume(ctx, c.Path, "%s is being flattened; see: localsnap volume show %s", c.Path, c.Path)
}
