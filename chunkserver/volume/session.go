package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/localsnap/localsnap/chunkserver/wire"
)

// errSessionClosed is why volumes end and calls fail after Close.
var errSessionClosed = errors.New("the session is closed")

// releaseTimeout bounds the attempt to give back what nobody waits for.
const releaseTimeout = 5 * time.Second

// Config says who a session is and where the cluster is found.
type Config struct {
	Servers []string    // control addresses of metadata servers, any of them
	Gateway string      // names the gateway for good
	Run     string      // names this run of its process; a UUID
	Dial    wire.Dialer // nil: wire.DialTCP
	Log     *slog.Logger
}

// Session is one gateway process' standing with a cluster: its connection to
// the metadata leader, its connections to chunkservers, and the map of what
// lies where.
type Session struct {
	servers []string
	dial    wire.Dialer
	hello   wire.Hello
	log     *slog.Logger

	atlas    atlas
	targets  targets
	patience backoff       // how long to wait for a chunkserver's answer before the request is repeated, perhaps elsewhere
	full     time.Duration // for how long a full chunkserver is asked again: others may go on without it

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	run    sync.WaitGroup // goroutines that outlast the call that began them
	calls  tally          // of the methods below

	mu      sync.Mutex
	leader  *wire.Conn    // on which everything attached has been resumed; nil while there is none
	changed chan struct{} // closed, and made again, when leader changes
	volumes map[*Volume]struct{}
}

// fullPatience is long enough for the metadata leader to have a copyset go on
// without a member that is full.
const fullPatience = 5 * time.Second

// Connect begins a session. It returns at once and looks for the leader in
// the background: what needs one waits for it. It fails only if cfg does not
// make sense.
func Connect(cfg Config) (*Session, error) {
	if len(cfg.Servers) == 0 || cfg.Gateway == "" || cfg.Run == "" || cfg.Log == nil {
		return nil, errors.New("a session needs servers, the names of the gateway and of its run, and a log")
	}
	s := &Session{
		servers: cfg.Servers,
		dial:    cfg.Dial,
		hello:   wire.Hello{Role: wire.RoleGateway, Session: cfg.Gateway + "/" + cfg.Run},
		log:     cfg.Log,
		changed: make(chan struct{}),
		volumes: make(map[*Volume]struct{}),
	}
	if s.dial == nil {
		s.dial = wire.DialTCP
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.patience, s.full = backoff{least: 3 * time.Second, most: 30 * time.Second}, fullPatience
	s.atlas.readings.pause = mapPause
	s.atlas.ask = func(ctx context.Context) (m wire.Map, err error) {
		err = s.ask(ctx, wire.KindMap, struct{}{}, &m)
		return m, err
	}
	s.targets = targets{dial: s.dial, hello: s.hello, log: s.log, ctx: s.ctx, run: &s.run, byAddress: make(map[string]*target)}
	s.run.Go(s.lead)
	return s, nil
}

// List returns the paths of all volumes, and their snapshots as PATH@NAME.
func (s *Session) List(ctx context.Context) (paths []string, err error) {
	if !s.calls.begin() {
		return nil, errSessionClosed
	}
	defer s.calls.end()
	if err := s.ask(ctx, wire.KindList, struct{}{}, &paths); err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	return paths, nil
}

// Stat describes a volume, or a snapshot of it if one is named, without
// attaching it.
func (s *Session) Stat(ctx context.Context, path, snapshot string) (vol wire.Volume, err error) {
	if !s.calls.begin() {
		return vol, errSessionClosed
	}
	defer s.calls.end()
	if err := s.ask(ctx, wire.KindStat, wire.Open{Path: path, Snapshot: snapshot, ReadOnly: true}, &vol); err != nil {
		return vol, fmt.Errorf("stat %s: %w", name(path, snapshot), err)
	}
	return vol, nil
}

// Attach opens a volume, or a snapshot of it if one is named. Without
// readOnly it becomes the volume's only writer. What the leader refuses is
// wire.ErrNotExist, wire.ErrOccupied or wire.ErrReadOnly; for a leader that
// can't be reached it waits until ctx ends.
func (s *Session) Attach(ctx context.Context, path, snapshot string, readOnly bool) (*Volume, error) {
	if !s.calls.begin() {
		return nil, errSessionClosed
	}
	defer s.calls.end()
	v, err := s.open(ctx, wire.Open{Path: path, Snapshot: snapshot, ReadOnly: readOnly || snapshot != ""})
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", name(path, snapshot), err)
	}
	// A map from before the attachment may name a primary that has missed
	// what the previous writer did.
	if _, err := s.atlas.read(ctx); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("attach %s: %w", name(path, snapshot), err), v.Close(ctx))
	}
	return v, nil
}

func name(path, snapshot string) string {
	if snapshot == "" {
		return path
	}
	return path + "@" + snapshot
}

// open asks for an attachment until it is given or refused.
func (s *Session) open(ctx context.Context, req wire.Open) (v *Volume, err error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	err = s.withLeader(ctx, func(conn *wire.Conn) (err error) {
		v, err = s.openOn(ctx, conn, body, req.ReadOnly)
		return err
	})
	return v, err
}

// openOn asks for an attachment once. The volume is made as the reply is
// read: what the leader says next on the connection may be about it.
func (s *Session) openOn(ctx context.Context, conn *wire.Conn, body []byte, readOnly bool) (*Volume, error) {
	var (
		mu        sync.Mutex
		v         *Volume
		failure   error
		abandoned bool
		replied   = make(chan struct{})
	)
	conn.Start(wire.KindOpen, body, nil, func(reply []byte, err error) {
		mu.Lock()
		defer mu.Unlock()
		var opened wire.Opened
		if err == nil {
			err = json.Unmarshal(reply, &opened)
		}
		switch {
		case err != nil:
			failure = err
		case abandoned:
			giveBack(conn, opened.Attachment)
		default:
			v = s.adopt(opened, readOnly)
		}
		close(replied)
	})
	select {
	case <-replied:
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	if v == nil && failure == nil {
		abandoned = true
		return nil, ctx.Err()
	}
	return v, failure
}

// giveBack releases an attachment that nobody waits for any more.
func giveBack(conn *wire.Conn, id uint64) {
	if body, err := json.Marshal(wire.Release{Attachment: id}); err == nil && id != 0 {
		conn.Start(wire.KindRelease, body, nil, func([]byte, error) {})
	}
}

// adopt makes the volume of an attachment.
func (s *Session) adopt(opened wire.Opened, readOnly bool) *Volume {
	v := newVolume(s, opened, readOnly)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes[v] = struct{}{}
	return v
}

// forget drops a volume that has been closed.
func (s *Session) forget(v *Volume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.volumes, v)
}

// tracked are the open volumes whose attachment the leader keeps track of.
func (s *Session) tracked() []*Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	var tracked []*Volume
	for v := range s.volumes {
		if v.attachment.id != 0 && v.attachment.err() == nil {
			tracked = append(tracked, v)
		}
	}
	return tracked
}

// Close ends the session and waits until nothing of it runs. Volumes that
// are still open are detached without being released.
func (s *Session) Close() {
	s.calls.close()
	s.cancel()
	s.mu.Lock()
	volumes := slices.Collect(maps.Keys(s.volumes))
	s.mu.Unlock()
	for _, v := range volumes {
		v.attachment.end(errSessionClosed)
		v.requests.close()
		v.requests.wait(context.Background())
	}
	s.calls.wait(context.Background())
	s.run.Wait()
}
