// Package chunkserver is the role that keeps chunks: one store, the copysets
// that have a member there, a listener for the data plane, and a session with
// the metadata leader.
//
// # Who does what
//
// The rules of replication are in package replica, the keeping of data in
// package store, the framing in package wire. This package joins them:
//
//   - A copyset is the shell around one replica.Core. All events of the
//     copyset pass through it, one after the other (copyset.go).
//   - A peer is another chunkserver, with the one connection on which this one
//     sends to it. What it says comes on a connection that it has opened
//     (peer.go).
//   - Requests of clients come on connections of theirs (data.go).
//   - A member that is being brought up to date compares what it has with the
//     primary, part by part, and asks for what differs (resync.go). The primary
//     answers (supply.go), at a rate that its clients hardly feel (pace.go).
//   - A block that is found damaged is fetched from a peer (mend.go).
//   - The metadata leader is sought out, told that this chunkserver lives, and
//     obeyed (control.go).
//
// # Life
//
// A process is an incarnation: a random number, which configurations name. It
// registers with the leader, which tells it as which node the cluster knows
// its store. From then on, and through all leaders to come, it has its
// copysets; but they do nothing before the leader has sealed what they were
// and configured them for this incarnation.
//
// # Locks
//
// Server.mu guards the tables of copysets and peers, and nothing is waited for
// under it. A copyset's lock is held while the store accepts entries and makes
// a promise durable. The store's callbacks therefore never take it: what they
// report is picked up by a goroutine of the copyset, or of its pull.
package chunkserver

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/replica"
	"github.com/localsnap/localsnap/chunkserver/store"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// Config says where a chunkserver keeps its data and whom it talks to.
type Config struct {
	Dir      string        // of the store
	Servers  []string      // control addresses of the metadata servers
	Listener net.Listener  // of the data plane; the Server closes it
	Address  string        // where others reach Listener; default its own address
	Dial     wire.Dialer   // default wire.DialTCP
	Store    store.Options // its Log defaults to this one
	Log      *slog.Logger  // default discards
}

// Server is one run of a chunkserver.
type Server struct {
	cfg         Config
	store       *store.Store
	incarnation chunk.Incarnation
	log         *slog.Logger
	views       views
	reading     *semaphore.Weighted // bytes of reads that are not answered yet
	pulling     *semaphore.Weighted // copysets that are brought up to date
	pace        *pace               // of what is supplied to others
	supplied    atomic.Uint64       // bytes copied to others
	copied      atomic.Uint64       // bytes copied from others
	news        chan struct{}       // holds a token when the leader is to hear of something at once

	ctx     context.Context // of Run
	stop    context.CancelCauseFunc
	running sync.WaitGroup

	joined chan struct{} // closed when node and cluster are known

	mu       sync.Mutex
	node     chunk.NodeID // 0 until joined is closed
	cluster  string
	found    []store.State // when the store was opened; nil once joined
	copysets map[chunk.CopysetID]*copyset
	peers    map[chunk.NodeID]*peer
}

// maxReading bounds the data that reads hold while it is read and until it is
// committed, in bytes.
const maxReading = 256 << 20

// New opens the store in cfg.Dir. Close closes it.
func New(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = wire.DialTCP
	}
	cfg.Store.Log = cmp.Or(cfg.Store.Log, cfg.Log)
	cfg.Address = cmp.Or(cfg.Address, cfg.Listener.Addr().String())
	s := &Server{
		incarnation: newIncarnation(),
		log:         cfg.Log,
		reading:     semaphore.NewWeighted(maxReading),
		pulling:     semaphore.NewWeighted(maxPulling),
		pace:        newPace(),
		news:        make(chan struct{}, 1),
		joined:      make(chan struct{}),
		copysets:    make(map[chunk.CopysetID]*copyset),
		peers:       make(map[chunk.NodeID]*peer),
	}
	s.ctx, s.stop = context.WithCancelCause(context.Background())
	cfg.Store.Damaged = s.mendFound
	st, err := store.Open(cfg.Dir, cfg.Store)
	if err != nil {
		return nil, err
	}
	s.cfg, s.store, s.found = cfg, st, st.Copysets()
	return s, nil
}

func newIncarnation() chunk.Incarnation {
	var b [8]byte
	rand.Read(b[:])
	return chunk.Incarnation(binary.LittleEndian.Uint64(b[:]) | 1) // never 0
}

// Run serves until ctx ends, and then returns nil, or until the store fails.
// When it returns nothing of it runs any more. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.stop(nil) })
	defer stop()
	listener := wire.Server{Accept: s.accept, Log: s.log}
	s.running.Go(func() {
		if err := listener.Serve(s.ctx, s.cfg.Listener); err != nil {
			s.stop(err)
		}
	})
	s.running.Go(s.lead)
	s.running.Go(func() {
		select {
		case <-s.store.Failed():
			s.stop(s.store.Err())
		case <-s.ctx.Done():
		}
	})
	s.running.Wait()
	if err := context.Cause(s.ctx); err != context.Canceled {
		return fmt.Errorf("chunkserver %s: %w", s.store.ID(), err)
	}
	return nil
}

// Close closes the store and the listener. Run must have returned, or never
// been called.
func (s *Server) Close() error {
	s.stop(nil)
	s.cfg.Listener.Close() // Run has done so already, if it was called
	return s.store.Close()
}

// join makes the chunkserver a node of a cluster, with the copysets that the
// store has kept. Later calls only check that nothing has changed.
func (s *Server) join(node chunk.NodeID, cluster string) error {
	if err := s.store.Bind(cluster); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.node != 0 {
		if s.node != node {
			return fmt.Errorf("%w: registered as node %d, was node %d", chunk.ErrInvalid, node, s.node)
		}
		return nil
	}
	if node == 0 {
		return fmt.Errorf("%w: registered as nobody", chunk.ErrInvalid)
	}
	s.node, s.cluster = node, cluster
	for _, state := range s.found {
		s.add(replica.State(state))
	}
	s.found = nil
	close(s.joined)
	return nil
}

// add starts a copyset. mu must be held.
func (s *Server) add(state replica.State) *copyset {
	c := newCopyset(s, state)
	for node, p := range s.peers {
		c.links[node] = p.conn
	}
	s.copysets[state.Copyset] = c
	s.running.Go(c.run)
	return c
}

// known returns a copyset that the chunkserver has heard of, or nil.
func (s *Server) known(id chunk.CopysetID) *copyset {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.copysets[id]
}

// copyset returns a copyset, which begins with an empty history if the
// chunkserver has not heard of it. The chunkserver must have joined.
func (s *Server) copyset(id chunk.CopysetID) *copyset {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.copysets[id]; c != nil {
		return c
	}
	return s.add(replica.State{Copyset: id})
}

// link returns the connection to a peer, or nil.
func (s *Server) link(node chunk.NodeID) *wire.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[node]; p != nil {
		return p.conn
	}
	return nil
}

// connected returns the connections to all peers.
func (s *Server) connected() map[chunk.NodeID]*wire.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	conns := make(map[chunk.NodeID]*wire.Conn)
	for node, p := range s.peers {
		if p.conn != nil {
			conns[node] = p.conn
		}
	}
	return conns
}

// accept decides on a connection to the data plane.
func (s *Server) accept(c *wire.Conn, hello wire.Hello) (wire.Handler, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.node == 0:
		return nil, fmt.Errorf("%w: chunkserver has not joined its cluster yet", chunk.ErrNotReady)
	case hello.Cluster != s.cluster:
		return nil, fmt.Errorf("%w: caller is of cluster %q", wire.ErrForeign, hello.Cluster)
	case hello.Role != wire.RoleChunkserver:
		return clientCalls{s}, nil
	case s.peers[hello.Node] == nil:
		return nil, fmt.Errorf("%w: node %d is not known here yet", chunk.ErrNotReady, hello.Node)
	}
	return &peerCalls{s: s, from: hello.Node}, nil
}

// meet takes in where other chunkservers are.
func (s *Server) meet(addresses map[chunk.NodeID]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for node, address := range addresses {
		if node == s.node || node == 0 {
			continue
		}
		if p := s.peers[node]; p != nil {
			p.move(address)
			continue
		}
		p := newPeer(s, node, address)
		s.peers[node] = p
		s.running.Go(p.run)
	}
}

// linked gives a new connection to a peer to all copysets. Each goes over to
// it at one point of its own order of events.
func (s *Server) linked(p *peer, conn *wire.Conn) {
	s.mu.Lock()
	p.conn = conn
	all := slices.Collect(maps.Values(s.copysets))
	s.mu.Unlock()
	for _, c := range all {
		c.linked(p.node, conn)
	}
}
