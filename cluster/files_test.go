package cluster

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/localsnap/localsnap/fsm"
)

func TestRestartAll(t *testing.T) {
	t.Parallel()
	remove := func(t *testing.T, path string) {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		snapshot bool
		spoil    func(t *testing.T, dir string) // of each stopped member
	}{
		"log":                      {false, nil},
		"snapshot":                 {true, nil},
		"log, state lost":          {false, func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "fsm.db")) }},
		"snapshot, state lost":     {true, func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "fsm.db")) }},
		"snapshot, state is older": {true, func(t *testing.T, dir string) { os.Rename(filepath.Join(dir, "old"), filepath.Join(dir, "fsm.db")) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newTrio(t)
			for i := range c.config {
				c.config[i].SnapshotAfter = 4 // of the log, as many entries stay
			}
			c.startAll()
			c.put(0, "0")
			for i, n := range c.node {
				copyState(t, n, filepath.Join(c.config[i].Dir, "old"))
			}
			for i := range uint64(20) {
				c.put(i, fmt.Sprint(i))
			}
			c.settled()
			if test.snapshot {
				c.snapshots()
				c.put(20, "20")
			}
			for i := range c.node {
				c.stop(i)
				if test.spoil != nil {
					test.spoil(t, c.config[i].Dir)
				}
			}
			c.startAll()
			leader := c.node[c.leader()]
			for i := range uint64(20) {
				if v, err := get(t.Context(), leader, i); err != nil || v != fmt.Sprint(i) {
					t.Errorf("after the restart, %d = %q, %v", i, v, err)
				}
			}
			c.put(21, "21")
			c.settled()
		})
	}
}

// snapshots makes each member take a snapshot that shortens its log.
func (c *trio) snapshots() {
	c.t.Helper()
	for _, n := range c.node {
		if n == nil {
			continue
		}
		if err := n.raft.Snapshot().Error(); err != nil {
			c.t.Fatalf("snapshot of %s: %v", n.self.ID, err)
		}
		if first, err := n.disk.FirstIndex(); err != nil || first == 1 {
			c.t.Fatalf("the log of %s still begins at %d (%v)", n.self.ID, first, err)
		}
	}
}

func copyState(t *testing.T, n *Node, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.state.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// Who has missed more than the others' logs hold gets a snapshot.
func TestCatchUpBySnapshot(t *testing.T) {
	t.Parallel()
	for name, fresh := range map[string]bool{"behind": false, "new": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newTrio(t)
			for i := range c.config {
				c.config[i].SnapshotAfter = 4
			}
			c.start(0)
			c.start(1)
			if !fresh {
				c.start(2)
				c.put(0, "0")
				c.settled()
				if c.leader() == 2 {
					c.stop(2)
				} else {
					c.kill(2)
				}
			}
			for i := range uint64(20) {
				c.put(i, fmt.Sprint(i))
			}
			c.settled()
			c.snapshots()
			c.start(2)
			c.settled()
			if list, err := c.node[2].snapshots.List(); err != nil || len(list) == 0 {
				t.Errorf("the member caught up without a snapshot: %v, %v", list, err)
			}
			c.put(21, "21")
			c.settled()
			c.stop(2)
			c.start(2)
			c.settled()
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	c := newTrio(t)
	c.config[0].SnapshotAfter = 1
	c.config[1].SnapshotAfter = 1
	c.config[2].SnapshotAfter = 1
	c.startAll()
	c.put(1, "one")
	c.put(1, "two")
	c.settled()
	c.snapshots()

	refused := func(name string, config Config, why string) {
		t.Helper()
		config.Listener = c.net.listen(t, config.Servers[0].Raft)
		n, err := Open(config)
		if err == nil {
			n.Close()
			t.Errorf("%s: opened", name)
		} else if !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", name, err, why)
		}
		if _, err := config.Listener.Accept(); err == nil {
			t.Errorf("%s: the listener is open", name)
		}
	}
	refused("running", c.config[0], "another process")
	c.stop(0)

	foreign := c.config[0]
	foreign.ID = "b"
	refused("another member's directory", foreign, "is that of server a")

	smaller := c.config[0]
	smaller.Servers = smaller.Servers[:2]
	refused("other members", smaller, `made of servers ["a" "b" "c"]`)

	unnamed := c.config[0]
	unnamed.ID = ""
	refused("an invalid configuration", unnamed, "is not among")

	if err := os.RemoveAll(filepath.Join(c.config[0].Dir, "snapshots")); err != nil {
		t.Fatal(err)
	}
	refused("lost snapshots", c.config[0], "the newest snapshot is of entry 0")

	if err := os.Remove(filepath.Join(c.config[0].Dir, "raft.db")); err != nil {
		t.Fatal(err)
	}
	refused("a lost log", c.config[0], "the log ends at 0")
	state, err := fsm.Open(filepath.Join(c.config[0].Dir, "fsm.db"))
	if err != nil {
		t.Fatal(err)
	}
	state.Close()
}

// A member may move: its address is not what makes it a member.
func TestAddressChanges(t *testing.T) {
	t.Parallel()
	c := startTrio(t)
	c.put(1, "one")
	servers := append([]Server(nil), c.config[0].Servers...)
	for i := range c.node {
		c.stop(i)
	}
	for i := range servers {
		servers[i].Raft = servers[i].ID + ":9"
	}
	for i := range c.config {
		c.config[i].Servers = servers
		c.config[i].Dial = c.net.dialer(servers[i].Raft)
	}
	clear(c.net.real)
	c.startAll()
	if v, err := get(t.Context(), c.node[c.leader()], 1); err != nil || v != "one" {
		t.Errorf("after the move: %q, %v", v, err)
	}
	c.put(1, "two")
	c.settled()
}

func TestValidate(t *testing.T) {
	t.Parallel()
	valid := func() Config {
		return Config{ID: "a", Dir: "d", Log: slog.New(slog.DiscardHandler), Servers: []Server{{ID: "a", Raft: "h:1"}, {ID: "b", Raft: "h:2"}}}
	}
	for name, test := range map[string]struct {
		change func(*Config)
		why    string // "": valid
	}{
		"valid":          {func(c *Config) {}, ""},
		"no directory":   {func(c *Config) { c.Dir = "" }, "directory"},
		"no log":         {func(c *Config) { c.Log = nil }, "log"},
		"no id":          {func(c *Config) { c.ID = "" }, `"" is not among`},
		"unknown id":     {func(c *Config) { c.ID = "z" }, `"z" is not among`},
		"empty id":       {func(c *Config) { c.Servers[1].ID = "" }, `""`},
		"id twice":       {func(c *Config) { c.Servers[1].ID = "a" }, "twice"},
		"address twice":  {func(c *Config) { c.Servers[1].Raft = "h:1" }, "two servers"},
		"address":        {func(c *Config) { c.Servers[1].Raft = "h" }, "missing port"},
		"negative times": {func(c *Config) { c.Timeout = -time.Second }, "negative"},
	} {
		c := valid()
		test.change(&c)
		if err := c.Validate(); (err == nil) != (test.why == "") || err != nil && !strings.Contains(err.Error(), test.why) {
			t.Errorf("%s: %v, want %q", name, err, test.why)
		}
	}
}
