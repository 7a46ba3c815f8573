package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Tools are the programs that a Story runs.
var Tools = []string{"nbdcopy", "nbdinfo", "qemu-img", "qemu-io", "fio", "mkfs.ext4", "e2fsck"}

// pollInterval is the pause between two looks at something awaited.
const pollInterval = 5 * time.Millisecond

// lookPath finds a tool, also where the administrator's programs are, which
// an ordinary user's PATH need not name.
func lookPath(tool string) (string, error) {
	path, err := exec.LookPath(tool)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, tool))
		}
	}
	return path, err
}

// GoSource is a directory of many real files: Go's source, or what most systems
// have instead.
func GoSource(ctx context.Context) string {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if src := filepath.Join(strings.TrimSpace(string(root)), "src"); err == nil {
		if _, err := os.Stat(src); err == nil {
			return src
		}
	}
	return "/usr/share"
}

// run runs a tool in dir and returns all that it printed, which is also part
// of the error if it fails.
func run(ctx context.Context, dir, tool string, args ...string) (string, error) {
	path, err := lookPath(tool)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s", tool, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// nbdcopy copies between files and exports, and reports the percentage done.
func nbdcopy(ctx context.Context, from, to string, progress func(percent int)) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	// The first of ExtraFiles is the child's descriptor 3.
	cmd := exec.CommandContext(ctx, "nbdcopy", "--flush", "--progress=3", from, to)
	cmd.ExtraFiles = []*os.File{w}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(r)
	for lines.Scan() { // until the child closes its end
		done, _, _ := strings.Cut(lines.Text(), "/")
		if percent, err := strconv.Atoi(done); err == nil {
			progress(percent)
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("nbdcopy %s %s: %w\n%s", from, to, err, out.String())
	}
	return nil
}

// A session is a client that keeps an export open: qemu-io, waiting for its
// next command.
type session struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

// open attaches image (as [Cluster.Image] names it), and proves that by a write of zeroes to
// its first 4 KiB. End the session with close.
func open(ctx context.Context, image string) (*session, error) {
	cmd := exec.CommandContext(ctx, "qemu-io", image)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &session{cmd: cmd, in: in}
	if _, err := io.WriteString(in, "write -P 0 0 4k\n"); err != nil {
		s.close()
		return nil, err
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "wrote 4096/4096") {
			return s, nil
		}
	}
	return nil, fmt.Errorf("qemu-io wrote nothing: %w", s.close())
}

// close lets go of the export and waits for the client to end.
func (s *session) close() error {
	s.in.Close()
	return s.cmd.Wait()
}

// wait looks until there is what is awaited, an error, or the end of ctx.
func wait(ctx context.Context, what string, look func() (bool, error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if ok, err := look(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}
