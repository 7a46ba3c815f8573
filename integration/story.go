package integration

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/localsnap/localsnap/api/client"
)

const (
	user = "ann"

	cleanStop = 2 * time.Second // how long an interrupted cluster may take to end
	changeMax = 250 * time.Millisecond
)

// A Story is a volume's life: written, snapshotted, overwritten, cloned,
// flattened, outlived by its clone, and that killed and found whole again.
// Each step checks what it did and prints how long it took.
type Story struct {
	Binary string    // the localsnap to run
	Dir    string    // takes the data and the images; the caller's to remove
	Tree   string    // the directory whose files fill the volume's file system, less than 1 GiB
	Out    io.Writer // is told the story

	cluster *Cluster
	api     *client.Client
}

// Tell tells the story, to the end or to the first thing that is not as it
// should be. No process that it started is left when it returns.
func (s *Story) Tell(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() {
		if s.cluster != nil {
			s.cluster.Kill()
		}
	}()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"start a cluster", s.start},
		{"create /vol, 2 GiB", s.createVolume},
		{"make an ext4 image of " + s.Tree, s.makeImage},
		{"copy the image onto /vol", s.copyImage},
		{"snapshot /vol@s1", s.snapshot("s1")},
		{"overwrite 64 MiB of /vol in pieces of 4 KiB, and verify", s.overwrite},
		{"snapshot /vol@s2", s.snapshot("s2")},
		{"clone /vol@s1 as /clone1", s.clone("s1", "/clone1")},
		{"clone /vol@s2 as /clone2", s.clone("s2", "/clone2")},
		{"compare /vol@s1 with the image", s.same(s.image(), "/vol@s1")},
		{"compare /clone1 with the image", s.same(s.image(), "/clone1")},
		{"compare /clone2 with /vol@s2, and that with the image", s.compareSecond},
		{"check the file system on /clone1", s.checkFiles},
		{"write into /clone1", s.writeClone},
		{"compare /vol@s1 with the image again", s.same(s.image(), "/vol@s1")},
		{"copy /clone1 to a file", s.keep},
		{"flatten /clone1", s.flatten},
		{"compare /clone1 with the copy", s.same(s.kept(), "/clone1")},
		{"delete /clone2", s.deleteFile("/clone2")},
		{"delete /vol@s1 and /vol@s2", s.deleteSnapshots},
		{"delete /vol, which a client still uses", s.deleteAttached},
		{"kill -9, and start again", s.crash},
		{"compare /clone1 with the copy again", s.same(s.kept(), "/clone1")},
		{"snapshot and clone 1 GiB and 1 TiB", s.sizes},
		{"stop", s.stop},
	} {
		fmt.Fprintf(s.Out, "%s\n", step.name)
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Fprintf(s.Out, "    done in %s\n", brief(time.Since(began)))
	}
	return nil
}

func (s *Story) start(ctx context.Context) error {
	c, err := Start(ctx, s.Binary, s.Dir)
	if err != nil {
		return err
	}
	s.cluster, s.api = c, c.Client()
	return nil
}

func (s *Story) createVolume(ctx context.Context) error {
	return s.api.CreateFile(ctx, client.CreateFileRequest{User: user, File: "/vol", Size: 2})
}

// image is the path of the file that /vol is first written from.
func (s *Story) image() string { return filepath.Join(s.Dir, "image.ext4") }

// kept is the path of a copy of /clone1 in its final state.
func (s *Story) kept() string { return filepath.Join(s.Dir, "clone1.img") }

func (s *Story) makeImage(ctx context.Context) error {
	_, err := run(ctx, s.Dir, "mkfs.ext4", "-q", "-F", "-d", s.Tree, s.image(), "2G")
	return err
}

func (s *Story) copyImage(ctx context.Context) error {
	return nbdcopy(ctx, s.image(), s.cluster.URI("/vol"), s.bar())
}

func (s *Story) snapshot(name string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := s.api.CreateSnapshot(ctx, client.CreateSnapshotRequest{User: user, File: "/vol", Name: name})
		return err
	}
}

func (s *Story) overwrite(ctx context.Context) error {
	_, err := run(ctx, s.Dir, "fio", "--name=overwrite", "--ioengine=nbd", "--uri="+s.cluster.URI("/vol"),
		"--rw=randwrite", "--bs=4k", "--offset=64m", "--size=64m", "--iodepth=32", "--randseed=1",
		"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0")
	return err
}

func (s *Story) clone(name, destination string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := s.api.Clone(ctx, client.CloneRequest{User: user, File: "/vol", Name: name, Destination: destination})
		return err
	}
}

// same compares an export with a file, bit by bit.
func (s *Story) same(path, export string) func(context.Context) error {
	return func(ctx context.Context) error { return s.compare(ctx, imageFile(path), s.cluster.Image(export)) }
}

// imageFile names a file to QEMU's programs.
func imageFile(path string) string {
	return fmt.Sprintf(`json:{"driver":"raw","file":{"driver":"file","filename":%q}}`, path)
}

func (s *Story) compare(ctx context.Context, a, b string) error {
	_, err := run(ctx, s.Dir, "qemu-img", "compare", a, b)
	return err
}

// compareSecond also proves that compare can tell a difference.
func (s *Story) compareSecond(ctx context.Context) error {
	if err := s.compare(ctx, s.cluster.Image("/vol@s2"), s.cluster.Image("/clone2")); err != nil {
		return err
	}
	if out, err := run(ctx, s.Dir, "qemu-img", "compare", imageFile(s.image()), s.cluster.Image("/vol@s2")); !strings.Contains(out, "mismatch") {
		return fmt.Errorf("the second snapshot should differ from the image: %s (%v)", out, err)
	}
	return nil
}

func (s *Story) checkFiles(ctx context.Context) error {
	copied := filepath.Join(s.Dir, "copied.ext4")
	defer os.Remove(copied)
	if err := nbdcopy(ctx, s.cluster.URI("/clone1"), copied, s.bar()); err != nil {
		return err
	}
	_, err := run(ctx, s.Dir, "e2fsck", "-f", "-n", copied)
	return err
}

func (s *Story) writeClone(ctx context.Context) error {
	_, err := run(ctx, s.Dir, "qemu-io", "-c", "write -P 0xa5 100M 8M", "-c", "write -P 0x5a 1900M 1M", "-c", "flush", s.cluster.Image("/clone1"))
	return err
}

// flatten watches /clone1 become independent: unflattened, flattening with
// growing progress, done.
func (s *Story) flatten(ctx context.Context) error {
	before, err := s.info(ctx, "/clone1")
	if err != nil {
		return err
	}
	if before.Status != client.Unflattened {
		return fmt.Errorf("a clone has status %d, want %d", before.Status, client.Unflattened)
	}
	if err := s.api.Flatten(ctx, client.FlattenRequest{User: user, File: "/clone1"}); err != nil {
		return err
	}
	bar := s.bar()
	last, flattening := 0, false
	err = wait(ctx, "flattening", func() (bool, error) {
		now, err := s.info(ctx, "/clone1")
		if err != nil {
			return false, err
		}
		if now.Status == client.Unflattened || now.Progress < last {
			return false, fmt.Errorf("status %d at %d%% after %d%%", now.Status, now.Progress, last)
		}
		last, flattening = now.Progress, flattening || now.Status == client.Flattening
		bar(last)
		return now.Status == client.FileDone, nil
	})
	if err != nil {
		return err
	}
	if !flattening || last != 100 {
		return fmt.Errorf("ended at %d%%, seen flattening: %t", last, flattening)
	}
	return nil
}

func (s *Story) info(ctx context.Context, file string) (client.FileInfo, error) {
	reply, err := s.api.ListFile(ctx, client.ListFileRequest{User: user, File: file})
	if err != nil {
		return client.FileInfo{}, err
	}
	if len(reply.FileInfos) != 1 {
		return client.FileInfo{}, fmt.Errorf("ListFile of %s has %d entries", file, len(reply.FileInfos))
	}
	return reply.FileInfos[0], nil
}

// keep copies /clone1 to a file, to compare it with later.
func (s *Story) keep(ctx context.Context) error {
	return nbdcopy(ctx, s.cluster.URI("/clone1"), s.kept(), s.bar())
}

func (s *Story) deleteFile(file string) func(context.Context) error {
	return func(ctx context.Context) error {
		// A volume stays attached for a moment after its client has gone.
		return wait(ctx, "the volume to be let go of", func() (bool, error) {
			err := s.api.DeleteFile(ctx, client.DeleteFileRequest{User: user, File: file})
			if client.Refused(err, client.Occupied) {
				return false, nil
			}
			return err == nil, err
		})
	}
}

func (s *Story) deleteSnapshots(ctx context.Context) error {
	for _, name := range []string{"s1", "s2"} {
		if err := s.api.DeleteSnapshot(ctx, client.DeleteSnapshotRequest{User: user, File: "/vol", Name: name}); err != nil {
			return err
		}
	}
	return wait(ctx, "the snapshots to go", func() (bool, error) {
		reply, err := s.api.GetFileSnapshotInfo(ctx, client.SnapshotInfoRequest{User: user, File: "/vol"})
		return err == nil && reply.TotalCount == 0, err
	})
}

func (s *Story) deleteAttached(ctx context.Context) error {
	used, err := open(ctx, s.cluster.Image("/vol"))
	if err != nil {
		return err
	}
	err = s.api.DeleteFile(ctx, client.DeleteFileRequest{User: user, File: "/vol"})
	if err := used.close(); err != nil {
		return err
	}
	if !client.Refused(err, client.Occupied) {
		return fmt.Errorf("DeleteFile of an attached volume: %v, want code %d", err, client.Occupied)
	}
	fmt.Fprintf(s.Out, "    refused: %v\n", err)
	return s.deleteFile("/vol")(ctx)
}

func (s *Story) crash(ctx context.Context) error {
	s.cluster.Kill()
	return s.start(ctx)
}

// sizes shows that what a snapshot and a clone cost does not grow with the
// volume. Each is tried a few times: the best tells the cost, the others also
// tell what else the machine was doing.
func (s *Story) sizes(ctx context.Context) error {
	const tries = 3
	names := [2]string{"/1g", "/1t"}
	best := [2][2]time.Duration{{time.Hour, time.Hour}, {time.Hour, time.Hour}} // by size; snapshot, clone
	for i, size := range []uint64{1, 1024} {
		if err := s.api.CreateFile(ctx, client.CreateFileRequest{User: user, File: names[i], Size: size}); err != nil {
			return err
		}
		end := fmt.Sprintf("write -P 7 %dM 1M", size*1024-1)
		if _, err := run(ctx, s.Dir, "qemu-io", "-c", "write -P 7 0 1M", "-c", end, s.cluster.Image(names[i])); err != nil {
			return err
		}
		for try := range tries {
			name := fmt.Sprintf("s%d", try)
			began := time.Now()
			if _, err := s.api.CreateSnapshot(ctx, client.CreateSnapshotRequest{User: user, File: names[i], Name: name}); err != nil {
				return err
			}
			taken := time.Now()
			if _, err := s.api.Clone(ctx, client.CloneRequest{User: user, File: names[i], Name: name, Destination: names[i] + "-" + name}); err != nil {
				return err
			}
			best[i][0] = min(best[i][0], taken.Sub(began))
			best[i][1] = min(best[i][1], time.Since(taken))
		}
	}
	fmt.Fprintf(s.Out, "              %10s %10s\n", "1 GiB", "1 TiB")
	for what, name := range []string{"snapshot", "clone"} {
		small, large := best[0][what], best[1][what]
		fmt.Fprintf(s.Out, "    %-9s %10s %10s\n", name, brief(small), brief(large))
		// Below a few milliseconds it is the machine that is measured.
		if large > changeMax || small > changeMax || large > 10*max(small, 5*time.Millisecond) {
			return fmt.Errorf("%s took %v of 1 GiB and %v of 1 TiB", name, small, large)
		}
	}
	return nil
}

func (s *Story) stop(context.Context) error {
	took, err := s.cluster.Stop()
	if err == nil && took > cleanStop {
		return fmt.Errorf("stopping took %v", took)
	}
	return err
}

// bar returns what prints a percentage as a bar, every time that another fifth
// is done.
func (s *Story) bar() func(percent int) {
	const width, part = 40, 20
	next := 0
	return func(percent int) {
		if percent < next {
			return
		}
		next = percent - percent%part + part
		done := width * percent / 100
		fmt.Fprintf(s.Out, "    [%s%s] %3d%%\n", strings.Repeat("#", done), strings.Repeat(".", width-done), percent)
	}
}

// brief is a duration with as many digits as a reader wants.
func brief(d time.Duration) string {
	if d < time.Second {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
