package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/localsnap/localsnap/api/client"
)

type volumeCmd struct {
	access `embed:""`

	Create  volumeCreate  `cmd:"" help:"Make a volume, which reads as zeros."`
	List    volumeList    `cmd:"" help:"List the volumes and directories of a directory."`
	Show    volumeShow    `cmd:"" help:"Show one volume or directory."`
	Extend  volumeExtend  `cmd:"" help:"Make a volume larger."`
	Rename  volumeRename  `cmd:"" help:"Give a volume another path."`
	Delete  volumeDelete  `cmd:"" help:"Delete a volume, which stays in /RecycleBin for a while, or an empty directory."`
	Restore volumeRestore `cmd:"" help:"Take a deleted volume out of /RecycleBin."`
	Mkdir   volumeMkdir   `cmd:"" help:"Make a directory."`
}

type volumeCreate struct {
	Path        string `arg:"" help:"Where, as in /vol or /team/vol. Directories must exist."`
	Size        gib    `arg:"" help:"How large: a whole number of GiB, as in 10G or 1T."`
	StripeUnit  uint64 `placeholder:"BYTES" help:"Stripe over chunks in units of this size; needs --stripe-count."`
	StripeCount uint64 `placeholder:"N" help:"Over how many chunks to stripe, up to 64."`
	Poolset     string `placeholder:"NAME" help:"Where its data is kept. Default: the default poolset."`
}

func (*volumeCreate) Help() string {
	return "For example:\n\n  localsnap volume create /vol 10G\n  nbdcopy image.raw nbd://127.0.0.1:10809//vol"
}

func (c *volumeCreate) Run(ctx context.Context, a *access) error {
	err := tell(ctx, a, a.api.CreateFile, client.CreateFileRequest{User: a.User, File: c.Path, Size: uint64(c.Size),
		StripeUnit: c.StripeUnit, StripeCount: c.StripeCount, PoolSet: c.Poolset})
	if err != nil {
		return err
	}
	return a.sayVolume(ctx, c.Path, "made %s, %v", c.Path, c.Size)
}

// sayVolume says what was done to a volume; its JSON is the volume as it is.
func (a *access) sayVolume(ctx context.Context, path, format string, args ...any) error {
	var info client.FileInfo
	if a.JSON {
		var err error
		if info, err = a.volume(ctx, path); err != nil {
			return err
		}
	}
	return a.say(info, format, args...)
}

// volume returns the volume or directory of a path.
func (a *access) volume(ctx context.Context, path string) (client.FileInfo, error) {
	reply, err := get(ctx, a, a.api.ListFile, client.ListFileRequest{User: a.User, File: path})
	if err != nil {
		return client.FileInfo{}, advise(err, path)
	}
	if len(reply.FileInfos) != 1 {
		return client.FileInfo{}, fmt.Errorf("the server lists %d files as %s", len(reply.FileInfos), path)
	}
	return reply.FileInfos[0], nil
}

type volumeList struct {
	Directory string `arg:"" default:"/" help:"Which directory. Default: ${default}. Deleted volumes are in /RecycleBin."`
	window
}

func (*volumeList) Help() string {
	return "For example, for a program:\n\n  localsnap volume list --json | jq -r '.[].File'"
}

func (c *volumeList) Run(ctx context.Context, a *access) error {
	files, err := a.directory(ctx, c.Directory, c.window)
	if err != nil {
		return err
	}
	return a.show(files, func(w io.Writer) error { return printVolumes(w, files) })
}

func (a *access) directory(ctx context.Context, path string, w window) ([]client.FileInfo, error) {
	return collect(w, func(p client.Page) ([]client.FileInfo, error) {
		reply, err := get(ctx, a, a.api.ListFile, client.ListFileRequest{User: a.User, Dir: path, Page: p})
		return reply.FileInfos, err
	})
}

type volumeShow struct {
	Path string `arg:""`
}

func (*volumeShow) Help() string { return "For example:\n\n  localsnap volume show /vol" }

func (c *volumeShow) Run(ctx context.Context, a *access) error {
	info, err := a.volume(ctx, c.Path)
	if err != nil {
		return err
	}
	return a.show(info, func(w io.Writer) error { return printVolumes(w, []client.FileInfo{info}) })
}

type volumeExtend struct {
	Path string `arg:""`
	Size gib    `arg:"" help:"The new size: a whole number of GiB, as in 20G."`
}

func (*volumeExtend) Help() string {
	return "Its snapshots keep their size. A client that has it open sees the new size when it connects again. For example:\n\n  localsnap volume extend /vol 20G"
}

func (c *volumeExtend) Run(ctx context.Context, a *access) error {
	err := tell(ctx, a, a.api.Extend, client.ExtendRequest{User: a.User, File: c.Path, Size: uint64(c.Size)})
	if err != nil {
		return advise(err, c.Path)
	}
	return a.sayVolume(ctx, c.Path, "%s has %v", c.Path, c.Size)
}

type volumeRename struct {
	Path string `arg:""`
	New  string `arg:"" help:"The new path, which must be free."`
}

func (*volumeRename) Help() string { return "For example:\n\n  localsnap volume rename /vol /team/vol" }

func (c *volumeRename) Run(ctx context.Context, a *access) error {
	err := tell(ctx, a, a.api.Rename, client.RenameRequest{User: a.User, File: c.Path, Destination: c.New})
	if err != nil {
		return advise(err, c.Path)
	}
	return a.sayVolume(ctx, c.New, "%s is %s from now on", c.Path, c.New)
}

type volumeDelete struct {
	Path string `arg:"" help:"A volume, an empty directory, or a volume in /RecycleBin, which is then gone for good."`
	Now  bool   `help:"Don't keep it in /RecycleBin: begin to free its space at once."`
}

func (*volumeDelete) Help() string {
	return "A volume with snapshots can't be deleted, nor one that is in use. For example:\n\n  localsnap volume delete /vol"
}

func (c *volumeDelete) Run(ctx context.Context, a *access) error {
	// The API takes what doesn't exist for deleted. A user may have mistyped it.
	if _, err := a.volume(ctx, c.Path); err != nil {
		return err
	}
	remove := func(path string) error {
		return advise(tell(ctx, a, a.api.DeleteFile, client.DeleteFileRequest{User: a.User, File: path}), path)
	}
	if err := remove(c.Path); err != nil {
		return err
	}
	kept, err := a.trashed(ctx, c.Path)
	if err != nil {
		return err
	}
	if kept != "" && c.Now {
		if err := remove(kept); err != nil {
			return err
		}
		kept = ""
	}
	type deleted struct {
		File  string
		Trash string `json:",omitempty"` // where it can be restored from
	}
	if kept == "" {
		return a.say(deleted{File: c.Path}, "deleted %s", c.Path)
	}
	return a.say(deleted{c.Path, kept}, "deleted %s; for a while it can be had back: localsnap volume restore %s", c.Path, kept)
}

const recycleBin = "/RecycleBin"

// trashed returns where the volume that was deleted last from a path is kept,
// or nothing. Deleted volumes are called NAME-INODE, and inodes count up.
func (a *access) trashed(ctx context.Context, path string) (string, error) {
	if strings.HasPrefix(path, recycleBin+"/") {
		return "", nil
	}
	files, err := a.directory(ctx, recycleBin, window{})
	if err != nil {
		return "", err
	}
	prefix := recycleBin + path[strings.LastIndexByte(path, '/'):] + "-"
	var latest string
	var largest uint64
	for _, f := range files {
		rest, ok := strings.CutPrefix(f.File, prefix)
		inode, err := strconv.ParseUint(rest, 10, 64)
		if ok && err == nil && inode >= largest && f.User == a.User {
			latest, largest = f.File, inode
		}
	}
	return latest, nil
}

type volumeRestore struct {
	Path string `arg:"" help:"As localsnap volume list /RecycleBin shows it."`
}

func (*volumeRestore) Help() string {
	return "It returns to where it was. For example:\n\n  localsnap volume list /RecycleBin\n  localsnap volume restore /RecycleBin/vol-17"
}

func (c *volumeRestore) Run(ctx context.Context, a *access) error {
	err := tell(ctx, a, a.api.RestoreFile, client.RestoreFileRequest{User: a.User, File: c.Path})
	if err != nil {
		return advise(err, c.Path)
	}
	return a.say(struct{ File string }{c.Path}, "%s is where it was", c.Path)
}

type volumeMkdir struct {
	Path string `arg:""`
}

func (*volumeMkdir) Help() string { return "For example:\n\n  localsnap volume mkdir /team" }

func (c *volumeMkdir) Run(ctx context.Context, a *access) error {
	if err := tell(ctx, a, a.api.CreateDir, client.CreateDirRequest{User: a.User, File: c.Path}); err != nil {
		return err
	}
	return a.sayVolume(ctx, c.Path, "made %s", c.Path)
}
