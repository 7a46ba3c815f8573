package nbd

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Server serves exports. Its fields are set before it is used; the zero value
// of a limit is its default.
type Server struct {
	Exports Exports
	Log     *slog.Logger // nil: nothing is logged

	// MaxConns bounds the connections of one Serve; more wait to be accepted.
	MaxConns int
	// MaxInFlight and MaxInFlightBytes bound, for one connection, the
	// requests that have been read but not answered and the memory for
	// their data. One request is always admitted, whatever its size.
	MaxInFlight      int
	MaxInFlightBytes int64
	// HandshakeTimeout bounds the negotiation, from first to last byte.
	HandshakeTimeout time.Duration
	// DrainTimeout bounds how long requests in flight may go on, and their
	// replies be taken, once a connection is ending.
	DrainTimeout time.Duration
}

const (
	defaultMaxConns         = 256
	defaultMaxInFlight      = 128
	defaultMaxInFlightBytes = 64 << 20
	defaultHandshakeTimeout = 30 * time.Second
	defaultDrainTimeout     = 10 * time.Second
)

// maxAcceptPause is the longest pause after failures to accept, which mostly
// come from a process that is out of file descriptors for a while.
const maxAcceptPause = time.Second

// longAgo is a deadline that ends what is under way.
var longAgo = time.Unix(1, 0)

// withDefaults returns a copy in which nothing is left to be chosen.
func (s *Server) withDefaults() Server {
	return Server{
		Exports:          s.Exports,
		Log:              cmp.Or(s.Log, slog.New(slog.DiscardHandler)),
		MaxConns:         cmp.Or(s.MaxConns, defaultMaxConns),
		MaxInFlight:      cmp.Or(s.MaxInFlight, defaultMaxInFlight),
		MaxInFlightBytes: cmp.Or(s.MaxInFlightBytes, defaultMaxInFlightBytes),
		HandshakeTimeout: cmp.Or(s.HandshakeTimeout, defaultHandshakeTimeout),
		DrainTimeout:     cmp.Or(s.DrainTimeout, defaultDrainTimeout),
	}
}

// Serve accepts connections of any kind of stream until ctx ends, then closes
// the listener, lets every connection end as the package comment says, and
// returns nil when all are gone. It returns an error, in the same way, if the
// listener is closed by somebody else.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	limits := s.withDefaults()
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()

	slots := make(chan struct{}, limits.MaxConns)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := accept(ctx, l, limits.Log)
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("nbd: serve %v: %w", l.Addr(), err)
		}
		conns.Go(func() {
			defer func() { <-slots }()
			_ = s.ServeConn(ctx, conn) // has logged its error
		})
	}
}

// accept returns the next connection. It tries again, ever more slowly, until
// ctx ends or the listener is closed.
func accept(ctx context.Context, l net.Listener, log *slog.Logger) (net.Conn, error) {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, maxAcceptPause) {
		conn, err := l.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return conn, err
		}
		log.Warn("nbd: accept", "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// ServeConn serves one connection and closes it. The error is nil if the
// client left between two messages or ctx ended, else it says what broke.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) error {
	limits := s.withDefaults()
	log := limits.Log.With("client", conn.RemoteAddr())
	defer conn.Close()

	in := bufio.NewReaderSize(conn, readAheadSize)
	chosen, err := handshake(ctx, conn, in, &limits)
	if chosen.device != nil {
		log = log.With("export", chosen.export)
		defer func() {
			if err := chosen.device.Close(); err != nil {
				log.Warn("nbd: close device", "error", err)
			}
		}()
	}
	if err == nil {
		log.Info("nbd: export opened", "size", chosen.info.Size, "read_only", chosen.info.ReadOnly)
		err = newTransmission(conn, in, chosen, &limits, log).run(ctx)
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, errAborted), ctx.Err() != nil:
		log.Debug("nbd: connection ended", "reason", err)
		return nil
	case err != nil:
		log.Info("nbd: connection broken", "error", err)
		return fmt.Errorf("nbd: connection of %v: %w", conn.RemoteAddr(), err)
	}
	log.Debug("nbd: client disconnected")
	return nil
}

// handshake negotiates for as long as ctx and the timeout allow. The session
// holds a device whenever one has been opened, also if there is an error.
func handshake(ctx context.Context, conn net.Conn, in *bufio.Reader, limits *Server) (session, error) {
	ctx, cancel := context.WithTimeout(ctx, limits.HandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(longAgo) })

	n := negotiation{exports: limits.Exports, in: in, out: bufio.NewWriter(conn)}
	err := n.run(ctx)
	if !stop() { // the deadline is set or about to be: the connection is lost
		err = fmt.Errorf("handshake: %w", context.Cause(ctx))
	}
	return n.session, err
}
