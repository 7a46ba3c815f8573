package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testVolume = chunk.VolumeID(7)
	copysets   = 8
)

// tester is what *testing.T, *testing.B and *rapid.T have in common.
type tester interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
	Cleanup(func())
	Context() context.Context
}

// cluster is a cluster in memory behind real connections: metadata servers
// m1 and m2, chunkservers c1 to c3 (nodes 1 to 3), one volume. What the
// copies of a copyset would agree on is kept once; epochs, primaries, tokens,
// layers and views count as they do in earnest.
type cluster struct {
	tb    tester
	hosts map[string]*host

	mu       sync.Mutex
	leader   string
	set      []chunk.Copyset
	volume   wire.Volume
	parent   *chunk.View
	lineage  chunk.Lineage
	seq      chunk.Seq
	last     uint64 // attachment
	attached map[uint64]bool
	gateway  *wire.Conn // of the latest gateway that came to the leader
	blocks   map[blockID]map[chunk.Seq][]byte
	tokens   map[chunk.CopysetID]chunk.Token
	applied  []chunk.Token // of every operation, in order
	maps     int           // readings of the map
	resumes  int
	resume   func() error                     // decides on resumes, if set
	fault    func(*chunk.Op) (fault, error)   // decides on operations, if set
	onRead   func(*wire.Read) (refusal error) // decides on reads, if set
	onOpen   func()                           // is called, without mu, before an attachment is given, if set
	led      int                              // connections that gateways have made to leaders
	renewed  func()                           // is told of renewals, if set
	onMap    func() error                     // refuses readings of the map, if set
}

type blockID struct {
	ref chunk.Ref
	at  uint32
}

// A fault is what happens to an operation that arrives.
type fault int

const (
	carryOut    fault = iota
	loseRequest       // the connection is lost before it is carried out
	loseReply         // the connection is lost after it has been carried out
	hang              // it is never carried out nor answered
)

// host is where a server listens. Its name is its address.
type host struct {
	name string
	c    *cluster

	mu     sync.Mutex
	addr   string // "" while it is down
	cancel context.CancelFunc
	done   chan struct{}
	conns  []net.Conn // that were dialled
}

func newCluster(tb tester, size uint64, layout chunk.Layout) *cluster {
	c := &cluster{
		tb:       tb,
		hosts:    make(map[string]*host),
		leader:   "m1",
		volume:   wire.Volume{ID: testVolume, Root: testVolume, Size: size, Layout: layout},
		lineage:  chunk.NewLineage(),
		seq:      1,
		attached: make(map[uint64]bool),
		blocks:   make(map[blockID]map[chunk.Seq][]byte),
		tokens:   make(map[chunk.CopysetID]chunk.Token),
	}
	for i := range copysets {
		c.set = append(c.set, chunk.Copyset{ID: chunk.CopysetID(i), Epoch: 1, Primary: chunk.NodeID(i%3 + 1)})
	}
	for _, name := range []string{"m1", "m2", "c1", "c2", "c3"} {
		h := &host{name: name, c: c}
		c.hosts[name] = h
		h.up()
	}
	tb.Cleanup(func() {
		for _, h := range c.hosts {
			h.down()
		}
	})
	return c
}

// up starts a server at the host.
func (h *host) up() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.c.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	server := &wire.Server{Accept: h.accept, Log: slog.New(slog.DiscardHandler)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addr, h.cancel, h.done = ln.Addr().String(), cancel, make(chan struct{})
	done := h.done
	go func() {
		defer close(done)
		server.Serve(ctx, ln)
	}()
}

// down stops the server and returns when nothing of it runs.
func (h *host) down() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.addr == "" {
		return
	}
	h.cancel()
	<-h.done
	h.addr = ""
}

// cut closes every connection that was made to the host.
func (h *host) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, nc := range h.conns {
		nc.Close()
	}
	h.conns = nil
}

func (c *cluster) dial(ctx context.Context, address string) (net.Conn, error) {
	h := c.hosts[address]
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.addr == "" {
		return nil, errors.New("connection refused")
	}
	nc, err := wire.DialTCP(ctx, h.addr)
	if err == nil {
		h.conns = append(h.conns, nc)
	}
	return nc, err
}

// session begins a session that ends with the test.
func (c *cluster) session() *Session {
	s, err := Connect(Config{
		Servers: []string{"m2", "m1"},
		Gateway: "gw",
		Run:     fmt.Sprint(time.Now().UnixNano()),
		Dial:    c.dial,
		Log:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		c.tb.Fatal(err)
	}
	c.tb.Cleanup(s.Close)
	return s
}

// attach begins a session and attaches the volume for writing.
func (c *cluster) attach() *Volume {
	v, err := c.session().Attach(c.tb.Context(), "/v", "", false)
	if err != nil {
		c.tb.Fatal(err)
	}
	return v
}

func (h *host) accept(conn *wire.Conn, hello wire.Hello) (wire.Handler, error) {
	c := h.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if hello.Role != wire.RoleGateway {
		return nil, fmt.Errorf("%w: role %q", chunk.ErrInvalid, hello.Role)
	}
	if h.name[0] == 'c' {
		return chunkserver{c, chunk.NodeID(h.name[1] - '0'), h}, nil
	}
	if c.leader != h.name {
		return nil, wire.NotLeader(c.leader)
	}
	c.gateway = conn
	c.led++
	return metadata{c}, nil
}

// context is what a writer of the attachment stamps with. mu must be held.
func (c *cluster) context(attachment uint64) wire.Context {
	view := chunk.NewView(testVolume, c.lineage, c.parent)
	return wire.Context{Token: chunk.Token{Attachment: attachment, Seq: c.seq}, View: []byte(view.Key())}
}

// freeze takes a snapshot and returns its view. mu must be held.
func (c *cluster) freeze() *chunk.View {
	frozen := chunk.NewView(testVolume, c.lineage.Freeze(c.seq), c.parent)
	c.seq++
	return frozen
}

// lead makes another server the leader and drops the sessions of the old one.
func (c *cluster) lead(name string) {
	c.mu.Lock()
	old := c.leader
	c.leader = name
	c.mu.Unlock()
	c.hosts[old].cut()
}

// move gives a copyset a new epoch and primary.
func (c *cluster) move(id int, primary chunk.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set[id].Epoch++
	c.set[id].Primary = primary
}

// call asks the gateway something, as the leader.
func (c *cluster) call(ctx context.Context, kind wire.Kind, req any) error {
	c.mu.Lock()
	conn := c.gateway
	c.mu.Unlock()
	return wire.Ask(ctx, conn, kind, req, nil)
}

// metadata is the leader's end of a session.
type metadata struct{ c *cluster }

func (metadata) Closed(*wire.Conn, error) {}

func (m metadata) Handle(r *wire.Request) {
	c := m.c
	switch r.Kind {
	case wire.KindHeld:
		wire.Answer(r, func(context.Context, wire.Held) (struct{}, error) { return struct{}{}, nil })
	case wire.KindRenew:
		wire.Answer(r, func(context.Context, struct{}) (struct{}, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.renewed != nil {
				c.renewed()
			}
			return struct{}{}, nil
		})
	case wire.KindList:
		wire.Answer(r, func(context.Context, struct{}) ([]string, error) { return []string{"/v"}, nil })
	case wire.KindStat:
		wire.Answer(r, func(_ context.Context, req wire.Open) (wire.Volume, error) {
			if req.Path != "/v" {
				return wire.Volume{}, wire.ErrNotExist
			}
			return c.volume, nil
		})
	case wire.KindMap:
		wire.Answer(r, func(context.Context, struct{}) (wire.Map, error) { return c.readMap() })
	case wire.KindOpen:
		wire.Answer(r, func(_ context.Context, req wire.Open) (wire.Opened, error) { return c.open(req) })
	case wire.KindRelease:
		wire.Answer(r, func(_ context.Context, req wire.Release) (struct{}, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.attached, req.Attachment)
			return struct{}{}, nil
		})
	case wire.KindResume:
		wire.Answer(r, func(_ context.Context, req wire.Resume) (wire.Context, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.resumes++
			if c.resume != nil {
				if err := c.resume(); err != nil {
					return wire.Context{}, err
				}
			}
			if !c.attached[req.Attachment] {
				return wire.Context{}, wire.ErrNotExist
			}
			return c.context(req.Attachment), nil
		})
	default:
		r.Refuse(fmt.Errorf("%w: kind %d", chunk.ErrInvalid, r.Kind))
	}
}

func (c *cluster) readMap() (wire.Map, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.maps++
	m := wire.Map{
		Copysets: slices.Clone(c.set),
		Peers:    map[chunk.NodeID]string{1: "c1", 2: "c2", 3: "c3"},
	}
	if c.onMap != nil {
		return m, c.onMap()
	}
	return m, nil
}

func (c *cluster) open(req wire.Open) (wire.Opened, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if req.Path != "/v" {
		return wire.Opened{}, wire.ErrNotExist
	}
	vol := c.volume
	vol.ReadOnly = req.ReadOnly
	if onOpen := c.onOpen; onOpen != nil {
		c.mu.Unlock()
		onOpen()
		c.mu.Lock()
	}
	c.last++
	c.attached[c.last] = true
	for i := range c.set {
		c.tokens[chunk.CopysetID(i)] = chunk.Token{Attachment: c.last, Seq: 0}
	}
	return wire.Opened{Attachment: c.last, Volume: vol, Context: c.context(c.last)}, nil
}

// chunkserver is a chunkserver's end of a connection.
type chunkserver struct {
	c    *cluster
	node chunk.NodeID
	host *host
}

func (chunkserver) Closed(*wire.Conn, error) {}

func (n chunkserver) Handle(r *wire.Request) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	switch r.Kind {
	case wire.KindSubmit:
		n.submit(r)
	case wire.KindRead, wire.KindExtents:
		n.read(r)
	default:
		r.Refuse(fmt.Errorf("%w: kind %d", chunk.ErrInvalid, r.Kind))
	}
}

// serves tells why the node doesn't serve a copyset. c.mu must be held.
func (n chunkserver) serves(id chunk.CopysetID, epoch chunk.Epoch) error {
	switch set := n.c.set[id]; {
	case set.Epoch != epoch:
		return chunk.ErrStaleEpoch
	case set.Primary != n.node:
		return chunk.ErrNotReady
	}
	return nil
}

func (n chunkserver) submit(r *wire.Request) {
	c := n.c
	s, err := wire.ParseSubmit(r.Payload)
	if err != nil {
		r.Refuse(err)
		return
	}
	if err := n.serves(s.Copyset, s.Epoch); err != nil {
		r.Refuse(err)
		return
	}
	if want := chunk.Locate(c.volume.Root, s.Op.Ref.Index, copysets); s.Copyset != want {
		r.Refuse(fmt.Errorf("%w: chunk %v is in copyset %d", chunk.ErrInvalid, s.Op.Ref, want))
		return
	}
	if s.Op.Token.Compare(c.tokens[s.Copyset]) < 0 {
		r.Refuse(chunk.ErrFenced)
		return
	}
	what := carryOut
	if c.fault != nil {
		if what, err = c.fault(&s.Op); err != nil {
			r.Refuse(err)
			return
		}
	}
	switch what {
	case carryOut:
		c.apply(&s)
		r.Reply(nil, nil)
	case loseReply:
		c.apply(&s)
		go n.host.cut()
	case loseRequest:
		go n.host.cut()
	}
}

// apply carries out an operation. c.mu must be held.
func (c *cluster) apply(s *wire.Submit) {
	c.tokens[s.Copyset] = s.Op.Token
	c.applied = append(c.applied, s.Op.Token)
	for i := uint32(0); i < s.Op.Len; i += chunk.BlockSize {
		id := blockID{s.Op.Ref, s.Op.Off + i}
		if c.blocks[id] == nil {
			c.blocks[id] = make(map[chunk.Seq][]byte)
		}
		var block []byte // zeros
		if s.Op.Kind == chunk.OpWrite {
			block = bytes.Clone(s.Op.Data[i : i+chunk.BlockSize])
		}
		c.blocks[id][s.Op.Token.Seq] = block
	}
}

func (n chunkserver) read(r *wire.Request) {
	c := n.c
	req, err := wire.ParseRead(r.Payload, chunk.Size)
	if err == nil && r.Kind == wire.KindRead && req.Len > chunk.MaxOp {
		err = chunk.ErrInvalid
	}
	if err == nil {
		err = n.serves(req.Copyset, req.Epoch)
	}
	if err == nil && c.onRead != nil {
		err = c.onRead(&req)
	}
	if err != nil {
		r.Refuse(err)
		return
	}
	view, _, err := chunk.ParseView(req.View)
	if err != nil {
		r.Refuse(err)
		return
	}
	var data []byte
	var extents []wire.Extent
	for i := uint32(0); i < req.Len; i += chunk.BlockSize {
		block := c.block(view, req.Index, req.Off+i)
		extents = append(extents, wire.Extent{Len: chunk.BlockSize, Data: block != nil})
		if block == nil {
			block = make([]byte, chunk.BlockSize)
		}
		if r.Kind == wire.KindRead {
			data = append(data, block...)
		}
	}
	if r.Kind == wire.KindExtents {
		data = wire.AppendExtents(nil, extents)
	}
	r.Reply(nil, data)
}

// block is what a view sees; nil for zeros. c.mu must be held.
func (c *cluster) block(view *chunk.View, index, at uint32) []byte {
	for ; view != nil; view = view.Parent() {
		layers := c.blocks[blockID{chunk.Ref{Volume: view.Volume(), Index: index}, at}]
		newest, found := chunk.Seq(0), false
		for seq := range layers {
			if view.Lineage().Sees(seq) && (!found || seq > newest) {
				newest, found = seq, true
			}
		}
		if found {
			return layers[newest]
		}
	}
	return nil
}

// history is the stamps of the operations that have been carried out.
func (c *cluster) history() []chunk.Token {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.applied)
}

// eventually waits for a condition of what the cluster's mu guards.
func (c *cluster) eventually(what string, holds func() bool) {
	c.tb.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		c.mu.Lock()
		ok := holds()
		c.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			c.tb.Fatalf("still not so: %s", what)
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// pattern is n bytes that tell where they came from.
func pattern(seed byte, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed + byte(i*7) + byte(i>>8)
	}
	return p
}

func read(tb testing.TB, v *Volume, off, n uint64) []byte {
	tb.Helper()
	p := make([]byte, n)
	if err := v.ReadAt(tb.Context(), p, off); err != nil {
		tb.Fatal(err)
	}
	return p
}

func write(tb testing.TB, v *Volume, p []byte, off uint64) {
	tb.Helper()
	if err := v.WriteAt(tb.Context(), p, off); err != nil {
		tb.Fatal(err)
	}
}
