package chunkserver

import (
	"context"
	"fmt"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/replica"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

const (
	// leastPause and mostPause bound the time between two attempts to reach
	// a peer or a metadata server.
	leastPause = 20 * time.Millisecond
	mostPause  = time.Second
)

// pause waits until it is time for the next attempt and returns how long to
// wait after that, or until ctx ends.
func pause(ctx context.Context, now time.Duration) (next time.Duration) {
	timer := time.NewTimer(now)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return min(2*now, mostPause)
}

// peer is another chunkserver, to which one connection is kept. It only
// carries what this one says: the other answers on its own.
type peer struct {
	server *Server
	node   chunk.NodeID
	moved  chan struct{} // holds a token when address has changed

	// Guarded by Server.mu.
	address string
	conn    *wire.Conn // the latest; nil before the first
}

func newPeer(s *Server, node chunk.NodeID, address string) *peer {
	return &peer{server: s, node: node, address: address, moved: make(chan struct{}, 1)}
}

// move has the peer looked for at another address. Server.mu must be held.
func (p *peer) move(address string) {
	if p.address == address {
		return
	}
	p.address = address
	select {
	case p.moved <- struct{}{}:
	default:
	}
}

// run keeps the connection until the server stops.
func (p *peer) run() {
	s := p.server
	wait := leastPause
	for s.ctx.Err() == nil {
		conn, err := p.dial()
		if err != nil {
			s.log.Debug("no connection to peer", "node", p.node, "err", err)
			wait = pause(s.ctx, wait)
			continue
		}
		s.linked(p, conn)
		select {
		case <-conn.Done():
			s.log.Info("connection to peer is lost", "node", p.node, "err", conn.Err())
		case <-p.moved:
		case <-s.ctx.Done():
		}
		conn.Close()
		wait = leastPause
		pause(s.ctx, wait)
	}
}

func (p *peer) dial() (*wire.Conn, error) {
	s := p.server
	s.mu.Lock()
	address := p.address
	hello := wire.Hello{
		Role:        wire.RoleChunkserver,
		Cluster:     s.cluster,
		Session:     fmt.Sprintf("chunkserver %d/%x", s.node, s.incarnation),
		Node:        s.node,
		Incarnation: s.incarnation,
	}
	s.mu.Unlock()
	return wire.Dial(s.ctx, s.cfg.Dial, address, hello, wire.Deaf{})
}

// peerCalls handles what a peer says on a connection that it has opened.
type peerCalls struct {
	s      *Server
	from   chunk.NodeID
	broken bool // something was lost: nothing behind it may be delivered
}

func (*peerCalls) Closed(*wire.Conn, error) {}

func (p *peerCalls) Handle(r *wire.Request) {
	if p.broken {
		return
	}
	switch r.Kind {
	case wire.KindReplica:
		p.receive(r)
	case wire.KindSurvey:
		wire.Answer(r, p.s.survey)
	case wire.KindPull:
		p.s.supply(r, p.from)
	case wire.KindPulled:
		wire.Answer(r, func(_ context.Context, req wire.Pulled) (struct{}, error) { return p.s.pulled(p.from, req) })
	case wire.KindBlock:
		wire.Answer(r, p.s.block)
	default:
		wire.Deaf{}.Handle(r)
	}
}

// receive takes in a message to a copyset.
func (p *peerCalls) receive(r *wire.Request) {
	m, err := wire.ParseMessage(r.Payload)
	if err == nil {
		err = p.s.copyset(m.Copyset).step(replica.Receive{From: p.from, Message: m})
	}
	if err != nil {
		p.broken = true
		p.s.log.Warn("connection of peer is given up", "node", p.from, "err", err)
		p.s.running.Go(r.Conn().Close)
	}
}
