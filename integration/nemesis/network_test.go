package nemesis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A network is a bridge in the test's own namespace, and hosts on it, each in
// a namespace. The test has the address .254 and reaches all of them.
type network struct {
	t     *testing.T
	hosts int
}

// A host is a namespace on the network.
type host struct {
	name, address, port string // port: its end of the cable at the bridge
}

// newNetwork makes a network that is gone when the test ends.
func newNetwork(t *testing.T) *network {
	t.Helper()
	needNamespaces(t)
	t.Cleanup(func() {
		if err := ip("link", "del", "bridge0"); err != nil {
			t.Error(err)
		}
	})
	for _, args := range [][]string{
		{"link", "add", "bridge0", "type", "bridge"},
		{"addr", "add", "10.99.0.254/24", "dev", "bridge0"},
		{"link", "set", "bridge0", "up"},
	} {
		must(t, ip(args...))
	}
	return &network{t: t}
}

// newHost adds a host. Its processes must have ended when the test does.
func (n *network) newHost(name string) *host {
	n.t.Helper()
	n.hosts++
	h := &host{name: name, address: fmt.Sprintf("10.99.0.%d", n.hosts), port: fmt.Sprint("port", n.hosts)}
	must(n.t, ip("netns", "add", name))
	n.t.Cleanup(func() {
		// The namespace goes later, by itself; the cable's name is to be free now.
		if err := errors.Join(ip("link", "del", h.port), ip("netns", "del", name)); err != nil {
			n.t.Error(err)
		}
	})
	for _, args := range [][]string{
		{"link", "add", h.port, "type", "veth", "peer", "name", "eth0", "netns", name},
		{"link", "set", h.port, "master", "bridge0", "up"},
		{"-n", name, "addr", "add", h.address + "/24", "dev", "eth0"},
		{"-n", name, "link", "set", "eth0", "up"},
		{"-n", name, "link", "set", "lo", "up"},
	} {
		must(n.t, ip(args...))
	}
	return h
}

// command is a program on the host. Its process is the program's own.
func (h *host) command(program string, args ...string) (*exec.Cmd, error) {
	path, err := lookPath("ip")
	if err != nil {
		return nil, err
	}
	return exec.Command(path, append([]string{"netns", "exec", h.name, program}, args...)...), nil
}

// filter replaces the host's packet filter: rules for what comes in, and for
// what goes out, of other hosts.
func (h *host) filter(in, out string) error {
	return tool(fmt.Sprintf(`flush ruleset
table inet cut {
	chain in { type filter hook input priority 0; iif lo accept; %s; }
	chain out { type filter hook output priority 0; oif lo accept; %s; }
}`, in, out), "ip", "netns", "exec", h.name, "nft", "-f", "-")
}

// cut drops every packet from and to the host, without a word.
func (h *host) cut() error { return h.filter("drop", "drop") }

// cutFrom drops every packet between two hosts; others reach both.
func (h *host) cutFrom(other *host) error {
	return h.filter("ip saddr "+other.address+" drop", "ip daddr "+other.address+" drop")
}

// heal ends what cut and cutFrom began.
func (h *host) heal() error {
	return ip("netns", "exec", h.name, "nft", "flush", "ruleset")
}

// received is how many bytes were sent to the host since it is there.
func (h *host) received(ctx context.Context) (uint64, error) {
	out, err := run(ctx, "", "ip", "-j", "-s", "link", "show", h.port)
	if err != nil {
		return 0, err
	}
	var links []struct {
		Stats struct {
			Sent struct {
				Bytes uint64 `json:"bytes"`
			} `json:"tx"` // by the bridge
		} `json:"stats64"`
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) != 1 {
		return 0, fmt.Errorf("ip printed %q: %w", out, err)
	}
	return links[0].Stats.Sent.Bytes, nil
}

// listen listens on the host, in this process.
func (h *host) listen(address string) (net.Listener, error) {
	runtime.LockOSThread()
	ours, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	theirs, err := os.Open("/run/netns/" + h.name)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	if err := unix.Setns(int(theirs.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", address)
	if err := unix.Setns(int(ours.Fd()), unix.CLONE_NEWNET); err != nil {
		panic(err) // the thread would do the work of others on the wrong host
	}
	runtime.UnlockOSThread()
	return l, err
}

// echo answers on a host with what it is sent, until the test ends.
func echo(t *testing.T, h *host) (address string) {
	t.Helper()
	l, err := h.listen(h.address + ":0")
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(toolLimit))
			io.Copy(conn, conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// reaches reports whether a connection from a host can be made.
func reaches(t *testing.T, h *host, address string) bool {
	t.Helper()
	where, port, err := net.SplitHostPort(address)
	must(t, err)
	cmd, err := h.command("timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/"+where+"/"+port)
	must(t, err)
	return cmd.Run() == nil
}

func TestCut(t *testing.T) {
	n := newNetwork(t)
	a, b, c := n.newHost("a"), n.newHost("b"), n.newHost("c")
	atA := echo(t, a)
	check := func(when string, fromB, fromC bool) {
		t.Helper()
		if got := reaches(t, b, atA); got != fromB {
			t.Errorf("%s: b reaches a: %t", when, got)
		}
		if got := reaches(t, c, atA); got != fromC {
			t.Errorf("%s: c reaches a: %t", when, got)
		}
	}
	check("before", true, true)
	must(t, a.cut())
	check("a is cut", false, false)
	must(t, a.heal())
	check("a is healed", true, true)
	must(t, b.cutFrom(a))
	check("b is cut from a", false, true)
	must(t, b.heal())
	check("b is healed", true, true)
}

func TestReceived(t *testing.T) {
	n := newNetwork(t)
	h := n.newHost("h")
	address := echo(t, h)
	before, err := h.received(t.Context())
	must(t, err)
	conn, err := net.Dial("tcp", address)
	must(t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(toolLimit))
	p := make([]byte, 100<<10)
	_, err = conn.Write(p)
	must(t, err)
	_, err = io.ReadFull(conn, p)
	must(t, err)
	after, err := h.received(t.Context())
	must(t, err)
	if got := after - before; got < 100<<10 || got > 200<<10 {
		t.Errorf("%d bytes were received", got)
	}
}
