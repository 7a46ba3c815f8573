package cluster

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Open starts the member that config describes. On an empty directory it is a
// member of a new cluster; all members may begin so, in any order.
func Open(config Config) (n *Node, err error) {
	defer func() {
		if err != nil && config.Listener != nil {
			config.Listener.Close()
		}
	}()
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	self, _ := find(config.Servers, config.ID)
	if config.Listener == nil {
		if config.Listener, err = net.Listen("tcp", self.Raft); err != nil {
			return nil, err
		}
	}
	files, err := openFiles(config)
	if err != nil {
		return nil, fmt.Errorf("open cluster member %s in %s: %w", config.ID, config.Dir, err)
	}
	n = &Node{
		config:  config,
		self:    self,
		files:   files,
		stream:  newStream(config.Listener, self.Raft, config.Dial),
		slots:   make(chan struct{}, maxInFlight),
		closing: make(chan struct{}),
		failed:  make(chan error, 1),
		notify:  make(chan bool),
		leaders: make(chan raft.Observation, 16),
		stopped: make(chan struct{}),
		watched: make(chan struct{}),
		changed: make(chan struct{}),
	}
	if err := n.start(); err != nil {
		return nil, fmt.Errorf("start cluster member %s in %s: %w", config.ID, config.Dir, err)
	}
	return n, nil
}

// start starts Raft.
func (n *Node) start() (err error) {
	conf := n.config.raft(n.notify)
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:                n.stream,
		ServerAddressProvider: directory(n.config.Servers),
		Logger:                conf.Logger,
		MaxPool:               3,
		// One request at a time to each member: with more in flight, which
		// gains little, members were seen to stall.
		MaxRPCsInFlight: 1,
		// Of a request that a partition swallows; a larger snapshot gets more.
		Timeout: 5 * n.config.Timeout,
	})
	n.raft, err = raft.NewRaft(conf, &machine{state: n.state, disk: n.disk},
		n.disk, n.disk, n.snapshots, transport)
	if err != nil {
		transport.Close()
		n.files.Close()
		return err
	}
	n.shutdown = sync.OnceValue(n.raft.Shutdown)
	n.close = sync.OnceValue(n.closeOnce)
	n.raft.RegisterObserver(raft.NewObserver(n.leaders, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	go n.watch()
	if err := checkMembership(n.config, n.raft.GetConfiguration().Configuration()); err != nil {
		return errors.Join(err, n.Close())
	}
	return nil
}

// checkMembership makes sure that the cluster's members are those of config.
func checkMembership(config Config, members raft.Configuration) error {
	var ids, configured []string
	for _, s := range members.Servers {
		ids = append(ids, string(s.ID))
	}
	for _, s := range config.Servers {
		configured = append(configured, s.ID)
	}
	slices.Sort(ids)
	slices.Sort(configured)
	if !slices.Equal(ids, configured) {
		return fmt.Errorf("the cluster was made of servers %q, but the configuration has %q", ids, configured)
	}
	return nil
}

// leave stops taking part in the cluster, without waiting.
func (n *Node) leave() {
	// First the network: Raft waits for the requests that it has sent.
	n.stream.Close()
	n.shutdown()
}

// closeOnce is Close.
func (n *Node) closeOnce() error {
	close(n.closing)
	n.endTerm(errClosed)
	if n.raft.State() == raft.Leader {
		// If it fails, the others hold an election.
		within(n.config.Timeout, func() { _ = n.raft.LeadershipTransfer().Error() })
	}
	// What Raft hasn't answered when it stops, it may never answer.
	within(n.config.Timeout, func() {
		for range cap(n.slots) {
			n.slots <- struct{}{}
		}
	})
	n.leave()
	if !within(n.config.DiskTimeout, func() { _ = n.shutdown().Error() }) {
		return fmt.Errorf("close cluster member %s: a write to disk does not return", n.config.ID)
	}
	close(n.stopped)
	<-n.watched
	return n.files.Close()
}

// within reports whether fn returned in time. If not, it is left behind.
func within(limit time.Duration, fn func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
