// Package integration tries the whole of localsnap as its users do: it starts
// the binary, asks the HTTP API through package client, and reads and writes
// volumes with clients of the NBD protocol that nobody here wrote: nbdcopy,
// qemu-img, qemu-io and fio.
//
// A [Cluster] is one running "localsnap dev". A [Story] is a volume's life on
// it, from the first byte to the last snapshot, told step by step. The demo
// tells the same story that the tests check.
package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/localsnap/localsnap/api/client"
)

const (
	apiServers = 3
	portBlock  = 50 // the ports that follow the first, all of them reserved for one cluster
	nbdOffset  = 40 // of the NBD port in the block

	startLimit = 30 * time.Second
	stopLimit  = 10 * time.Second
)

// A Cluster is a running "localsnap dev". Whoever starts one must end it with
// Stop or Kill, and can then start another on the same directory.
type Cluster struct {
	Port int    // of the first API server; two more follow
	Log  string // path of the file that takes what the process prints

	dir  string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process is gone
	err  error         // how it ended; read after done
}

// Start runs binary with its data in dir and returns when the cluster accepts
// changes. The process ends with ctx at the latest.
func Start(ctx context.Context, binary, dir string) (*Cluster, error) {
	port, err := freePorts()
	if err != nil {
		return nil, err
	}
	c := &Cluster{Port: port, Log: filepath.Join(dir, "dev.log"), dir: filepath.Join(dir, "data"), done: make(chan struct{})}
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c.cmd = exec.CommandContext(ctx, binary, "dev", "--data", c.dir,
		"--api-port", strconv.Itoa(port), "--nbd-port", strconv.Itoa(port+nbdOffset))
	c.cmd.Stdout, c.cmd.Stderr = log, log
	// Interrupting the caller's terminal must leave it to the caller to stop the cluster.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	if err := c.ready(ctx); err != nil {
		c.Kill()
		return nil, fmt.Errorf("start: %w\n%s", err, tail(c.Log))
	}
	return c, nil
}

// ready waits until the first server knows a leader.
func (c *Cluster) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return wait(ctx, "the cluster to become ready", func() (bool, error) {
		select {
		case <-c.done:
			return false, fmt.Errorf("the process ended: %v", c.err)
		default:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/readyz", c.Port), nil)
		if err != nil {
			return false, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false, nil
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK, nil
	})
}

// Client returns a client of all servers.
func (c *Cluster) Client() *client.Client {
	var servers []string
	for i := range apiServers {
		servers = append(servers, c.server(i))
	}
	return client.New(servers...)
}

// server is the address of one API server.
func (c *Cluster) server(i int) string { return fmt.Sprintf("127.0.0.1:%d", c.Port+i) }

// URI names an export ("/volume" or "/volume@snapshot") to libnbd's programs.
// The first slash after the address is not part of the name.
func (c *Cluster) URI(export string) string {
	return fmt.Sprintf("nbd://127.0.0.1:%d/%s", c.Port+nbdOffset, export)
}

// Image names an export to QEMU's programs, which would drop all leading
// slashes of a URI's path.
func (c *Cluster) Image(export string) string {
	return nbdImage(export, filepath.Join(c.dir, "nbd.sock"))
}

func nbdImage(export, socket string) string {
	return fmt.Sprintf(`json:{"driver":"raw","file":{"driver":"nbd","export":%q,"server":{"type":"unix","path":%q}}}`, export, socket)
}

// SocketURI names an export as URI does, on the gateway's unix socket.
func (c *Cluster) SocketURI(export string) string {
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", export, filepath.Join(c.dir, "nbd.sock"))
}

// Pid is the process that runs the cluster.
func (c *Cluster) Pid() int { return c.cmd.Process.Pid }

// Stop interrupts the process and returns how long it took to end. It fails
// if that was not a clean end.
func (c *Cluster) Stop() (time.Duration, error) {
	began := time.Now()
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		return 0, fmt.Errorf("stop: %w\n%s", err, tail(c.Log))
	}
	select {
	case <-c.done:
	case <-time.After(stopLimit):
		c.Kill()
		return 0, fmt.Errorf("stop: still running after %v\n%s", stopLimit, tail(c.Log))
	}
	if c.err != nil {
		return 0, fmt.Errorf("stop: %w\n%s", c.err, tail(c.Log))
	}
	return time.Since(began), nil
}

// Kill ends the process as a power failure would, and waits for that. It may
// be called again, and after Stop.
func (c *Cluster) Kill() {
	c.cmd.Process.Kill() // fails only if the process is gone
	<-c.done
}

// freePorts finds a block of ports that nobody listens on, below those that
// the system gives to outgoing connections.
func freePorts() (int, error) {
	for range 100 {
		first := 12000 + portBlock*rand.IntN(400)
		if free(first) {
			return first, nil
		}
	}
	return 0, errors.New("no block of free ports found")
}

func free(first int) bool {
	for port := first; port < first+portBlock; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// tail returns the last lines of a log, to go into an error.
func tail(path string) string {
	const most = 4 << 10
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-most):])
}
