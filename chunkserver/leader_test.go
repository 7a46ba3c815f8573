package chunkserver

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// leader plays the metadata leader: it numbers the stores in the order in
// which they register, and the test makes its decisions.
type leader struct {
	t       *testing.T
	cluster string
	address string

	mu       sync.Mutex
	nodes    map[string]chunk.NodeID // by store
	sessions map[chunk.NodeID]*session
	beats    map[chunk.NodeID]int
	signs    map[chunk.NodeID]wire.Heartbeat // the last ones
	changed  chan struct{}                   // closed when any of these has changed
}

// session is a registered chunkserver's process.
type session struct {
	conn *wire.Conn
	wire.Register
}

func newLeader(t *testing.T) *leader {
	l := &leader{
		t:        t,
		cluster:  uuid.NewString(),
		nodes:    make(map[string]chunk.NodeID),
		sessions: make(map[chunk.NodeID]*session),
		beats:    make(map[chunk.NodeID]int),
		signs:    make(map[chunk.NodeID]wire.Heartbeat),
		changed:  make(chan struct{}),
	}
	l.address = serve(t, func(*wire.Conn, wire.Hello) (wire.Handler, error) { return l, nil })
	return l
}

// serve welcomes connections until the test ends.
func serve(t *testing.T, accept func(*wire.Conn, wire.Hello) (wire.Handler, error)) (address string) {
	ln := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	s := wire.Server{Accept: accept, Log: slog.New(slog.DiscardHandler)}
	running.Go(func() {
		if err := s.Serve(ctx, ln); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return ln.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func (l *leader) Closed(*wire.Conn, error) {}

func (l *leader) Handle(r *wire.Request) {
	switch r.Kind {
	case wire.KindRegister:
		wire.Answer(r, func(_ context.Context, req wire.Register) (wire.Registered, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			node := l.nodes[req.Store]
			if node == 0 {
				node = chunk.NodeID(len(l.nodes) + 1)
				l.nodes[req.Store] = node
			}
			l.sessions[node] = &session{r.Conn(), req}
			l.stir()
			return wire.Registered{Cluster: l.cluster, Node: node}, nil
		})
	case wire.KindHeartbeat:
		wire.Answer(r, func(_ context.Context, sign wire.Heartbeat) (struct{}, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			for node, s := range l.sessions {
				if s.conn == r.Conn() {
					l.beats[node]++
					l.signs[node] = sign
				}
			}
			l.stir()
			return struct{}{}, nil
		})
	default:
		wire.Deaf{}.Handle(r)
	}
}

func (l *leader) stir() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// await waits until ok, which is called with mu held, is true.
func (l *leader) await(what string, ok func() bool) {
	l.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		met, changed := ok(), l.changed
		l.mu.Unlock()
		if met {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			l.t.Fatalf("%s: not within the time", what)
		}
	}
}

// process waits until node is registered by a process other than those seen
// before, and returns its session.
func (l *leader) process(node chunk.NodeID, not chunk.Incarnation) *session {
	l.t.Helper()
	var s *session
	l.await("registration", func() bool {
		s = l.sessions[node]
		return s != nil && s.Incarnation != not
	})
	return s
}

// config makes a configuration of everybody who is registered, in sync.
func (l *leader) config(id chunk.CopysetID, epoch chunk.Epoch, primary chunk.NodeID) chunk.Copyset {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := chunk.Copyset{ID: id, Epoch: epoch, Primary: primary}
	for node := chunk.NodeID(1); int(node) <= len(l.sessions); node++ {
		c.Members = append(c.Members, chunk.Member{Node: node, Incarnation: l.sessions[node].Incarnation, State: chunk.InSync})
	}
	return c
}

// configure tells everybody.
func (l *leader) configure(copysets ...chunk.Copyset) {
	l.t.Helper()
	req := wire.Configure{Copysets: copysets, Peers: make(map[chunk.NodeID]string)}
	l.mu.Lock()
	for node, s := range l.sessions {
		req.Peers[node] = s.Address
	}
	l.mu.Unlock()
	for node := range req.Peers {
		if err := l.ask(node, wire.KindConfigure, req, nil); err != nil {
			l.t.Fatalf("configure node %d: %v", node, err)
		}
	}
}

func (l *leader) seal(node chunk.NodeID, epochs map[chunk.CopysetID]chunk.Epoch) ([]wire.Sealed, error) {
	var sealed []wire.Sealed
	err := l.ask(node, wire.KindSeal, wire.Seal{Epochs: epochs}, &sealed)
	return sealed, err
}

func (l *leader) ask(node chunk.NodeID, kind wire.Kind, req, resp any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return wire.Ask(ctx, l.session(node).conn, kind, req, resp)
}

func (l *leader) session(node chunk.NodeID) *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sessions[node]
}
