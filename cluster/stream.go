package cluster

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// stream is the network as Raft sees it. When it is closed, so are all its
// connections, and whoever waits on one is released.
type stream struct {
	listener net.Listener
	address  address // by which the others know this member
	dial     func(ctx context.Context, address string) (net.Conn, error)
	ctx      context.Context
	cancel   context.CancelFunc

	mu    sync.Mutex
	conns map[*conn]struct{} // nil: closed
}

// address is a host:port.
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// conn is a connection that is known to its stream.
type conn struct {
	net.Conn
	stream *stream
}

func newStream(l net.Listener, self string, dial func(context.Context, string) (net.Conn, error)) *stream {
	s := &stream{listener: l, address: address(self), dial: dial, conns: make(map[*conn]struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Accept implements net.Listener.
func (s *stream) Accept() (net.Conn, error) {
	c, err := s.listener.Accept()
	if err != nil {
		return nil, err
	}
	return s.add(c)
}

// Addr implements net.Listener.
func (s *stream) Addr() net.Addr { return s.address }

// Dial implements raft.StreamLayer.
func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c, err := s.dial(ctx, string(address))
	if err != nil {
		return nil, err
	}
	return s.add(c)
}

// Close implements net.Listener.
func (s *stream) Close() error {
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	if conns == nil {
		return nil
	}
	s.cancel()
	for c := range conns {
		c.Conn.Close()
	}
	return s.listener.Close()
}

func (s *stream) add(c net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		c.Close()
		return nil, net.ErrClosed
	}
	known := &conn{c, s}
	s.conns[known] = struct{}{}
	return known, nil
}

func (c *conn) Close() error {
	c.stream.mu.Lock()
	delete(c.stream.conns, c)
	c.stream.mu.Unlock()
	return c.Conn.Close()
}
