// Package api is the HTTP interface: what users ask is translated into commands
// and queries of package fsm, and their answers into replies.
//
// # The story
//
// A request comes to any server. serve (service.go) gives it an id and a
// deadline; decode (action.go) finds its action by name and has it take its
// parameters, which yields an operation: what is to be done, without a question
// left. Only now a leader is needed. On the leader the operation is carried out
// through [Metadata]; any other server passes the request on (forward.go); and
// while no leader is known the request waits. A failure becomes one of the codes
// of package client by the one table of errors.go.
//
// The actions are in the files of what they are about (directory.go, volume.go,
// snapshot.go, clone.go, recover.go, task.go). Two generations of clients use
// the same ones; which of them asks is told from the parameters that are
// present. The shapes of replies are those of package client.
//
// # Invariants
//
//   - A malformed request is refused by the server that it came to, whether or
//     not there is a leader.
//   - A request is passed on at most once, only to an address that Metadata
//     names, and is not tried again unless it is sure that nothing happened.
//   - No reply takes longer than the request's deadline.
//   - A failure that may have taken effect says so.
package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/julienschmidt/httprouter"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/cluster"
	"github.com/localsnap/localsnap/fsm"
)

// Metadata is what the server needs of the metadata cluster. An error that is
// cluster.ErrNotLeader means that nothing happened and that another server must
// be asked; cluster.ErrUnknown, that the command may have taken effect.
type Metadata interface {
	// Do carries out one command and returns its value, or the *fsm.Error
	// with which it was refused.
	Do(ctx context.Context, c fsm.Command) (any, error)
	// Read calls fn with a state that includes everything answered before,
	// and returns what fn returns.
	Read(ctx context.Context, fn func(*fsm.State) error) error
	// Leader tells whether this server leads, and else the address (host:port)
	// at which the leader's users reach it, if one is known.
	Leader() (apiAddress string, self, known bool)
	// Presences returns the chunkservers that are connected to the leader.
	Presences() (map[chunk.NodeID]cluster.Presence, error)
	// Verify compares the copies of every copyset.
	Verify(context.Context) (map[chunk.CopysetID]cluster.Verdict, error)
}

// Server serves users. Its fields are set before it is used; the zero value of
// a limit is its default.
type Server struct {
	Metadata Metadata
	Log      *slog.Logger     // nil: nothing is logged
	Now      func() time.Time // nil: time.Now

	// Timeout bounds how long a request waits for its answer: 10 s.
	Timeout time.Duration
	// MaxConns bounds the connections of one Run: 1024. More wait to be
	// accepted.
	MaxConns int
}

const (
	defaultTimeout  = 10 * time.Second
	defaultMaxConns = 1024

	headerTimeout  = 5 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 16 << 10
	// slack is what may pass beyond a request's deadline until its reply, or
	// a body that nobody wants, is through.
	slack = 5 * time.Second
)

// Handler returns the routes. It serves until its process ends.
func (s *Server) Handler() http.Handler { return s.service(nil).routes() }

// Run serves a listener until ctx ends, and closes it. Then requests that wait
// for a leader, and new ones, are answered that the service is stopping; those
// that are being carried out are finished.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	service := s.service(ctx.Done())
	server := &http.Server{
		Handler:           service.routes(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       service.timeout + slack,
		WriteTimeout:      service.timeout + 2*slack,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(service.log.Handler(), slog.LevelWarn),
	}
	drained := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { drained <- service.drain(server) })
	err := server.Serve(limitConns(l, cmp.Or(s.MaxConns, defaultMaxConns)))
	if stop() { // it failed before ctx ended
		return fmt.Errorf("serve users: %w", errors.Join(err, service.drain(server)))
	}
	return <-drained
}

// drain ends a server when its requests have been answered.
func (s *service) drain(server *http.Server) error {
	defer s.peers.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout+slack)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return fmt.Errorf("stop serving users: %w", errors.Join(err, server.Close()))
	}
	return nil
}

// methods are those that the service may be asked by. They make no difference.
var methods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
	http.MethodDelete, http.MethodOptions, http.MethodTrace, http.MethodConnect,
}

func (s *service) routes() http.Handler {
	router := &httprouter.Router{HandleMethodNotAllowed: true}
	for _, method := range methods {
		router.Handle(method, servicePath, s.serve)
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		router.Handle(method, "/healthz", s.healthz)
		router.Handle(method, "/readyz", s.readyz)
		router.Handle(method, "/leader", s.leader)
	}
	return router
}
