package coordinator

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
	"github.com/localsnap/localsnap/cluster"
	"github.com/localsnap/localsnap/fsm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a metadata cluster of one server, and a pool of chunkservers that
// hold no data but tell which operations reach them. Coordinators come and go.
type rig struct {
	t    *testing.T
	node *cluster.Node
	pool *fakePool
}

func newRig(t *testing.T) *rig {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	node, err := cluster.Open(cluster.Config{
		ID: "s1", Dir: t.TempDir(), Listener: listener, Log: slog.New(slog.DiscardHandler), Timeout: 100 * time.Millisecond,
		Servers: []cluster.Server{{ID: "s1", Raft: listener.Addr().String()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	})
	return &rig{t, node, &fakePool{chunks: make(map[chunk.VolumeID]map[uint32]bool)}}
}

// lead has a new coordinator lead, with chunkservers of its own, until the
// function that it returns is called, or the test ends.
func (r *rig) lead() (c *Coordinator, depose func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	c = New(Config{Node: r.node, Log: slog.New(slog.DiscardHandler), Patience: time.Hour})
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx, control); err != nil {
			r.t.Error(err)
		}
	})
	for i := range copies {
		running.Go(func() { r.pool.serve(ctx, control.Addr().String(), i) })
	}
	depose = func() { cancel(); running.Wait() }
	r.t.Cleanup(depose)
	r.await("a leader and a pool", func() (ready bool) {
		_, err := c.current()
		r.node.ReadLocal(func(s *fsm.State) error {
			ready = err == nil && len(s.Pools()) > 0
			return nil
		})
		return ready
	})
	return c, depose
}

// do carries out commands that must succeed, and returns the last one's value.
func (r *rig) do(c *Coordinator, commands ...fsm.Command) (value any) {
	r.t.Helper()
	for _, command := range commands {
		var err error
		if value, err = c.Do(r.t.Context(), command); err != nil {
			r.t.Fatalf("%#v: %v", command, err)
		}
	}
	return value
}

// await waits until something is so.
func (r *rig) await(what string, so func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited too long for %s", what)
		}
	}
}

// idle reports whether the state asks for no work.
func (r *rig) idle() (idle bool) {
	r.node.ReadLocal(func(s *fsm.State) error {
		idle = len(s.Flattening())+len(s.Purges()) == 0
		return nil
	})
	return idle
}

// makeVolume makes a volume that has some chunks.
func (r *rig) makeVolume(c *Coordinator, path string, chunks uint32) chunk.VolumeID {
	r.t.Helper()
	id := r.do(c, fsm.CreateVolume{User: fsm.Root, Path: path, Size: 1 << 30}).(fsm.Volume).ID
	r.pool.fill(id, chunks)
	return id
}

// cloneAndFlatten begins to flatten a new clone of a volume.
func (r *rig) cloneAndFlatten(c *Coordinator, path, destination string) chunk.VolumeID {
	r.t.Helper()
	task := r.do(c, fsm.Clone{User: fsm.Root, Path: path, Destination: destination, UUID: uuid.New(), Hidden: uuid.New()})
	return task.(fsm.Task).Volume
}

// fakePool is three chunkservers that agree without talking.
type fakePool struct {
	mu     sync.Mutex
	chunks map[chunk.VolumeID]map[uint32]bool // that have layers
	ops    []chunk.Op                         // carried out, in order

	// submitted, if it is set, is told of each operation before that is
	// carried out. With an error the operation is refused instead.
	submitted func(context.Context, chunk.Op) error
}

func (p *fakePool) fill(id chunk.VolumeID, chunks uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.chunks[id] = make(map[uint32]bool)
	for i := range chunks {
		p.chunks[id][i] = true
	}
}

// onSubmit replaces submitted.
func (p *fakePool) onSubmit(fn func(context.Context, chunk.Op) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.submitted = fn
}

// list returns the chunks of volumes.
func (p *fakePool) list(_ context.Context, req wire.Chunks) ([]uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	indices := []uint32{}
	for _, id := range req.Volumes {
		indices = slices.AppendSeq(indices, maps.Keys(p.chunks[id]))
	}
	return indices, nil
}

// count is the number of operations on a volume that were carried out.
func (p *fakePool) count(id chunk.VolumeID) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, op := range p.ops {
		if op.Ref.Volume == id {
			n++
		}
	}
	return n
}

func (p *fakePool) submit(ctx context.Context, op chunk.Op) error {
	p.mu.Lock()
	submitted := p.submitted
	p.mu.Unlock()
	if submitted != nil {
		if err := submitted(ctx, op); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ops = append(p.ops, op)
	switch {
	case op.Kind == chunk.OpPurge && len(op.Views) == 0:
		delete(p.chunks[op.Ref.Volume], op.Ref.Index)
	case op.Kind == chunk.OpFlatten:
		if p.chunks[op.Ref.Volume] == nil {
			p.chunks[op.Ref.Volume] = make(map[uint32]bool)
		}
		p.chunks[op.Ref.Volume][op.Ref.Index] = true
	}
	return nil
}

// serve is a chunkserver's session with a leader.
func (p *fakePool) serve(ctx context.Context, address string, i int) {
	store := uuid.NewSHA1(uuid.Nil, []byte{byte(i)}).String()
	for ctx.Err() == nil {
		conn, err := wire.Dial(ctx, wire.DialTCP, address, wire.Hello{Role: wire.RoleChunkserver, Session: store}, fakeChunkserver{p})
		if err == nil {
			req := wire.Register{Store: store, Incarnation: 1, Address: "fake"}
			if wire.Ask(ctx, conn, wire.KindRegister, req, nil) == nil {
				select {
				case <-ctx.Done():
				case <-conn.Done():
				}
			}
			conn.Close()
			<-conn.Done()
		}
		wait(ctx, time.Millisecond)
	}
}

type fakeChunkserver struct{ *fakePool }

func (fakeChunkserver) Closed(*wire.Conn, error) {}

func (f fakeChunkserver) Handle(r *wire.Request) {
	switch r.Kind {
	case wire.KindConfigure:
		wire.Answer(r, func(context.Context, wire.Configure) (wire.Configured, error) { return wire.Configured{}, nil })
	case wire.KindChunks:
		wire.Answer(r, f.list)
	case wire.KindSubmit:
		r.Go(func(ctx context.Context) {
			request, err := wire.ParseSubmit(r.Payload)
			if err = errors.Join(err, f.submit(ctx, request.Op)); err != nil {
				r.Refuse(err)
				return
			}
			r.Reply(nil, nil)
		})
	default:
		wire.Deaf{}.Handle(r)
	}
}
