package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// Server is a member of the cluster and where it is reached. Addresses are
// host:port.
type Server struct {
	ID      string
	Raft    string // by the other members
	API     string // by users
	Control string // by chunkservers and gateways
}

// Config says which member a Node is, and of what.
type Config struct {
	ID      string   // of this member
	Dir     string   // holds all that the member keeps; made if missing
	Servers []Server // all members, this one included; every member is given the same
	Log     *slog.Logger

	// Timeout is how long a member that hears nothing of its leader waits
	// before it stands for election, and how long a leader that hears
	// nothing of a majority stays one. A leader that dies is replaced within
	// two to three times this. Zero: 400 ms, for members in one data centre.
	Timeout time.Duration
	// DiskTimeout is how long a write to disk may take before the member
	// takes the disk for dead. Zero: 10 s.
	DiskTimeout time.Duration
	// SnapshotAfter is how many log entries may follow a snapshot before the
	// next is taken, and how many are kept from before it for members that
	// lag. Zero: 8192.
	SnapshotAfter uint64

	// Listener accepts the other members' connections. Open takes it over, even
	// if it fails. Nil: listen at this member's Raft address.
	Listener net.Listener
	// Dial connects to another member. Nil: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	disk func(disk) disk // the fault seam of tests: wraps the log's file
}

// Validate tells the first thing that is wrong with c.
func (c *Config) Validate() error {
	switch {
	case c.Dir == "":
		return errors.New("a cluster member needs a directory")
	case c.Log == nil:
		return errors.New("a cluster member needs a log")
	case c.Timeout < 0 || c.DiskTimeout < 0:
		return errors.New("a timeout of a cluster member is negative")
	}
	if _, ok := find(c.Servers, c.ID); !ok {
		return fmt.Errorf("server %q is not among the cluster's", c.ID)
	}
	ids, addresses := map[string]bool{}, map[string]bool{}
	for _, s := range c.Servers {
		if s.ID == "" || ids[s.ID] {
			return fmt.Errorf("server id %q is empty or used twice", s.ID)
		}
		if _, _, err := net.SplitHostPort(s.Raft); err != nil {
			return fmt.Errorf("server %q: Raft address: %w", s.ID, err)
		}
		if addresses[s.Raft] {
			return fmt.Errorf("two servers have the Raft address %s", s.Raft)
		}
		ids[s.ID], addresses[s.Raft] = true, true
	}
	return nil
}

// withDefaults returns c with its zeros replaced.
func (c Config) withDefaults() Config {
	if c.Timeout == 0 {
		c.Timeout = 400 * time.Millisecond
	}
	if c.DiskTimeout == 0 {
		c.DiskTimeout = 10 * time.Second
	}
	if c.SnapshotAfter == 0 {
		c.SnapshotAfter = 8192
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	if c.disk == nil {
		c.disk = func(d disk) disk { return d }
	}
	return c
}

// raft is the library's form of c.
func (c Config) raft(notify chan<- bool) *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(c.ID)
	conf.HeartbeatTimeout = c.Timeout
	conf.ElectionTimeout = c.Timeout
	conf.LeaderLeaseTimeout = c.Timeout
	conf.SnapshotInterval = 30 * time.Second // between looks at the log's length
	conf.SnapshotThreshold = c.SnapshotAfter
	conf.TrailingLogs = c.SnapshotAfter
	conf.NoSnapshotRestoreOnStart = true // see reconcile
	conf.NoLegacyTelemetry = true
	conf.NotifyCh = notify
	conf.Logger = raftLog(c.Log)
	return conf
}

// membership is the configuration that a new cluster's log begins with.
func (c Config) membership() raft.Configuration {
	var m raft.Configuration
	for _, s := range c.Servers {
		m.Servers = append(m.Servers, raft.Server{ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Raft)})
	}
	return m
}

// directory tells Raft where members are. Unlike the addresses in the log,
// those of the configuration can be changed, by a restart.
type directory []Server

// ServerAddr implements raft.ServerAddressProvider.
func (d directory) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	s, ok := find(d, string(id))
	if !ok {
		return "", fmt.Errorf("server %q is not among the cluster's", id)
	}
	return raft.ServerAddress(s.Raft), nil
}

func find(servers []Server, id string) (Server, bool) {
	for _, s := range servers {
		if s.ID == id {
			return s, true
		}
	}
	return Server{}, false
}
