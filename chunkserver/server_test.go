package chunkserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/store"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// small is a store that is quick to make.
func small() store.Options {
	return store.Options{SegmentBytes: 4 << 20, QueueBytes: 1 << 20, ReserveBytes: 1}
}

// host runs the chunkserver of one directory, over and over.
type host struct {
	t       *testing.T
	dir     string
	servers []string
	store   store.Options

	server *Server
	cancel context.CancelFunc
	ended  chan error

	mu    sync.Mutex
	conns []net.Conn // dialed
}

func newHost(t *testing.T, servers ...string) *host {
	h := &host{t: t, dir: t.TempDir(), servers: servers, store: small()}
	h.start()
	t.Cleanup(h.stop)
	return h
}

func (h *host) start() {
	h.t.Helper()
	s, err := New(Config{Dir: h.dir, Servers: h.servers, Listener: listen(h.t), Dial: h.dial, Store: h.store})
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.server, h.cancel, h.ended = s, cancel, make(chan error, 1)
	go func() { h.ended <- s.Run(ctx) }()
}

// stop ends the present run, which must be well.
func (h *host) stop() {
	if h.server == nil {
		return
	}
	h.cancel()
	if err := <-h.ended; err != nil {
		h.t.Errorf("run: %v", err)
	}
	if err := h.server.Close(); err != nil {
		h.t.Errorf("close: %v", err)
	}
	h.server = nil
}

func (h *host) dial(ctx context.Context, address string) (net.Conn, error) {
	nc, err := wire.DialTCP(ctx, address)
	if err == nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.conns = append(h.conns, nc)
	}
	return nc, err
}

// cut breaks every connection that the chunkserver has made.
func (h *host) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, nc := range h.conns {
		nc.Close()
	}
	h.conns = nil
}

// cell is a leader with chunkservers, of which nodes[i] is node i+1.
type cell struct {
	*leader
	hosts []*host
}

func newCell(t *testing.T, n int) *cell {
	c := &cell{leader: newLeader(t)}
	for i := range n {
		c.hosts = append(c.hosts, newHost(t, c.address))
		c.process(chunk.NodeID(i+1), 0)
	}
	return c
}

// restart ends every process, and returns when the next ones are registered.
func (c *cell) restart() {
	c.t.Helper()
	for i, h := range c.hosts {
		node := chunk.NodeID(i + 1)
		old := c.session(node).Incarnation
		h.stop()
		h.start()
		c.process(node, old)
	}
}

// client calls a chunkserver as a gateway does.
type client struct {
	t    *testing.T
	conn *wire.Conn
}

func (c *cell) client(node chunk.NodeID) *client {
	c.t.Helper()
	hello := wire.Hello{Role: wire.RoleGateway, Cluster: c.cluster, Session: fmt.Sprintf("client of %d", node)}
	conn, err := wire.Dial(c.t.Context(), wire.DialTCP, c.session(node).Address, hello, wire.Deaf{})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(conn.Close)
	return &client{c.t, conn}
}

const volume chunk.VolumeID = 7

func head() *chunk.View { return chunk.NewView(volume, chunk.NewLineage(), nil) }

func write(off uint32, fill byte) chunk.Op {
	op := chunk.Op{Kind: chunk.OpWrite, Ref: chunk.Ref{Volume: volume}, Token: chunk.Token{Attachment: 1, Seq: 1}, Off: off, Len: chunk.BlockSize}
	op.Data = bytes.Repeat([]byte{fill}, chunk.BlockSize)
	op.Sums = chunk.Checksums(nil, op.Data)
	return op
}

func (c *client) call(kind wire.Kind, head, data []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return c.conn.Call(ctx, kind, head, data)
}

func (c *client) submit(id chunk.CopysetID, epoch chunk.Epoch, op chunk.Op) error {
	s := wire.Submit{Copyset: id, Epoch: epoch, Op: op}
	_, err := c.call(wire.KindSubmit, s.AppendHead(nil), op.Data)
	return err
}

func (c *client) read(id chunk.CopysetID, epoch chunk.Epoch, off, n uint32) ([]byte, error) {
	r := wire.Read{Copyset: id, Epoch: epoch, Off: off, Len: n, View: []byte(head().Key())}
	return c.call(wire.KindRead, r.Append(nil), nil)
}

// retry repeats do while the copyset isn't ready.
func (c *client) retry(do func() error) {
	c.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := do()
		if err == nil {
			return
		}
		if !errors.Is(err, chunk.ErrNotReady) || time.Now().After(deadline) {
			c.t.Fatal(err)
		}
	}
}

func (c *client) mustWrite(id chunk.CopysetID, epoch chunk.Epoch, off uint32, fill byte) {
	c.t.Helper()
	c.retry(func() error { return c.submit(id, epoch, write(off, fill)) })
}

// mustRead checks the block at off.
func (c *client) mustRead(id chunk.CopysetID, epoch chunk.Epoch, off uint32, fill byte) {
	c.t.Helper()
	var got []byte
	c.retry(func() (err error) {
		got, err = c.read(id, epoch, off, chunk.BlockSize)
		return err
	})
	if !bytes.Equal(got, bytes.Repeat([]byte{fill}, chunk.BlockSize)) {
		c.t.Fatalf("block at %d begins with %x, want all %x", off, got[:4], fill)
	}
}

// Two copysets with different primaries don't get into each other's way.
func TestWritesAreReadBack(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 3)
	cell.configure(cell.config(0, 1, 2), cell.config(1, 1, 3))
	for id, primary := range []chunk.NodeID{2, 3} {
		client := cell.client(primary)
		for i := range uint32(20) {
			client.mustWrite(chunk.CopysetID(id), 1, i*chunk.BlockSize, byte(10*id)+byte(i))
		}
		for i := range uint32(20) {
			client.mustRead(chunk.CopysetID(id), 1, i*chunk.BlockSize, byte(10*id)+byte(i))
		}
	}
	for _, h := range cell.hosts[1:] {
		same(t, cell.hosts[0], h)
	}
}

// same checks that two stores hold the same: what was acknowledged has been
// applied at every member.
func same(t *testing.T, a, b *host) {
	t.Helper()
	ref := chunk.Ref{Volume: volume}
	want, err := a.server.store.Digest(ref)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.server.store.Digest(ref)
	if err != nil {
		t.Fatal(err)
	}
	if len(want) == 0 || !slices.Equal(want, got) {
		t.Fatalf("stores differ: %v and %v", want, got)
	}
}

// What was acknowledged is there when all processes were restarted, sealed
// and configured anew; before, nothing is served.
func TestRestartOfAll(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 3)
	cell.configure(cell.config(0, 1, 1))
	client := cell.client(1)
	for i := range uint32(10) {
		client.mustWrite(0, 1, i*chunk.BlockSize, byte(i))
	}
	cell.restart()

	cell.configure(chunk.Copyset{ID: 5, Epoch: 1}) // tells addresses only
	if _, err := cell.client(1).read(0, 1, 0, chunk.BlockSize); !errors.Is(err, chunk.ErrNotReady) {
		t.Fatalf("read before the copyset is configured: %v", err)
	}
	primary, largest := chunk.NodeID(0), wire.Sealed{}
	for node := chunk.NodeID(1); node <= 3; node++ {
		sealed, err := cell.seal(node, map[chunk.CopysetID]chunk.Epoch{0: 2})
		if err != nil || len(sealed) != 1 {
			t.Fatalf("seal node %d: %v, %v", node, sealed, err)
		}
		if sealed[0].LSN < 10 {
			t.Fatalf("node %d ends at %v, 10 operations were acknowledged", node, sealed[0])
		}
		if sealed[0].LSN > largest.LSN {
			primary, largest = node, sealed[0]
		}
	}
	cell.configure(cell.config(0, 2, primary))
	client = cell.client(primary)
	for i := range uint32(10) {
		client.mustRead(0, 2, i*chunk.BlockSize, byte(i))
	}
	if err := client.submit(0, 1, write(0, 99)); !errors.Is(err, chunk.ErrStaleEpoch) {
		t.Fatalf("write under the old epoch: %v", err)
	}
	client.mustWrite(0, 2, 0, 77)
	client.mustRead(0, 2, 0, 77)
}

// A seal shuts the primary up, and one that comes too late is refused.
func TestSeal(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 3)
	cell.configure(cell.config(0, 1, 1), cell.config(1, 4, 1))
	client := cell.client(1)
	client.mustWrite(0, 1, 0, 1)
	sealed, err := cell.seal(1, map[chunk.CopysetID]chunk.Epoch{0: 2, 1: 5, 9: 3})
	want := []wire.Sealed{{Copyset: 0, Epoch: 1, LSN: 1}, {Copyset: 1}, {Copyset: 9}}
	if err != nil || !slices.Equal(sealed, want) {
		t.Fatalf("seal: %v, %v, want %v", sealed, err, want)
	}
	if err := client.submit(0, 1, write(0, 2)); !errors.Is(err, chunk.ErrStaleEpoch) {
		t.Fatalf("write under the sealed epoch: %v", err)
	}
	if _, err := client.read(0, 1, 0, chunk.BlockSize); !errors.Is(err, chunk.ErrStaleEpoch) {
		t.Fatalf("read under the sealed epoch: %v", err)
	}
	if _, err := cell.seal(1, map[chunk.CopysetID]chunk.Epoch{0: 3, 1: 4}); !errors.Is(err, chunk.ErrStaleEpoch) {
		t.Fatalf("seal below what is promised: %v", err)
	}
	// The next leader learns of it when it configures what it knows.
	var done wire.Configured
	req := wire.Configure{Copysets: []chunk.Copyset{cell.config(0, 1, 1), cell.config(1, 5, 1)}}
	if err := cell.ask(1, wire.KindConfigure, req, &done); err != nil || !slices.Equal(done.Sealed, []chunk.CopysetID{0}) {
		t.Fatalf("configured after a seal: %v, %v", done.Sealed, err)
	}
}

// Writes that are under way when all connections between the members break
// are completed on the next ones.
func TestWritesOutliveConnections(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 3)
	cell.configure(cell.config(0, 1, 1))
	client := cell.client(1)
	client.mustWrite(0, 1, 0, 1)
	const rounds, writes = 5, 40
	for round := range rounds {
		results := make(chan error, writes)
		for i := range uint32(writes) {
			s := wire.Submit{Epoch: 1, Op: write(i*chunk.BlockSize, byte(round)+byte(i))}
			client.conn.Start(wire.KindSubmit, s.AppendHead(nil), s.Op.Data, func(_ []byte, err error) { results <- err })
			if i == writes/2 {
				for _, h := range cell.hosts {
					h.cut()
				}
			}
		}
		for range writes {
			select {
			case err := <-results:
				if err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("round %d: a write is not completed", round)
			}
		}
	}
	for i := range uint32(writes) {
		client.mustRead(0, 1, i*chunk.BlockSize, byte(rounds-1)+byte(i))
	}
	same(t, cell.hosts[0], cell.hosts[1])
	same(t, cell.hosts[0], cell.hosts[2])
}

// More than fits into the store's queue at once neither fails nor locks up.
func TestBackPressure(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 3)
	cell.configure(cell.config(0, 1, 1))
	client := cell.client(1)
	client.mustWrite(0, 1, 0, 1)
	const writes = 24
	op := write(0, 5)
	op.Len = 512 << 10 // two fill the queue
	op.Data = bytes.Repeat([]byte{5}, int(op.Len))
	op.Sums = chunk.Checksums(nil, op.Data)
	results := make(chan error, writes)
	for range writes {
		s := wire.Submit{Epoch: 1, Op: op}
		client.conn.Start(wire.KindSubmit, s.AppendHead(nil), op.Data, func(_ []byte, err error) { results <- err })
	}
	for range writes {
		select {
		case err := <-results:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("a write is not completed")
		}
	}
}

// The leader fences a writer over its own session. Nobody else can, nor does the
// leader write.
func TestFence(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 3)
	cell.configure(cell.config(0, 1, 1))
	writer := cell.client(1)
	writer.mustWrite(0, 1, 0, 1)
	coordinator := &client{t, cell.session(1).conn}
	fence := chunk.Op{Kind: chunk.OpFence, Ref: chunk.Ref{Volume: volume}, Token: chunk.Token{Attachment: 2, Seq: 1}}
	if err := writer.submit(0, 1, fence); !errors.Is(err, chunk.ErrInvalid) {
		t.Fatalf("a gateway's fence: %v", err)
	}
	if err := coordinator.submit(0, 1, write(0, 3)); !errors.Is(err, chunk.ErrInvalid) {
		t.Fatalf("a leader's write: %v", err)
	}
	if err := coordinator.submit(0, 1, fence); err != nil {
		t.Fatal(err)
	}
	if err := writer.submit(0, 1, write(0, 2)); !errors.Is(err, chunk.ErrFenced) {
		t.Fatalf("write after the fence: %v", err)
	}
	writer.mustRead(0, 1, 0, 1)
}

func TestExtentsAndChunks(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 1)
	cell.configure(cell.config(0, 1, 1))
	client := cell.client(1)
	client.mustWrite(0, 1, 2*chunk.BlockSize, 1)
	r := wire.Read{Epoch: 1, Len: chunk.Size, View: []byte(head().Key())}
	reply, err := client.call(wire.KindExtents, r.Append(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := wire.ParseExtents(reply, chunk.Size)
	want := []wire.Extent{{Len: 2 * chunk.BlockSize}, {Len: chunk.BlockSize, Data: true}, {Len: chunk.Size - 3*chunk.BlockSize}}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("extents %v, %v, want %v", got, err, want)
	}
	var chunks []uint32
	if err := cell.ask(1, wire.KindChunks, wire.Chunks{Volumes: []chunk.VolumeID{volume}}, &chunks); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(chunks, []uint32{0}) {
		t.Fatalf("chunks %v", chunks)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 1)
	cell.configure(cell.config(0, 1, 1))
	client := cell.client(1)
	client.mustWrite(0, 1, 0, 1)
	view := head().Key()
	for name, c := range map[string]struct {
		kind wire.Kind
		body []byte
		want error
	}{
		"copyset unknown":       {wire.KindRead, (&wire.Read{Copyset: 8, Epoch: 1, Len: chunk.BlockSize, View: []byte(view)}).Append(nil), chunk.ErrNotReady},
		"epoch to come":         {wire.KindRead, (&wire.Read{Epoch: 2, Len: chunk.BlockSize, View: []byte(view)}).Append(nil), chunk.ErrNotReady},
		"epoch of the past":     {wire.KindExtents, (&wire.Read{Len: chunk.BlockSize, View: []byte(view)}).Append(nil), chunk.ErrStaleEpoch},
		"read too long":         {wire.KindRead, (&wire.Read{Epoch: 1, Len: chunk.MaxOp + chunk.BlockSize, View: []byte(view)}).Append(nil), chunk.ErrInvalid},
		"view cut short":        {wire.KindRead, (&wire.Read{Epoch: 1, Len: chunk.BlockSize, View: []byte(view[1:])}).Append(nil), chunk.ErrInvalid},
		"bytes behind the view": {wire.KindRead, (&wire.Read{Epoch: 1, Len: chunk.BlockSize, View: []byte(view + "x")}).Append(nil), chunk.ErrInvalid},
		"nothing submitted":     {wire.KindSubmit, nil, chunk.ErrInvalid},
		"not a client's to ask": {wire.KindSeal, []byte("{}"), chunk.ErrInvalid},
		"not a client's to say": {wire.KindReplica, nil, chunk.ErrInvalid},
	} {
		if _, err := client.call(c.kind, c.body, nil); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for name, c := range map[string]struct {
		hello wire.Hello
		want  error
	}{
		"other cluster": {wire.Hello{Role: wire.RoleGateway, Cluster: "other", Session: "x"}, wire.ErrForeign},
		"unknown peer":  {wire.Hello{Role: wire.RoleChunkserver, Cluster: cell.cluster, Session: "x", Node: 9}, chunk.ErrNotReady},
	} {
		if _, err := wire.Dial(t.Context(), wire.DialTCP, cell.session(1).Address, c.hello, wire.Deaf{}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// A peer that says what can't be understood is cut off: nothing behind it is
// taken in.
func TestGarbageEndsThePeersConnection(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 2)
	cell.configure(cell.config(0, 1, 1))
	hello := wire.Hello{Role: wire.RoleChunkserver, Cluster: cell.cluster, Session: "x", Node: 2}
	conn, err := wire.Dial(t.Context(), wire.DialTCP, cell.session(1).Address, hello, wire.Deaf{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Tell(wire.KindReplica, []byte("garbage"), nil)
	select {
	case <-conn.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the connection lives on")
	}
}

// A chunkserver finds the leader through a server that only names it, comes
// back to it when the session breaks, and gives signs of life.
func TestSession(t *testing.T) {
	t.Parallel()
	l := newLeader(t)
	follower := serve(t, func(*wire.Conn, wire.Hello) (wire.Handler, error) { return nil, wire.NotLeader(l.address) })
	h := newHost(t, follower)
	first := l.process(1, 0)
	beat := func(conn *wire.Conn) {
		l.await("heartbeat", func() bool {
			return l.sessions[1].conn != conn && l.beats[1] > 0
		})
	}
	beat(nil)
	h.cut()
	beat(first.conn)
	if again := l.session(1); again.Incarnation != first.Incarnation {
		t.Fatalf("incarnation was %x, is %x", first.Incarnation, again.Incarnation)
	}
}

// A store that fails ends the run with its error.
func TestFailingStoreEndsRun(t *testing.T) {
	t.Parallel()
	cell := &cell{leader: newLeader(t)}
	disk := &failing{FS: store.OSFS(t.TempDir())}
	options := small()
	options.FS = disk
	s, err := New(Config{Dir: "unused", Servers: []string{cell.address}, Listener: listen(t), Store: options})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	cell.process(1, 0)
	cell.configure(cell.config(0, 1, 1))
	client := cell.client(1)
	client.mustWrite(0, 1, 0, 1)
	disk.broken.Store(true)
	if err := client.submit(0, 1, write(0, 2)); err == nil {
		t.Error("a write that can't be durable is acknowledged")
	}
	select {
	case err := <-ended:
		if !errors.Is(err, chunk.ErrStopped) || !errors.Is(err, errBroken) {
			t.Errorf("run: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("run goes on")
	}
}

var errBroken = errors.New("disk is broken")

// failing is a disk whose syncs fail once it is broken.
type failing struct {
	store.FS
	broken atomic.Bool
}

func (f *failing) Open(name string) (store.File, error) {
	file, err := f.FS.Open(name)
	return &failingFile{file, f}, err
}

func (f *failing) Create(name string) (store.File, error) {
	file, err := f.FS.Create(name)
	return &failingFile{file, f}, err
}

type failingFile struct {
	store.File
	disk *failing
}

func (f *failingFile) CopyTo(dst store.File, off, n int64) error {
	return f.File.CopyTo(dst.(*failingFile).File, off, n)
}

func (f *failingFile) Sync() error {
	if f.disk.broken.Load() {
		return errBroken
	}
	return f.File.Sync()
}
