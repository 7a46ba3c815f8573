package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// logTo returns a logger, and what has been logged.
func logTo(*testing.T) (*slog.Logger, func() string) {
	var w lockedBuffer
	return slog.New(slog.NewTextHandler(&w, nil)), w.String
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// gate is a device whose operations of one kind wait to be let through.
type gate struct {
	*memory
	waiting atomic.Int64
	through chan struct{} // one operation for each value; all once closed
	ended   atomic.Int64  // operations whose context ended first
}

func newGate(size int64, gated string) *gate {
	g := &gate{memory: newMemory(size), through: make(chan struct{})}
	g.on = func(ctx context.Context, op string, _, _ int64) error {
		if op != gated {
			return nil
		}
		g.waiting.Add(1)
		defer g.waiting.Add(-1)
		select {
		case <-g.through:
			return nil
		case <-ctx.Done():
			g.ended.Add(1)
			return ctx.Err()
		}
	}
	return g
}

func noData(uint64) int { return 0 }

// TestAnswersOutOfOrder: writes that were sent after a read that hangs are
// answered before it.
func TestAnswersOutOfOrder(t *testing.T) {
	t.Parallel()
	bothReplies(t, func(t *testing.T, structured bool) {
		g := newGate(1<<20, "read")
		address, _ := serve(t, &Server{Exports: newShelf(t, map[string]*memory{"disk": g.memory})})
		c := open(t, address, "disk", structured)
		c.write(requestHeader(0, cmdRead, 100, 0, 8))
		eventually(t, "the read has begun", func() bool { return g.waiting.Load() == 1 })
		for cookie := range uint64(50) {
			c.write(append(requestHeader(0, cmdWrite, cookie, 0, 8), "12345678"...))
		}
		var answered []uint64
		for range 50 {
			a := c.answer(noData)
			if a.errno != 0 {
				t.Fatalf("errno %d", a.errno)
			}
			answered = append(answered, a.cookie)
		}
		if slices.Sort(answered); len(slices.Compact(answered)) != 50 || answered[49] != 49 {
			t.Fatalf("answered %v", answered)
		}
		close(g.through)
		if a := c.answer(func(uint64) int { return 8 }); a.cookie != 100 || string(a.data) != "12345678" {
			t.Errorf("read: cookie %d, %q", a.cookie, a.data)
		}
	})
}

// TestBackPressure: beyond either bound nothing is read from the connection.
func TestBackPressure(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		server   Server
		length   uint32
		atOnce   int64
		requests int
	}{
		{"requests", Server{MaxInFlight: 3}, 512, 3, 20},
		{"bytes", Server{MaxInFlightBytes: 64 << 10}, 16 << 10, 4, 20},
		{"bytes count as whole buffers", Server{MaxInFlightBytes: 64 << 10}, 16<<10 + 1, 2, 20},
		{"one that exceeds all", Server{MaxInFlightBytes: 1}, 16 << 10, 1, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			g := newGate(1<<20, "read")
			most := int64(0)
			test.server.Exports = newShelf(t, map[string]*memory{"disk": g.memory})
			address, _ := serve(t, &test.server)
			c := open(t, address, "disk", false)
			for cookie := range uint64(test.requests) {
				c.write(requestHeader(0, cmdRead, cookie, 0, test.length))
			}
			for range test.requests {
				eventually(t, "a read waits", func() bool { return g.waiting.Load() > 0 })
				if most == 0 {
					eventually(t, "the bound is reached", func() bool { return g.waiting.Load() >= test.atOnce })
				}
				most = max(most, g.waiting.Load())
				g.through <- struct{}{}
				c.answer(func(uint64) int { return int(test.length) })
			}
			if most != test.atOnce {
				t.Errorf("%d reads at once, want %d", most, test.atOnce)
			}
		})
	}
}

// TestDisconnectDrains: however a client leaves, what it sent before is done
// and answered.
func TestDisconnectDrains(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*client){
		"DISC":    func(c *client) { c.write(requestHeader(0, cmdDisc, 0, 0, 0)) },
		"EOF":     func(c *client) { c.conn.(*net.UnixConn).CloseWrite() },
		"garbage": func(c *client) { c.write(make([]byte, requestSize)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGate(4096, "write")
			exports := newShelf(t, map[string]*memory{"disk": g.memory})
			address, _ := serve(t, &Server{Exports: exports})
			c := open(t, address, "disk", false)
			for cookie := range uint64(3) {
				c.write(append(requestHeader(0, cmdWrite, cookie, cookie, 1), "x"...))
			}
			leave(c)
			eventually(t, "the writes have begun", func() bool { return g.waiting.Load() == 3 })
			if exports.closed.Load() != 0 {
				t.Error("device is closed with writes in flight")
			}
			close(g.through)
			for range 3 {
				if a := c.answer(noData); a.errno != 0 {
					t.Errorf("write %d: errno %d", a.cookie, a.errno)
				}
			}
			c.wantEnd()
			eventually(t, "the device is closed", func() bool { return exports.closed.Load() == 1 })
			if string(g.data[:3]) != "xxx" {
				t.Errorf("device has %q", g.data[:3])
			}
		})
	}
}

// TestDrainIsBounded: requests that never end are cut off.
func TestDrainIsBounded(t *testing.T) {
	t.Parallel()
	g := newGate(4096, "write")
	exports := newShelf(t, map[string]*memory{"disk": g.memory})
	address, _ := serve(t, &Server{Exports: exports, DrainTimeout: 30 * time.Millisecond})
	c := open(t, address, "disk", false)
	c.write(append(requestHeader(0, cmdWrite, 7, 0, 1), "x"...))
	c.write(requestHeader(0, cmdDisc, 0, 0, 0))
	if _, err := io.Copy(io.Discard, c.in); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection stays open")
	}
	if g.ended.Load() != 1 {
		t.Error("the write's context did not end")
	}
}

// TestServeEnds: when its context ends, Serve answers what is in flight, takes
// no more, and leaves nothing behind.
func TestServeEnds(t *testing.T) {
	t.Parallel()
	g := newGate(4096, "write")
	exports := newShelf(t, map[string]*memory{"disk": g.memory})
	address, stop := serve(t, &Server{Exports: exports})
	idle := open(t, address, "disk", true)
	negotiating := dial(t, address, modern)
	busy := open(t, address, "disk", false)
	busy.write(append(requestHeader(0, cmdWrite, 1, 0, 1), "x"...))
	eventually(t, "the write has begun", func() bool { return g.waiting.Load() == 1 })

	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	idle.wantEnd()
	negotiating.wantEnd()
	eventually(t, "nobody can connect", func() bool {
		conn, err := net.Dial("unix", address)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	select {
	case <-stopped:
		t.Error("Serve has left a write behind")
	default:
	}
	close(g.through)
	if a := busy.answer(noData); a.errno != 0 {
		t.Errorf("write in flight: errno %d", a.errno)
	}
	busy.wantEnd()
	<-stopped
	if exports.closed.Load() != 2 {
		t.Errorf("%d devices closed, want 2", exports.closed.Load())
	}
}

// TestServeEndsAtTheBounds: neither a full connection nor a client that takes
// no replies keeps the server from ending.
func TestServeEndsAtTheBounds(t *testing.T) {
	t.Parallel()
	t.Run("all in flight", func(t *testing.T) {
		t.Parallel()
		g := newGate(4096, "read")
		address, stop := serve(t, &Server{Exports: newShelf(t, map[string]*memory{"disk": g.memory}),
			MaxInFlight: 2, DrainTimeout: 30 * time.Millisecond})
		c := open(t, address, "disk", false)
		for cookie := range uint64(10) {
			c.write(requestHeader(0, cmdRead, cookie, 0, 1))
		}
		eventually(t, "the bound is reached", func() bool { return g.waiting.Load() == 2 })
		stop()
	})
	t.Run("replies not taken", func(t *testing.T) {
		t.Parallel()
		exports := newShelf(t, map[string]*memory{"disk": newMemory(maxPayload)})
		address, stop := serve(t, &Server{Exports: exports, DrainTimeout: 30 * time.Millisecond})
		c := open(t, address, "disk", false)
		c.write(requestHeader(0, cmdRead, 1, 0, maxPayload)) // more than a socket holds
		c.uint32()                                           // it is being sent
		stop()
		if exports.closed.Load() != 1 {
			t.Error("the device is not closed")
		}
	})
}

// TestFailedSendEndsReading: a client that has closed its ears only is let go.
func TestFailedSendEndsReading(t *testing.T) {
	t.Parallel()
	exports := newShelf(t, map[string]*memory{"disk": newMemory(4096)})
	address, _ := serve(t, &Server{Exports: exports})
	c := open(t, address, "disk", false)
	c.conn.(*net.UnixConn).CloseRead()
	c.write(requestHeader(0, cmdRead, 1, 0, 4096))
	eventually(t, "the device is closed", func() bool { return exports.closed.Load() == 1 })
}

// TestMaxConns: one more than the bound is served when another has left.
func TestMaxConns(t *testing.T) {
	t.Parallel()
	exports := newShelf(t, map[string]*memory{"disk": newMemory(4096)})
	address, _ := serve(t, &Server{Exports: exports, MaxConns: 1})
	first := open(t, address, "disk", false)
	second, err := net.Dial("unix", address) // into the listener's backlog
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	second.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	if _, err := second.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read on a connection too many: %v", err)
	}
	first.conn.Close()
	second.SetReadDeadline(time.Now().Add(patience))
	if _, err := second.Read(make([]byte, 1)); err != nil {
		t.Errorf("read when there is room again: %v", err)
	}
}

// brokenListener fails a few times before it works.
type brokenListener struct {
	net.Listener
	failures atomic.Int64
}

func (l *brokenListener) Accept() (net.Conn, error) {
	if l.failures.Add(-1) >= 0 {
		return nil, errors.New("too many open files")
	}
	return l.Listener.Accept()
}

// TestAcceptRecovers, over TCP: failures to accept are logged and outlived.
// When somebody else closes the listener Serve ends with an error.
func TestAcceptRecovers(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &brokenListener{Listener: inner}
	l.failures.Store(3)
	log, lines := logTo(t)
	done := make(chan error, 1)
	go func() { done <- (&Server{Exports: twoExports(t), Log: log}).Serve(t.Context(), l) }()
	conn, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Errorf("read: %v", err)
	}
	if n := strings.Count(lines(), "too many open files"); n != 3 {
		t.Errorf("%d failures logged, want 3", n)
	}
	inner.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve: %v, want %v", err, net.ErrClosed)
	}
}

// TestMultiConn: what one connection has written another reads, and one
// device is closed per connection.
func TestMultiConn(t *testing.T) {
	t.Parallel()
	disk := newMemory(1 << 20)
	exports := newShelf(t, map[string]*memory{"disk": disk})
	address, _ := serve(t, &Server{Exports: exports})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			c := open(t, address, "disk", i%2 == 0)
			defer c.conn.Close()
			for n := range 200 {
				mine := fmt.Sprintf("%d:%07d", i, n)
				off := uint64(i * len(mine))
				if a := c.call(0, cmdWrite, off, 0, []byte(mine)); a.errno != 0 {
					t.Errorf("write: errno %d", a.errno)
				}
				other := open(t, address, "disk", false)
				if a := other.call(0, cmdRead, off, uint32(len(mine)), nil); string(a.data) != mine {
					t.Errorf("another connection read %q, want %q", a.data, mine)
				}
				other.conn.Close()
			}
		})
	}
	wg.Wait()
	eventually(t, "all devices are closed", func() bool { return exports.closed.Load() == 4*201 })
}

// TestLengthsTakeNoMemory: announced lengths cost nothing before data comes,
// except within the bounds of a connection.
func TestLengthsTakeNoMemory(t *testing.T) { // not parallel: it measures
	address, _ := serve(t, &Server{Exports: twoExports(t), MaxInFlightBytes: 1 << 20})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 20 {
		c := open(t, address, "disk", false)
		for range 100 {
			c.write(requestHeader(0, cmdRead, 1, 0, 1<<32-1))
			c.write(requestHeader(0, cmdRead, 1, 0, maxPayload)) // past the end
			c.answer(noData)
			c.answer(noData)
		}
		c.conn.Close()
		d := dial(t, address, modern)
		d.conn.Write(append([]byte("IHAVEOPT\x00\x00\x00\x07"), 0xff, 0xff, 0xff, 0xff))
		d.wantEnd()
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
		t.Errorf("took %d MiB", got>>20)
	}
}
