package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

const (
	// renewPeriod is the time between two signs of life to the leader.
	renewPeriod = time.Second
	// leaderTimeout bounds how long a server may take to welcome the
	// session, or the leader to answer a sign of life or a resume. A server
	// that takes longer is given up for another.
	leaderTimeout = 3 * time.Second
)

// lead keeps a connection to the leader until the session ends. Each new one
// first resumes everything that is attached.
func (s *Session) lead() {
	pause := backoff{least: 20 * time.Millisecond, most: time.Second}
	for s.ctx.Err() == nil {
		conn, err := s.findLeader()
		if err == nil {
			if err = s.resume(conn); err == nil {
				pause = backoff{least: pause.least, most: pause.most}
				s.setLeader(conn)
				err = s.renew(conn)
				s.setLeader(nil)
			}
			conn.Close()
		}
		if s.ctx.Err() == nil {
			s.log.Info("no connection to the metadata leader", "err", err)
		}
		sleep(s.ctx, pause.next())
	}
}

// findLeader asks each server in turn, and whom they name.
func (s *Session) findLeader() (*wire.Conn, error) {
	var failures []error
	tried := make(map[string]bool)
	for queue := slices.Clone(s.servers); len(queue) > 0; {
		address := queue[0]
		queue = queue[1:]
		if tried[address] {
			continue
		}
		tried[address] = true
		ctx, cancel := context.WithTimeout(s.ctx, leaderTimeout)
		conn, err := wire.Dial(ctx, s.dial, address, s.hello, leaderCalls{s})
		cancel()
		if err == nil {
			return conn, nil
		}
		failures = append(failures, err)
		if leader := wire.LeaderOf(err); leader != "" {
			queue = slices.Insert(queue, 0, leader)
		}
	}
	return nil, errors.Join(failures...)
}

// resume continues every attachment on a new connection. One that the leader
// no longer knows ends, and so does one that only the leader knows.
func (s *Session) resume(conn *wire.Conn) error {
	ctx, cancel := context.WithTimeout(s.ctx, leaderTimeout)
	defer cancel()
	volumes := s.tracked()
	held := wire.Held{Attachments: []uint64{}}
	for _, v := range volumes {
		held.Attachments = append(held.Attachments, v.attachment.id)
	}
	if err := wire.Ask(ctx, conn, wire.KindHeld, held, nil); err != nil {
		return fmt.Errorf("say what is attached: %w", err)
	}
	answers := make(chan error, len(volumes))
	for _, v := range volumes {
		body, err := json.Marshal(wire.Resume{Attachment: v.attachment.id})
		if err != nil {
			return err
		}
		conn.Start(wire.KindResume, body, nil, func(reply []byte, err error) {
			answers <- v.resumed(reply, err)
		})
	}
	for range volumes {
		select {
		case err := <-answers:
			if err != nil {
				return fmt.Errorf("resume an attachment: %w", err)
			}
		case <-ctx.Done():
			return fmt.Errorf("resume an attachment: %w", ctx.Err())
		}
	}
	return nil
}

// resumed takes in the answer to a resume, before anything else that the
// leader sends behind it.
func (v *Volume) resumed(reply []byte, err error) error {
	if errors.Is(err, chunk.ErrFenced) || errors.Is(err, wire.ErrNotExist) || errors.Is(err, wire.ErrOccupied) {
		v.attachment.end(err)
		return nil
	}
	if err != nil {
		return err
	}
	var next wire.Context
	if err := json.Unmarshal(reply, &next); err != nil {
		return err
	}
	v.attachment.resume(next)
	return nil
}

// renew gives signs of life until the connection or the session ends.
func (s *Session) renew(conn *wire.Conn) error {
	tick := time.NewTicker(renewPeriod)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-conn.Done():
			return conn.Err()
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
		ctx, cancel := context.WithTimeout(s.ctx, leaderTimeout)
		err := wire.Ask(ctx, conn, wire.KindRenew, struct{}{}, nil)
		cancel()
		if err != nil {
			return fmt.Errorf("renew: %w", err)
		}
	}
}

func (s *Session) setLeader(conn *wire.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leader = conn
	close(s.changed)
	s.changed = make(chan struct{})
}

// withLeader hands a connection to the leader to do, again while what do
// returns says that the leader was lost, has changed, or can't at present.
func (s *Session) withLeader(ctx context.Context, do func(*wire.Conn) error) error {
	pause := backoff{least: 20 * time.Millisecond, most: time.Second}
	for {
		conn, err := s.awaitLeader(ctx)
		if err != nil {
			return err
		}
		err = do(conn)
		switch {
		case errors.Is(err, wire.ErrNotLeader):
			conn.Close()
		case !errors.Is(err, wire.ErrUnavailable):
			return err
		}
		if ctx.Err() != nil || sleep(ctx, pause.next()) != nil {
			return err
		}
	}
}

// awaitLeader returns the connection to the leader when there is one.
func (s *Session) awaitLeader(ctx context.Context) (*wire.Conn, error) {
	for {
		s.mu.Lock()
		conn, changed := s.leader, s.changed
		s.mu.Unlock()
		if conn != nil && conn.Err() == nil {
			return conn, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: no metadata leader: %w", wire.ErrUnavailable, ctx.Err())
		case <-s.ctx.Done():
			return nil, errSessionClosed
		}
	}
}

// ask makes a request of the leader, whoever it is, that is harmless to repeat.
func (s *Session) ask(ctx context.Context, kind wire.Kind, req, resp any) error {
	return s.withLeader(ctx, func(conn *wire.Conn) error {
		return wire.Ask(ctx, conn, kind, req, resp)
	})
}

// leaderCalls handles what the leader asks. It changes attachments as the
// requests are read, so that they and the answers to resumes take effect in
// the order in which the leader sent them.
type leaderCalls struct{ s *Session }

func (l leaderCalls) Closed(*wire.Conn, error) {}

func (l leaderCalls) Handle(r *wire.Request) {
	switch r.Kind {
	case wire.KindPause:
		var req wire.Pause
		if v := l.find(r, &req, &req.Attachment); v != nil {
			hold := v.attachment.pause(r.Conn())
			r.Go(func(ctx context.Context) { answer(r, v.attachment.complete(ctx, hold)) })
		}
	case wire.KindProceed:
		var req wire.Proceed
		if v := l.find(r, &req, &req.Attachment); v != nil {
			answer(r, v.attachment.proceed(r.Conn(), req.Context))
		}
	case wire.KindRevoke:
		var req wire.Revoke
		if v := l.find(r, &req, &req.Attachment); v != nil {
			v.attachment.end(errRevoked)
			r.Go(func(ctx context.Context) { answer(r, v.attachment.emptied(ctx)) })
		}
	case wire.KindMapped:
		var next wire.Map
		err := json.Unmarshal(r.Payload, &next)
		if err == nil {
			err = l.s.learn(next)
		}
		if err != nil {
			l.s.log.Error("the metadata leader sent a bad map", "err", err)
		}
	default:
		wire.Deaf{}.Handle(r)
	}
}

// errRevoked is why a volume ends when the leader says so.
var errRevoked = errors.New("revoked by the metadata leader")

// find decodes a request and finds the volume that it is about. If there is
// none it refuses the request and returns nil.
func (l leaderCalls) find(r *wire.Request, req any, attachment *uint64) *Volume {
	if err := json.Unmarshal(r.Payload, req); err != nil {
		r.Refuse(fmt.Errorf("%w: request of kind %d: %w", chunk.ErrInvalid, r.Kind, err))
		return nil
	}
	for _, v := range l.s.tracked() {
		if v.attachment.id == *attachment {
			return v
		}
	}
	r.Refuse(fmt.Errorf("%w: attachment %d is not of this session", wire.ErrNotExist, *attachment))
	return nil
}

func answer(r *wire.Request, err error) {
	if err != nil {
		r.Refuse(err)
		return
	}
	r.Reply(nil, nil)
}
