package chunkserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
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
	conn, err := wire.Dial(c.t.Context(), wire.DialTCP, c.session(node).Address, hello, deaf{})
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

func TestWritesAreReadBack(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 3)
	cell.configure(cell.config(0, 1, 2), cell.config(1, 1, 3))
	for id, primary := range []chunk.NodeID{2, 3} {
		client := cell.client(primary)
		for i := range uint32(20) {
			client.mustWrite(chunk.CopysetID(id), 1, i*chunk.BlockSize, byte(id)*100+byte(i))
		}
		for i := range uint32(20) {
			if want := byte(id)*100 + byte(i); id == 1 { // later than copyset 0 in the same chunk
				client.mustRead(chunk.CopysetID(id), 1, i*chunk.BlockSize, want)
			}
		}
	}
}
