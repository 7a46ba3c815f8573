package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Version is that of the protocol; both ends must speak the same.
const Version = 1

// helloTimeout bounds the exchange of greetings.
const helloTimeout = 5 * time.Second

// Role tells what kind of process calls.
type Role string

const (
	RoleChunkserver Role = "chunkserver"
	RoleGateway     Role = "gateway"
)

// Hello opens every connection.
type Hello struct {
	Version int
	Role    Role
	// Cluster is the cluster that the caller belongs to; empty if it has
	// not been told yet.
	Cluster string
	// Session names the caller's process run. It has one connection to
	// each peer: the latest.
	Session string
	// Node and Incarnation are set by chunkservers that call each other.
	Node        chunk.NodeID
	Incarnation chunk.Incarnation
}

// Dialer opens the network connection below a Conn. Tests cut it.
type Dialer func(ctx context.Context, address string) (net.Conn, error)

// DialTCP is the Dialer of real life.
func DialTCP(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

// Dial connects and introduces the caller. h receives what the peer asks.
func Dial(ctx context.Context, dial Dialer, address string, hello Hello, h Handler) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	nc, err := dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("%w: dial %s: %w", ErrUnavailable, address, err)
	}
	if err := watch(nc); err != nil {
		nc.Close()
		return nil, fmt.Errorf("%w: dial %s: %w", ErrUnavailable, address, err)
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	in := newReader(nc)
	hello.Version = Version
	if err := greet(nc, in, hello); err != nil {
		nc.Close()
		return nil, fmt.Errorf("greet %s: %w", address, err)
	}
	if !stop() {
		return nil, fmt.Errorf("%w: greet %s: %w", ErrUnavailable, address, ctx.Err())
	}
	c := newConn(nc, in)
	c.start(h)
	return c, nil
}

func greet(nc net.Conn, in *reader, hello Hello) error {
	body, err := json.Marshal(hello)
	if err != nil {
		return err
	}
	h := header{length: uint32(len(body)), kind: KindHello}
	if _, err := nc.Write(append(h.append(nil), body...)); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	h, text, err := in.readFrame()
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case h.kind != KindHello || h.flags != flagReply:
		return fmt.Errorf("%w: answered with a frame of kind %d, flags %d", chunk.ErrInvalid, h.kind, h.flags)
	case h.code != codeOK:
		return remoteError(h.code, text)
	}
	return nil
}

// Server welcomes connections.
type Server struct {
	// Accept decides on a greeting: it returns who handles the connection,
	// or why it is refused. The session's older connection is gone by then.
	Accept func(*Conn, Hello) (Handler, error)
	Log    *slog.Logger

	mu       sync.Mutex
	sessions map[string]*session
	conns    map[net.Conn]struct{} // every open one
}

// session is what connections with the same Hello.Session share.
type session struct {
	users int // connections being served; guarded by Server.mu

	mu     sync.Mutex // held while a connection takes over
	latest *Conn
}

// Serve accepts connections until ctx ends; then it closes them all and
// returns when nothing runs any more.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	s.mu.Lock()
	s.sessions = make(map[string]*session)
	s.conns = make(map[net.Conn]struct{})
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var running sync.WaitGroup
	var err error
	for {
		var nc net.Conn
		if nc, err = ln.Accept(); err != nil {
			if ctx.Err() == nil && passing(err) {
				time.Sleep(acceptPause)
				continue
			}
			break
		}
		s.mu.Lock()
		s.conns[nc] = struct{}{}
		s.mu.Unlock()
		running.Go(func() { s.serve(nc) })
	}
	ln.Close()
	s.mu.Lock()
	for nc := range s.conns {
		nc.Close()
	}
	s.mu.Unlock()
	running.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("accept on %v: %w", ln.Addr(), err)
}

// acceptPause is how long to wait when there is no room for a connection.
const acceptPause = 20 * time.Millisecond

// passing reports whether a failure to accept a connection says nothing about
// the next: the caller has given up, or the machine is short of something.
func passing(err error) bool {
	for _, e := range []error{unix.ECONNABORTED, unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// serve runs one connection from its greeting to its end.
func (s *Server) serve(nc net.Conn) {
	defer func() {
		nc.Close()
		s.mu.Lock()
		delete(s.conns, nc)
		s.mu.Unlock()
	}()
	if err := watch(nc); err != nil {
		s.Log.Debug("connection that ended at once", "peer", nc.RemoteAddr().String(), "err", err)
		return
	}
	nc.SetDeadline(time.Now().Add(helloTimeout))
	in := newReader(nc)
	c := newConn(nc, in)
	hello, err := readHello(in)
	if err != nil {
		s.Log.Debug("connection without a greeting", "peer", nc.RemoteAddr().String(), "err", err)
		return
	}
	sess := s.join(hello.Session)
	defer s.leave(hello.Session, sess)
	if err := s.welcome(sess, c, hello); err != nil {
		reply := header{length: uint32(len(err.Error())), kind: KindHello, flags: flagReply, code: codeOf(err)}
		nc.Write(append(reply.append(nil), err.Error()...))
		return
	}
	<-c.Done()
	c.Close()
}

func (s *Server) join(name string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	sess := s.sessions[name]
	if sess == nil {
		sess = new(session)
		s.sessions[name] = sess
	}
	sess.users++
	return sess
}

func (s *Server) leave(name string, sess *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sess.users--; sess.users == 0 {
		delete(s.sessions, name)
	}
}

func readHello(in *reader) (Hello, error) {
	b, err := in.Peek(headerLen)
	if err != nil {
		return Hello{}, err
	}
	if Kind(b[4]) != KindHello || b[2] != 0 || b[3] != 0 { // a greeting is below 64 KiB
		return Hello{}, fmt.Errorf("%w: not a greeting: % x", chunk.ErrInvalid, b)
	}
	_, body, err := in.readFrame()
	if err != nil {
		return Hello{}, err
	}
	var hello Hello
	if err := json.Unmarshal(body, &hello); err != nil {
		return Hello{}, fmt.Errorf("%w: greeting: %w", chunk.ErrInvalid, err)
	}
	return hello, nil
}

// welcome makes c the connection of its session and starts it.
func (s *Server) welcome(sess *session, c *Conn, hello Hello) error {
	if hello.Version != Version {
		return fmt.Errorf("%w: protocol version %d, this is %d", chunk.ErrInvalid, hello.Version, Version)
	}
	if hello.Session == "" {
		return fmt.Errorf("%w: greeting without a session", chunk.ErrInvalid)
	}
	sess.mu.Lock()
	defer sess.mu.Unlock()
	if sess.latest != nil {
		sess.latest.Close()
		sess.latest = nil
	}
	// Ahead of whatever Accept lets others ask on c. It is sent by start.
	c.out.enqueue(header{kind: KindHello, flags: flagReply}, nil, nil)
	h, err := s.Accept(c, hello)
	if err != nil {
		return err
	}
	c.nc.SetDeadline(time.Time{}) // fails only if nc is closed, as start will notice
	sess.latest = c
	c.start(h)
	return nil
}
