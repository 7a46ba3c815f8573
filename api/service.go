package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/julienschmidt/httprouter"
	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/cluster"
)

const (
	servicePath     = "/SnapshotCloneService"
	headerRequestID = "X-Request-Id"

	// pollInterval is how often a request that waits for a leader looks for one.
	pollInterval = 20 * time.Millisecond
)

// service is a Server at work.
type service struct {
	metadata Metadata
	log      *slog.Logger
	now      func() time.Time
	timeout  time.Duration
	stopping <-chan struct{} // closed when no new requests are taken; nil: never
	peers    *http.Client    // reaches the other servers
}

func (s *Server) service(stopping <-chan struct{}) *service {
	now := s.Now
	if now == nil {
		now = time.Now
	}
	return &service{
		metadata: s.Metadata,
		log:      cmp.Or(s.Log, slog.New(slog.DiscardHandler)),
		now:      now,
		timeout:  cmp.Or(s.Timeout, defaultTimeout),
		stopping: stopping,
		peers:    newPeers(),
	}
}

func (s *service) isStopping() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// reply is one of the replies of package client.
type reply interface{ Head() *client.Reply }

// serve answers one request.
func (s *service) serve(w http.ResponseWriter, r *http.Request, _ httprouter.Params) {
	id := requestID(r)
	left, forwarded := s.left(r)
	ctx, cancel := context.WithTimeout(r.Context(), left)
	defer cancel()
	do, err := decode(r.URL.RawQuery, s.now())
	if err != nil {
		s.answer(w, id, nil, err)
		return
	}
	for !s.isStopping() {
		address, self, known := s.metadata.Leader()
		switch {
		case self:
			reply, err := do(ctx, s.metadata)
			if !errors.Is(err, cluster.ErrNotLeader) {
				s.answer(w, id, reply, err)
				return
			}
		case forwarded:
			s.misdirected(w, id)
			return
		case known:
			err := s.forward(ctx, w, address, r.URL.RawQuery, id)
			if err == nil {
				return
			}
			if !errors.Is(err, cluster.ErrNotLeader) {
				s.answer(w, id, nil, err)
				return
			}
		}
		if !pause(ctx) {
			s.answer(w, id, nil, refuse(client.Stopped, "no leader was found before the request's deadline; nothing was done"))
			return
		}
	}
	if forwarded { // the one that it came to finds the next leader
		s.misdirected(w, id)
		return
	}
	s.answer(w, id, nil, refuse(client.Stopped, "this server is stopping; nothing was done"))
}

// pause waits before the leader is looked for again. It returns false if ctx
// has ended.
func pause(ctx context.Context) bool {
	timer := time.NewTimer(pollInterval)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// validRequestID is what is taken over as the id of a request.
var validRequestID = regexp.MustCompile(`^[0-9A-Za-z._:-]{1,128}$`)

// requestID returns the id that a request brings, or a new one.
func requestID(r *http.Request) string {
	if id := r.Header.Get(headerRequestID); validRequestID.MatchString(id) {
		return id
	}
	return uuid.NewString()
}

// answer writes the reply to a request, or tells why it failed.
func (s *service) answer(w http.ResponseWriter, id string, reply reply, err error) {
	if err != nil {
		failure := explain(err)
		if failure.Code == client.Internal {
			s.log.Error("api: request failed", "request", id, "error", err)
		}
		reply = &client.Reply{Code: failure.Code, Detail: failure.Detail}
	}
	s.write(w, reply.Head().Code.HTTPStatus(), id, reply)
}

// write completes a reply and sends it.
func (s *service) write(w http.ResponseWriter, status int, id string, reply reply) {
	head := reply.Head()
	head.Message, head.RequestID = head.Code.Message(), id
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(reply); err != nil {
		panic(err) // strings and numbers only: can't fail
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	w.Header().Set(headerRequestID, id)
	w.WriteHeader(status)
	s.log.Debug("api: answered", "request", id, "code", int(head.Code), "detail", head.Detail)
	if _, err := w.Write(body.Bytes()); err != nil {
		s.log.Debug("api: client has gone", "request", id, "error", err)
	}
}
