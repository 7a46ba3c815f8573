package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
	"github.com/localsnap/localsnap/cluster"
	"github.com/localsnap/localsnap/fsm"
)

// openTimeout bounds how long Open waits for the attachment of a gateway that
// is gone to end.
const openTimeout = 15 * time.Second

// maxListed bounds the exports that a gateway is told of.
const maxListed = 10_000

// gateway is what a term knows of a gateway: its latest process run, and the
// connection of that.
type gateway struct {
	term *term
	name string
	run  uuid.UUID

	// What follows is guarded by term.mu.
	conn    *wire.Conn // nil while not connected
	heard   time.Time
	orphans map[uint64]bool // attachments of this run that it does not know of
}

// meetGateway takes in a connection of a gateway. Its session is its name and
// its run. A new run proves that the one before is gone.
func (t *term) meetGateway(conn *wire.Conn, session string) (*gateway, error) {
	slash := strings.LastIndexByte(session, '/')
	if slash <= 0 {
		return nil, fmt.Errorf("%w: session %q of a gateway is not NAME/RUN", chunk.ErrInvalid, session)
	}
	run, err := uuid.Parse(session[slash+1:])
	if err != nil {
		return nil, fmt.Errorf("%w: session %q of a gateway: %w", chunk.ErrInvalid, session, err)
	}
	defer t.ring()
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.gateways[session[:slash]]
	if g == nil || g.run != run {
		g = &gateway{term: t, name: session[:slash], run: run}
		t.gateways[g.name] = g
	}
	g.conn, g.heard = conn, time.Now()
	t.tellMap(conn)
	return g, nil
}

// doubt is how long a gateway may say nothing, on a connection on which it
// gives a sign of life each second, before that connection is taken for dead.
const doubt = 2500 * time.Millisecond

// holder returns the connection of the gateway that holds an attachment, nil
// if it has none that lives, and whether the gateway is gone for good.
func (t *term) holder(a fsm.Attachment) (conn *wire.Conn, gone bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.gateways[a.Gateway]
	switch {
	case g == nil:
		return nil, t.silent(t.began) > lease
	case g.run != a.Session, g.orphans[a.ID]:
		return nil, true
	case t.silent(g.heard) > lease: // it may stand still, and keep its connection
		return nil, true
	}
	if t.silent(g.heard) > doubt {
		return nil, false
	}
	return g.conn, false
}

// gatewayConn is a connection of a gateway.
type gatewayConn struct {
	*gateway
	conn *wire.Conn
}

// Handle answers what the gateway asks.
func (g gatewayConn) Handle(r *wire.Request) {
	g.hear()
	switch r.Kind {
	case wire.KindRenew:
		wire.Answer(r, func(context.Context, struct{}) (struct{}, error) { return struct{}{}, nil })
	case wire.KindHeld:
		wire.Answer(r, g.held)
	case wire.KindOpen:
		wire.Answer(r, g.open)
	case wire.KindRelease:
		wire.Answer(r, g.release)
	case wire.KindResume:
		wire.Answer(r, g.resume)
	case wire.KindStat:
		wire.Answer(r, g.stat)
	case wire.KindList:
		wire.Answer(r, g.list)
	case wire.KindMap:
		wire.Answer(r, g.copysetMap)
	default:
		wire.Deaf{}.Handle(r)
	}
}

// hear notes that the gateway has said something.
func (g gatewayConn) hear() {
	t := g.term
	t.mu.Lock()
	defer t.mu.Unlock()
	g.gateway.heard = time.Now()
}

// Closed notes when the gateway was last there.
func (g gatewayConn) Closed(conn *wire.Conn, _ error) {
	t := g.term
	t.forget(conn)
	t.mu.Lock()
	defer t.mu.Unlock()
	if g.gateway.conn == conn {
		g.gateway.conn, g.heard = nil, time.Now()
	}
}

// held gives up the attachments of this run that it does not name: it opens
// nothing before it has the answer, so they are of a connection that is lost.
func (g gatewayConn) held(ctx context.Context, req wire.Held) (struct{}, error) {
	t := g.term
	ctx, done := t.within(ctx)
	defer done()
	err := t.node.Read(ctx, func(state *fsm.State) error {
		orphans := make(map[uint64]bool)
		for _, a := range state.Attachments() {
			if a.Session == g.run && !slices.Contains(req.Attachments, a.ID) {
				orphans[a.ID] = true
			}
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		g.orphans = orphans
		return nil
	})
	t.ring()
	return struct{}{}, refusal(err)
}

// open attaches a volume or snapshot. What this gateway holds of it already is
// an attachment whose answer it never got, or that it has given up.
func (g gatewayConn) open(ctx context.Context, req wire.Open) (wire.Opened, error) {
	t := g.term
	ctx, done := t.within(ctx)
	defer done()
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	attach := fsm.Attach{Path: req.Path, Snapshot: req.Snapshot, ReadOnly: req.ReadOnly, Gateway: g.name, Session: g.run}
	for {
		value, err := t.node.Apply(ctx, attach)
		if err == nil {
			held := value.(fsm.Context)
			return wire.Opened{Attachment: held.Attachment.ID, Volume: describe(held.Volume, held.Attachment.ReadOnly), Context: stamp(held)}, nil
		}
		if !refused(err, fsm.Occupied) {
			return wire.Opened{}, refusal(err)
		}
		freed, waiting, endErr := t.freeVolume(ctx, req.Path, g.run)
		if endErr != nil {
			return wire.Opened{}, refusal(endErr)
		}
		if !freed && (!waiting || !wait(ctx, 100*time.Millisecond)) {
			return wire.Opened{}, refusal(err)
		}
	}
}

// freeVolume ends the attachments of a volume that are the asking run's own,
// or a gone gateway's; freed, too, if there is none any more. waiting: there is
// one whose gateway may be gone.
func (t *term) freeVolume(ctx context.Context, path string, run uuid.UUID) (freed, waiting bool, err error) {
	var held []fsm.Attachment
	err = t.node.ReadLocal(func(state *fsm.State) error {
		volume, err := state.Volume(fsm.Root, path)
		if err != nil {
			return err
		}
		for _, a := range state.Attachments() {
			if a.Volume == volume.ID && a.Snapshot == uuid.Nil {
				held = append(held, a)
			}
		}
		return nil
	})
	if err != nil {
		return false, false, err
	}
	freed = len(held) == 0 // the loop that ends attachments was faster
	for _, a := range held {
		conn, gone := t.holder(a)
		switch {
		case gone || a.Session == run:
			if err := t.end(ctx, a); err != nil {
				return freed, waiting, err
			}
			freed = true
		case conn == nil:
			waiting = true
		}
	}
	return freed, waiting, nil
}

// own refuses an attachment that is not this gateway's.
func (g gatewayConn) own(attachment uint64) error {
	var held fsm.Context
	err := g.term.node.ReadLocal(func(state *fsm.State) (err error) {
		held, err = state.Context(attachment)
		return err
	})
	if err != nil {
		return refusal(err)
	}
	if held.Attachment.Session != g.run {
		return fmt.Errorf("%w: attachment %d belongs to another session", wire.ErrNotExist, attachment)
	}
	return nil
}

func (g gatewayConn) release(ctx context.Context, req wire.Release) (struct{}, error) {
	if err := g.own(req.Attachment); err != nil {
		return struct{}{}, err
	}
	ctx, done := g.term.within(ctx)
	defer done()
	_, err := g.term.node.Apply(ctx, fsm.Detach{Attachment: req.Attachment})
	g.term.ring()
	return struct{}{}, refusal(err)
}

func (g gatewayConn) resume(ctx context.Context, req wire.Resume) (wire.Context, error) {
	if err := g.own(req.Attachment); err != nil {
		return wire.Context{}, err
	}
	ctx, done := g.term.within(ctx)
	defer done()
	value, err := g.term.node.Apply(ctx, fsm.Resume{Attachment: req.Attachment})
	if err != nil {
		return wire.Context{}, refusal(err)
	}
	return stamp(value.(fsm.Context)), nil
}

func (g gatewayConn) stat(ctx context.Context, req wire.Open) (found wire.Volume, err error) {
	err = g.term.node.Read(ctx, func(state *fsm.State) error {
		volume, err := state.Volume(fsm.Root, req.Path)
		if err != nil {
			return err
		}
		if req.Snapshot != "" {
			snapshot, err := state.Snapshot(fsm.Root, req.Path, req.Snapshot)
			if err != nil {
				return err
			}
			volume.Size = snapshot.Size
		}
		found = describe(volume, req.Snapshot != "")
		return nil
	})
	return found, refusal(err)
}

// list names every volume, and every snapshot as PATH@NAME.
func (g gatewayConn) list(ctx context.Context, _ struct{}) (names []string, err error) {
	var walk func(state *fsm.State, dir string) error
	walk = func(state *fsm.State, dir string) error {
		files, _, err := state.List(fsm.Root, dir, fsm.Page{Limit: maxListed})
		if err != nil {
			return err
		}
		for _, file := range files {
			if len(names) >= maxListed {
				return nil
			}
			if directory := file.Directory; directory != nil && directory.Path != fsm.RecycleBin {
				if err := walk(state, directory.Path); err != nil {
					return err
				}
			}
			if file.Volume == nil {
				continue
			}
			names = append(names, file.Volume.Path)
			snapshots, _, err := state.Snapshots(fsm.SnapshotFilter{Path: file.Volume.Path}, fsm.Page{Limit: maxListed - len(names)})
			if err != nil {
				return err
			}
			for _, snapshot := range snapshots {
				if !snapshot.Hidden && snapshot.Status == fsm.SnapshotDone {
					names = append(names, file.Volume.Path+"@"+snapshot.Name)
				}
			}
		}
		return nil
	}
	err = g.term.node.Read(ctx, func(state *fsm.State) error { return walk(state, "/") })
	return names, refusal(err)
}

func (g gatewayConn) copysetMap(ctx context.Context, _ struct{}) (m wire.Map, err error) {
	err = g.term.node.Read(ctx, func(state *fsm.State) error {
		m.Cluster = g.term.cluster.String()
		m.Copysets = state.Copysets(fsm.DefaultPool)
		m.Peers = make(map[chunk.NodeID]string)
		for _, node := range state.Nodes() {
			m.Peers[node.ID] = node.Address
		}
		return nil
	})
	if err == nil && len(m.Copysets) == 0 {
		err = fmt.Errorf("%w: the cluster waits for %d chunkservers", wire.ErrUnavailable, copies)
	}
	return m, refusal(err)
}

// describe is a volume as gateways see it.
func describe(v fsm.Volume, readOnly bool) wire.Volume {
	return wire.Volume{ID: v.ID, Root: v.Root, Size: v.Size, Layout: v.Layout, ReadOnly: v.ReadOnly || readOnly}
}

// stamp is what an attachment's requests carry.
func stamp(c fsm.Context) wire.Context {
	return wire.Context{Token: c.Token, View: []byte(c.View.Key())}
}

// refused reports whether err is a refusal of that kind.
func refused(err error, kind fsm.Kind) bool {
	var refusal *fsm.Error
	return errors.As(err, &refusal) && refusal.Kind == kind
}

// refusal is an error of the metadata as it goes to chunkservers and gateways.
func refusal(err error) error {
	var refused *fsm.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		switch refused.Kind {
		case fsm.NotExist, fsm.InvalidArgument, fsm.InvalidSnapshot:
			return fmt.Errorf("%w: %w", wire.ErrNotExist, err)
		case fsm.Occupied:
			return fmt.Errorf("%w: %w", wire.ErrOccupied, err)
		case fsm.Unsupported:
			return fmt.Errorf("%w: %w", wire.ErrReadOnly, err)
		}
		return fmt.Errorf("%w: %w", chunk.ErrInvalid, err)
	case errors.Is(err, cluster.ErrNotLeader), errors.Is(err, cluster.ErrUnknown):
		return fmt.Errorf("%w: %w", wire.ErrUnavailable, err)
	}
	return err
}
