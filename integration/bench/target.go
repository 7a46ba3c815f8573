package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/integration"
)

// user owns the volumes.
const user = "bench"

// target is something that fio can write to.
type target interface {
	name() string
	// open makes the volume ready and returns how fio reaches it.
	open(ctx context.Context, volume string) ([]string, error)
	// cpu is what all processes that serve it have used so far.
	cpu() (time.Duration, error)
	stop()
}

// localsnap is a cluster with the volume /vol, full of data.
type localsnap struct {
	cluster *integration.Cluster
	api     *client.Client
	image   string // the file that fills volumes
	size    int    // GiB

	hasBase                bool
	snapshots, hugeVolumes int // made so far
}

func startLocalsnap(ctx context.Context, binary, dir string, size int) (*localsnap, error) {
	image := filepath.Join(dir, "image")
	fill := exec.CommandContext(ctx, "sh", "-c", fmt.Sprintf("head -c %dG /dev/urandom > %s", size, image))
	if out, err := fill.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make an image: %w\n%s", err, out)
	}
	cluster, err := integration.Start(ctx, binary, dir)
	if err != nil {
		return nil, err
	}
	l := &localsnap{cluster: cluster, api: cluster.Client(), image: image, size: size}
	if err := l.create(ctx, "/vol"); err != nil {
		l.stop()
		return nil, err
	}
	return l, nil
}

// create makes a volume and fills it with the image.
func (l *localsnap) create(ctx context.Context, volume string) error {
	if err := l.api.CreateFile(ctx, client.CreateFileRequest{User: user, File: volume, Size: uint64(l.size)}); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "nbdcopy", "--flush", l.image, l.cluster.URI(volume)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fill %s: %w\n%s", volume, err, out)
	}
	return nil
}

func (l *localsnap) name() string { return "localsnap" }

func (l *localsnap) open(_ context.Context, volume string) ([]string, error) {
	return []string{"--ioengine=nbd", "--uri=" + l.cluster.SocketURI(volume)}, nil
}

func (l *localsnap) cpu() (time.Duration, error) { return cpuOf(l.cluster.Pid()) }

func (l *localsnap) stop() { l.cluster.Kill() }

// plain is localsnap once more, as the peer of jobs that begin with a
// snapshot or a clone.
type plain struct{ *localsnap }

func (plain) name() string { return "/vol itself" }

func (plain) stop() {}

// qemu serves one plain file by qemu-nbd.
type qemu struct {
	image               string // what the file is copied from
	file, socket, cache string
	cmd                 *exec.Cmd // nil before the first open
}

func newQemu(dir, image, cache string) *qemu {
	return &qemu{image: image, file: filepath.Join(dir, "raw-"+cache), socket: filepath.Join(dir, "qemu-"+cache+".sock"), cache: cache}
}

func (q *qemu) name() string { return "qemu-nbd " + q.cache }

func (q *qemu) open(ctx context.Context, _ string) ([]string, error) {
	where := []string{"--ioengine=nbd", "--uri=nbd+unix:///?socket=" + q.socket}
	if q.cmd != nil {
		return where, nil
	}
	if out, err := exec.CommandContext(ctx, "cp", "--reflink=never", q.image, q.file).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy the image: %w\n%s", err, out)
	}
	q.cmd = exec.Command("qemu-nbd", "--persistent", "--format=raw", "--cache="+q.cache, "--shared=4", "--socket="+q.socket, q.file)
	if err := q.cmd.Start(); err != nil {
		return nil, err
	}
	for {
		if _, err := os.Stat(q.socket); err == nil {
			return where, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (q *qemu) cpu() (time.Duration, error) { return cpuOf(q.cmd.Process.Pid) }

func (q *qemu) stop() {
	if q.cmd != nil {
		q.cmd.Process.Kill()
		q.cmd.Wait()
	}
}

// rbd is an image of a running Ceph cluster.
type rbd struct{ conf string }

func newRBD(ctx context.Context, conf, image string) (*rbd, error) {
	out, err := exec.CommandContext(ctx, "rbd", "--conf", conf, "import", image, "rbd/localsnap-bench").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("import the image into Ceph: %w\n%s", err, out)
	}
	return &rbd{conf: conf}, nil
}

func (r *rbd) name() string { return "Ceph RBD" }

func (r *rbd) open(context.Context, string) ([]string, error) {
	return []string{"--ioengine=rbd", "--clientname=admin", "--pool=rbd", "--rbdname=localsnap-bench"}, os.Setenv("CEPH_CONF", r.conf)
}

// cpu adds up the OSDs of this machine.
func (r *rbd) cpu() (time.Duration, error) {
	out, err := exec.Command("pidof", "ceph-osd").Output()
	if err != nil {
		return 0, fmt.Errorf("find the OSDs: %w", err)
	}
	var sum time.Duration
	for _, field := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return 0, err
		}
		used, err := cpuOf(pid)
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

func (r *rbd) stop() {
	exec.Command("rbd", "--conf", r.conf, "rm", "rbd/localsnap-bench").Run()
}

// cpuOf is the user and system time of a process, from proc(5).
func cpuOf(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command, in parentheses, may contain anything; fields 14 and 15
	// are utime and stime in ticks of 10 ms.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, text)
	}
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}
