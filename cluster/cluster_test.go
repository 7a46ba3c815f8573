package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	"github.com/localsnap/localsnap/fsm"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// trio is a cluster of three members in one process.
type trio struct {
	t      testing.TB
	net    *network
	config [3]Config
	node   [3]*Node // nil: not running
}

// newTrio makes the members but starts none.
func newTrio(t testing.TB) *trio {
	c := &trio{t: t, net: newNetwork()}
	var servers []Server
	for _, id := range []string{"a", "b", "c"} {
		servers = append(servers, Server{ID: id, Raft: id + ":1", API: id + ":2", Control: id + ":3"})
	}
	dir := t.TempDir()
	for i, s := range servers {
		c.config[i] = Config{
			ID:      s.ID,
			Dir:     filepath.Join(dir, s.ID),
			Servers: servers,
			Log:     slog.New(slog.DiscardHandler),
			Timeout: 200 * time.Millisecond,
			Dial:    c.net.dialer(s.Raft),
		}
	}
	t.Cleanup(func() {
		for i := range c.node {
			c.stop(i)
		}
	})
	return c
}

// startTrio starts a cluster.
func startTrio(t testing.TB) *trio {
	c := newTrio(t)
	c.startAll()
	return c
}

func (c *trio) startAll() {
	c.t.Helper()
	for i := range c.node {
		c.start(i)
	}
}

func (c *trio) start(i int) {
	c.t.Helper()
	c.config[i].Listener = c.net.listen(c.t, c.config[i].Servers[i].Raft)
	n, err := Open(c.config[i])
	if err != nil {
		c.t.Fatalf("start %s: %v", c.config[i].ID, err)
	}
	c.node[i] = n
}

// stop closes member i if it runs, and checks its state.
func (c *trio) stop(i int) {
	c.t.Helper()
	n := c.node[i]
	if n == nil {
		return
	}
	c.node[i] = nil
	err := n.Close()
	if err != nil {
		c.t.Errorf("close %s: %v", n.self.ID, err)
	}
	state, err := fsm.Open(filepath.Join(n.config.Dir, "fsm.db"))
	if err != nil {
		c.t.Errorf("reopen the state of %s: %v", n.self.ID, err)
		return
	}
	if err := errors.Join(state.Check(), state.Close()); err != nil {
		c.t.Errorf("state of %s: %v", n.self.ID, err)
	}
}

// kill stops member i without any goodbye to the others.
func (c *trio) kill(i int) {
	c.node[i].leave()
	c.stop(i)
}

// leader waits until the members that run agree on a leader that serves, and
// returns its place.
func (c *trio) leader() (leader int) {
	c.t.Helper()
	c.until("leader", func() bool {
		leader = -1
		for i, n := range c.node {
			if n != nil && n.raft.State() == raft.Leader {
				leader = i
			}
		}
		if leader < 0 {
			return false
		}
		for _, n := range c.node {
			if s, _ := c.sees(n); n != nil && s != c.config[leader].ID {
				return false
			}
		}
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		defer cancel()
		return c.node[leader].Read(ctx, func(*fsm.State) error { return nil }) == nil
	})
	return leader
}

func (c *trio) sees(n *Node) (string, bool) {
	if n == nil {
		return "", false
	}
	s, ok := n.Leader()
	return s.ID, ok
}

// put writes to a register at the leader until it is acknowledged, whoever
// leads meanwhile.
func (c *trio) put(key uint64, value string) {
	c.t.Helper()
	c.until("put", func() bool {
		ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
		defer cancel()
		_, err := c.node[c.leader()].Apply(ctx, register(key, value))
		return err == nil
	})
}

// settled waits until all that runs has applied the same, and compares it.
func (c *trio) settled() {
	c.t.Helper()
	leader := c.node[c.leader()]
	if err := leader.Read(c.t.Context(), func(*fsm.State) error { return nil }); err != nil {
		c.t.Fatal(err)
	}
	applied := leader.state.Applied()
	want, err := leader.state.Digest()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, n := range c.node {
		if n == nil {
			continue
		}
		c.until(n.self.ID+" to catch up", func() bool { return n.state.Applied() >= applied })
		if got, err := n.state.Digest(); err != nil || got != want {
			c.t.Errorf("%s at entry %d: digest %x (%v), the leader's at %d is %x", n.self.ID, n.state.Applied(), got, err, applied, want)
		}
	}
}

// until waits for a condition.
func (c *trio) until(what string, condition func() bool) {
	c.t.Helper()
	until(c.t, what, condition)
}

func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// promptly ends the test if fn doesn't return.
func promptly(t testing.TB, what string, fn func()) {
	t.Helper()
	if !within(patience, fn) {
		t.Fatalf("%s does not return", what)
	}
}

// The state's chunkservers serve as registers: a store's address is a value.

func key(n uint64) (id uuid.UUID) {
	binary.BigEndian.PutUint64(id[:], n+1)
	return id
}

func register(k uint64, value string) fsm.Command {
	return fsm.RegisterNode{Store: key(k), Address: value}
}

// values are the registers that s has.
func values(s *fsm.State) map[uint64]string {
	values := make(map[uint64]string)
	for _, n := range s.Nodes() {
		values[binary.BigEndian.Uint64(n.Store[:])-1] = n.Address
	}
	return values
}

// get reads a register at n.
func get(ctx context.Context, n *Node, k uint64) (value string, err error) {
	err = n.Read(ctx, func(s *fsm.State) error {
		value = values(s)[k]
		return nil
	})
	return value, err
}

// network connects members by their Raft addresses, and breaks.
type network struct {
	mu    sync.Mutex
	real  map[string]string        // address of a member -> where it listens
	cut   map[[2]string]bool       // from, to: can't be dialled
	held  map[string]chan struct{} // from: what arrives at it waits until this is closed
	links map[*link]struct{}
}

func newNetwork() *network {
	return &network{
		real:  make(map[string]string),
		cut:   make(map[[2]string]bool),
		held:  make(map[string]chan struct{}),
		links: make(map[*link]struct{}),
	}
}

func (n *network) listen(t testing.TB, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.real[address] = l.Addr().String()
	return l
}

func (n *network) dialer(from string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		n.mu.Lock()
		real := n.real[to]
		n.mu.Unlock()
		c, err := new(net.Dialer).DialContext(ctx, "tcp", real)
		if err != nil {
			return nil, err
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.cut[[2]string{from, to}] {
			c.Close()
			return nil, fmt.Errorf("no route from %s to %s", from, to)
		}
		l := &link{Conn: c, net: n, from: from, to: to, closed: make(chan struct{})}
		n.links[l] = struct{}{}
		return l, nil
	}
}

// sever ends what others have opened to a member, and, both ways, what it has
// opened to them. Nothing new gets through.
func (n *network) sever(address string, bothWays bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other := range n.real {
		n.cut[[2]string{other, address}] = true
		n.cut[[2]string{address, other}] = bothWays
	}
	for l := range n.links {
		if n.cut[[2]string{l.from, l.to}] {
			l.Conn.Close()
		}
	}
}

// heal undoes all cuts.
func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
}

// hold keeps answers from a member until the function that it returns is called.
func (n *network) hold(address string) (release func()) {
	gate := make(chan struct{})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held[address] = gate
	return sync.OnceFunc(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.held, address)
		close(gate)
	})
}

// link is a connection, seen from who dialled it.
type link struct {
	net.Conn
	net      *network
	from, to string
	once     sync.Once
	closed   chan struct{}
}

func (l *link) Read(p []byte) (int, error) {
	k, err := l.Conn.Read(p)
	l.net.mu.Lock()
	gate := l.net.held[l.from]
	l.net.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-l.closed:
		}
	}
	return k, err
}

func (l *link) Close() error {
	l.once.Do(func() { close(l.closed) })
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	delete(l.net.links, l)
	return l.Conn.Close()
}
