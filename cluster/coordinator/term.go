package coordinator

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
	"github.com/localsnap/localsnap/cluster"
	"github.com/localsnap/localsnap/fsm"
)

// lease is how long a gateway that is not connected keeps its attachments.
const lease = 5 * time.Second

// term is one leadership of this server.
type term struct {
	ctx      context.Context // ends with the leadership
	node     *cluster.Node
	log      *slog.Logger
	patience time.Duration // see Config
	replace  time.Duration // see Config.ReplaceAfter
	began    time.Time
	cluster  uuid.UUID
	pausing  volumeLocks

	mu           sync.Mutex
	conns        map[*wire.Conn]struct{}
	chunkservers map[chunk.NodeID]*chunkserver // connected ones
	gateways     map[string]*gateway           // every one heard of in this term
	copysets     []chunk.Copyset               // of the default pool, as last seen; replaced, never changed
	addresses    map[chunk.NodeID]string       // likewise
	draining     map[chunk.NodeID]bool         // likewise
	bells        []chan struct{}               // of the loops

	heard   map[chunk.NodeID]time.Time      // when chunkservers last said something
	gone    map[chunk.NodeID]bool           // those whose process is known to be gone
	lagged  map[chunk.NodeID]time.Time      // when they last did
	sealed  map[chunk.CopysetID]chunk.Epoch // see outlook
	running time.Time                       // when this process last noted that it runs
	awake   time.Time                       // since when it has: silence is counted from here

	// What follows is of the loop that keeps copysets.
	waiting int                           // copysets that have too few members
	lacking int                           // copysets that have not all their copies in sync
	turned  map[chunk.CopysetID]time.Time // when they were to get another primary
	errands sync.WaitGroup
}

// newTerm begins a term. The first of a cluster gives it its identity.
func newTerm(ctx context.Context, cfg Config) (*term, error) {
	value, err := cfg.Node.Apply(ctx, fsm.InitCluster{Time: now(), Settings: fsm.DefaultSettings(uuid.New())})
	if err != nil {
		return nil, fmt.Errorf("identify the cluster: %w", err)
	}
	t := &term{
		ctx:          ctx,
		node:         cfg.Node,
		log:          cfg.Log,
		patience:     cfg.Patience,
		replace:      cfg.ReplaceAfter,
		began:        time.Now(),
		cluster:      value.(fsm.Settings).Cluster,
		conns:        make(map[*wire.Conn]struct{}),
		chunkservers: make(map[chunk.NodeID]*chunkserver),
		gateways:     make(map[string]*gateway),
		heard:        make(map[chunk.NodeID]time.Time),
		gone:         make(map[chunk.NodeID]bool),
		lagged:       make(map[chunk.NodeID]time.Time),
		sealed:       make(map[chunk.CopysetID]chunk.Epoch),
		turned:       make(map[chunk.CopysetID]time.Time),
	}
	// Whoever asks all copysets must not take "not known yet" for "none".
	if err := t.refreshCopysets(); err != nil {
		return nil, fmt.Errorf("read the copysets: %w", err)
	}
	return t, nil
}

// now is the time that goes into commands, in microseconds.
func now() uint64 { return uint64(time.Now().UnixMicro()) }

// run works until the term ends and nothing of it runs any more.
func (t *term) run() {
	var running sync.WaitGroup
	for _, work := range []func(){
		t.loop(halt/4, t.stayAwake),
		t.loop(500*time.Millisecond, t.keepCopysets),
		t.loop(500*time.Millisecond, t.probeLost),
		t.loop(time.Second, t.endAttachments),
		t.loop(time.Second, t.expireTrash),
		t.loop(time.Second, t.sweep),
		t.jobs("flatten", (*fsm.State).Flattening, t.flatten).run,
		t.jobs("purge", (*fsm.State).Purges, t.purge).run,
	} {
		running.Go(work)
	}
	running.Wait()
	t.errands.Wait()
}

// loop returns a function that calls work again and again until the term
// ends: when something has happened, and from time to time.
func (t *term) loop(every time.Duration, work func(context.Context) error) func() {
	bell := make(chan struct{}, 1)
	t.mu.Lock()
	t.bells = append(t.bells, bell)
	t.mu.Unlock()
	return func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for t.ctx.Err() == nil {
			if err := work(t.ctx); err != nil && t.ctx.Err() == nil {
				t.log.Debug("will be tried again", "err", err)
			}
			select {
			case <-t.ctx.Done():
			case <-bell:
			case <-tick.C:
			}
		}
	}
}

// ring tells every loop that something has happened.
func (t *term) ring() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, bell := range t.bells {
		select {
		case bell <- struct{}{}:
		default:
		}
	}
}

// accept begins a session.
func (t *term) accept(conn *wire.Conn, hello wire.Hello) (wire.Handler, error) {
	if hello.Cluster != "" && hello.Cluster != t.cluster.String() {
		return nil, fmt.Errorf("%w: caller is of cluster %s, this is %s", wire.ErrForeign, hello.Cluster, t.cluster)
	}
	var handler wire.Handler
	switch hello.Role {
	case wire.RoleChunkserver:
		handler = &chunkserver{term: t, conn: conn, told: make(map[chunk.CopysetID]chunk.Epoch)}
	case wire.RoleGateway:
		g, err := t.meetGateway(conn, hello.Session)
		if err != nil {
			return nil, err
		}
		handler = gatewayConn{g, conn}
	default:
		return nil, fmt.Errorf("%w: role %q has no session with the metadata leader", chunk.ErrInvalid, hello.Role)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return nil, wire.NotLeader("")
	}
	t.conns[conn] = struct{}{}
	return handler, nil
}

// closeSessions ends every session, after the term.
func (t *term) closeSessions() {
	t.mu.Lock()
	conns := slices.Collect(maps.Keys(t.conns))
	t.mu.Unlock()
	for _, conn := range conns {
		conn.Close()
	}
}

// forget removes a connection that has ended.
func (t *term) forget(conn *wire.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, conn)
}

// within returns a context that ends with the term or with ctx.
func (t *term) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(t.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// wait lets some time pass; false if ctx has ended.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
