package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handle is a Handler that is a function.
type handle func(*Request)

func (h handle) Handle(r *Request)   { h(r) }
func (h handle) Closed(*Conn, error) {}

// serve runs a server until the test ends and returns its address.
func serve(tb testing.TB, accept func(*Conn, Hello) (Handler, error)) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	s := &Server{Accept: accept, Log: slog.New(slog.DiscardHandler)}
	go func() { done <- s.Serve(ctx, ln) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	return ln.Addr().String()
}

// pair connects a client to a server, each with its handler.
func pair(tb testing.TB, client, server Handler) (*Conn, *Conn) {
	tb.Helper()
	accepted := make(chan *Conn, 1)
	address := serve(tb, func(c *Conn, _ Hello) (Handler, error) {
		accepted <- c
		return server, nil
	})
	conn, err := Dial(tb.Context(), DialTCP, address, Hello{Role: RoleGateway, Session: "s"}, client)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(conn.Close)
	return conn, <-accepted
}

func silent() Handler { return handle(func(*Request) {}) }

func echo() Handler {
	return handle(func(r *Request) {
		n := min(len(r.Payload), 10)
		r.Reply(r.Payload[:n], r.Payload[n:])
	})
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not so: %s", what)
		}
	}
}

// Both ends ask at once; answers come in any order, and each finds its call.
func TestCallsAreAnsweredInAnyOrder(t *testing.T) {
	t.Parallel()
	shuffled := func() Handler {
		var mu sync.Mutex
		var held []*Request
		return handle(func(r *Request) {
			mu.Lock()
			defer mu.Unlock()
			if held = append(held, r); len(held) < 16 {
				return
			}
			rand.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
			for _, r := range held {
				if r.Kind == KindSeal {
					r.Refuse(fmt.Errorf("%w: %x", chunk.ErrNoSpace, r.Payload[:8]))
				} else {
					r.Reply(r.Payload[:8], r.Payload[8:])
				}
			}
			held = nil
		})
	}
	client, server := pair(t, shuffled(), shuffled())
	var wg sync.WaitGroup
	for i := range 320 { // from each end, a multiple of 16
		for _, conn := range []*Conn{client, server} {
			wg.Go(func() {
				head := binary.LittleEndian.AppendUint64(nil, uint64(i))
				data := bytes.Repeat(head, i)
				kind := KindRead
				if i%5 == 0 {
					kind = KindSeal
				}
				reply, err := conn.Call(t.Context(), kind, head, data)
				switch {
				case kind == KindSeal:
					if want := fmt.Sprintf("peer: %v: %x", chunk.ErrNoSpace, head); !errors.Is(err, chunk.ErrNoSpace) || err.Error() != want {
						t.Errorf("call %d: %v, want %s", i, err, want)
					}
				case err != nil || !bytes.Equal(reply, append(head, data...)):
					t.Errorf("call %d: %x, %v", i, reply, err)
				}
			})
		}
	}
	wg.Wait()
}

func TestTellHasNoReply(t *testing.T) {
	t.Parallel()
	told := make(chan *Request, 1)
	client, server := pair(t, silent(), handle(func(r *Request) { told <- r }))
	client.Tell(KindReplica, []byte("he"), []byte("ad"))
	r := <-told
	if r.Kind != KindReplica || string(r.Payload) != "head" || r.Conn() != server {
		t.Errorf("got %+v", r)
	}
	r.Reply(nil, nil) // comes to nothing
	if server.pending != 0 {
		t.Errorf("%d requests are pending", server.pending)
	}
}

// gated is a network connection whose writes of more than a header wait until
// they are let through, or the connection is closed.
type gated struct {
	net.Conn
	open   chan struct{} // closed when writes go through
	closed chan struct{}
	once   sync.Once
	after  func(p []byte) // sees what is being written when the connection is closed
}

func (g *gated) Write(p []byte) (int, error) {
	if len(p) == headerLen {
		return g.Conn.Write(p)
	}
	select {
	case <-g.open:
		return g.Conn.Write(p)
	case <-g.closed:
		if g.after != nil {
			g.after(p)
		}
		return 0, net.ErrClosed
	}
}

func (g *gated) Close() error {
	g.once.Do(func() { close(g.closed) })
	return g.Conn.Close()
}

// gatedConn is a started connection over g, and the other end.
func gatedConn(t *testing.T, g *gated) (*Conn, net.Conn) {
	near, far := net.Pipe()
	g.Conn, g.open, g.closed = near, make(chan struct{}), make(chan struct{})
	c := newConn(g, newReader(g))
	c.start(silent())
	t.Cleanup(func() {
		c.Close()
		far.Close()
	})
	return c, far
}

// A call that is given up while its data is queued returns only when the data
// is no longer needed: what the caller does to it then is not sent.
func TestGivenUpCallHasLetGoOfItsData(t *testing.T) {
	t.Parallel()
	g := new(gated)
	c, far := gatedConn(t, g)
	data := bytes.Repeat([]byte{1}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	returned := make(chan error, 1)
	go func() {
		_, err := c.Call(ctx, KindSubmit, []byte{7}, data)
		clear(data)
		returned <- err
	}()
	eventually(t, "the call is queued", func() bool {
		c.out.mu.Lock()
		defer c.out.mu.Unlock()
		return c.out.put == 1
	})
	cancel()
	select {
	case err := <-returned:
		t.Fatalf("returned with its data queued: %v", err)
	case <-time.After(20 * time.Millisecond): // time enough to be wrong
	}
	close(g.open)
	_, payload, err := newReader(far).readFrame()
	if err != nil || !bytes.Equal(payload, append([]byte{7}, bytes.Repeat([]byte{1}, 100)...)) {
		t.Errorf("sent %x, %v", payload, err)
	}
	if err := <-returned; !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("given-up call: %v", err)
	}
	if len(c.calls) != 0 {
		t.Errorf("%d calls are left", len(c.calls))
	}
}

// The same when the connection is lost in the middle of writing.
func TestLostCallHasLetGoOfItsData(t *testing.T) {
	t.Parallel()
	var sent atomic.Int32
	g := new(gated)
	g.after = func(p []byte) {
		time.Sleep(20 * time.Millisecond) // time enough for the caller to be wrong
		sent.Store(int32(p[len(p)-1]))
	}
	c, far := gatedConn(t, g)
	data := bytes.Repeat([]byte{1}, 100)
	returned := make(chan error, 1)
	go func() {
		_, err := c.Call(t.Context(), KindSubmit, nil, data)
		clear(data)
		returned <- err
	}()
	if _, err := io.ReadFull(far, make([]byte, headerLen)); err != nil {
		t.Fatal(err)
	}
	far.Close()
	if err := <-returned; !errors.Is(err, ErrUnavailable) {
		t.Errorf("lost call: %v", err)
	}
	if sent.Load() != 1 {
		t.Error("the data was changed while it was being written")
	}
}

// A lost connection answers every call, once, as one whose outcome is unknown.
func TestLossAnswersEveryCallOnce(t *testing.T) {
	t.Parallel()
	for round := range 20 {
		client, server := pair(t, silent(), echo())
		var begun, answered, unknown atomic.Int32
		start := func() {
			var once atomic.Bool
			begun.Add(1)
			client.Start(KindRead, make([]byte, 100), nil, func(_ []byte, err error) {
				if once.Swap(true) {
					t.Error("a call was answered twice")
				}
				if err != nil {
					unknown.Add(1)
					if !errors.Is(err, ErrUnavailable) {
						t.Errorf("a lost call: %v", err)
					}
				}
				answered.Add(1)
			})
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 100 {
					start()
				}
			})
		}
		wg.Go(func() {
			if round%2 == 0 {
				client.nc.Close()
			} else {
				server.nc.Close()
			}
		})
		wg.Wait()
		<-client.Done()
		start()
		eventually(t, "every call is answered", func() bool { return answered.Load() == begun.Load() })
		if unknown.Load() == 0 {
			t.Error("a call on a lost connection was answered")
		}
		if client.Err() == nil {
			t.Error("the connection does not tell why it ended")
		}
		if _, err := client.Call(t.Context(), KindRead, nil, nil); !errors.Is(err, ErrUnavailable) {
			t.Errorf("a call on a lost connection: %v", err)
		}
	}
}

// The server works on no more requests than its bounds allow, however many
// are sent, and goes on when it has answered some.
func TestRequestsAreBounded(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ size, bound int }{{10, maxPending}, {4 << 20, maxPendingBytes / (4 << 20)}} {
		requests := make(chan *Request, 2*maxPending)
		client, server := pair(t, silent(), handle(func(r *Request) { requests <- r }))
		total := test.bound + 10
		var answered atomic.Int32
		data := make([]byte, test.size)
		for range total {
			client.Start(KindRead, nil, data, func([]byte, error) { answered.Add(1) })
		}
		eventually(t, "the server has as many as it takes", func() bool { return len(requests) == test.bound })
		time.Sleep(20 * time.Millisecond) // time enough to be wrong
		if n := len(requests); n != test.bound {
			t.Errorf("the server works on %d requests, its bound is %d", n, test.bound)
		}
		for range total {
			(<-requests).Reply(nil, nil)
		}
		eventually(t, "all are answered", func() bool { return int(answered.Load()) == total })
		server.mu.Lock()
		if server.pending != 0 || server.bytes != 0 {
			t.Errorf("%d requests and %d bytes are left", server.pending, server.bytes)
		}
		server.mu.Unlock()
	}
}

// A client that asks for much and takes nothing does not fill the server's
// memory.
func TestRepliesNotTakenAreBounded(t *testing.T) {
	t.Parallel()
	reply := make([]byte, chunk.MaxOp)
	near, far := net.Pipe()
	server := newConn(near, newReader(near))
	var handled atomic.Int32
	server.start(handle(func(r *Request) {
		handled.Add(1)
		r.Reply(nil, reply)
	}))
	defer server.Close()
	defer far.Close()
	far.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for id := range uint64(1000) {
		if _, err := far.Write(frame(header{kind: KindRead, id: id}, "")); err != nil {
			break
		}
	}
	if most := int32(maxPendingBytes/chunk.MaxOp + 2); handled.Load() > most || handled.Load() < most/2 {
		t.Errorf("%d replies of 1 MiB are waiting to be taken", handled.Load())
	}
}

// Close ends the context of everything begun on the connection and waits.
func TestCloseWaitsForWork(t *testing.T) {
	t.Parallel()
	var working atomic.Int32
	closed := make(chan error, 1)
	client, server := pair(t, silent(), closer{
		handle: func(r *Request) {
			working.Add(1)
			r.Go(func(ctx context.Context) {
				<-ctx.Done()
				time.Sleep(10 * time.Millisecond) // time enough for Close to be wrong
				working.Add(-1)
			})
		},
		closed: closed,
	})
	for range 10 {
		client.Start(KindRead, nil, nil, func([]byte, error) {})
	}
	eventually(t, "all are worked on", func() bool { return working.Load() == 10 })
	server.Close()
	if n := working.Load(); n != 0 {
		t.Errorf("%d are still being worked on", n)
	}
	if err := <-closed; !errors.Is(err, chunk.ErrStopped) {
		t.Errorf("closed because of %v", err)
	}
}

type closer struct {
	handle
	closed chan error
}

func (c closer) Closed(_ *Conn, err error) { c.closed <- err }

func TestAskAndAnswer(t *testing.T) {
	t.Parallel()
	client, _ := pair(t, silent(), handle(func(r *Request) {
		Answer(r, func(_ context.Context, req Release) (Sealed, error) {
			if req.Attachment == 0 {
				return Sealed{}, ErrNotExist
			}
			return Sealed{LSN: chunk.LSN(req.Attachment)}, nil
		})
	}))
	var got Sealed
	if err := Ask(t.Context(), client, KindRelease, Release{Attachment: 5}, &got); err != nil || got.LSN != 5 {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := Ask(t.Context(), client, KindRelease, Release{}, nil); !errors.Is(err, ErrNotExist) {
		t.Errorf("a refusal: %v", err)
	}
	if err := Ask(t.Context(), client, KindRelease, []int{1}, nil); !errors.Is(err, chunk.ErrInvalid) {
		t.Errorf("a malformed request: %v", err)
	}
	if err := Ask(t.Context(), client, KindRelease, Release{Attachment: 5}, new([]int)); err == nil {
		t.Error("a malformed reply was decoded")
	}
	if err := Ask(t.Context(), client, KindRelease, func() {}, nil); err == nil {
		t.Error("a function was encoded")
	}
}
