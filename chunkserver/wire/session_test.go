package wire

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

func dial(t *testing.T, address, session string) (*Conn, error) {
	t.Helper()
	c, err := Dial(t.Context(), DialTCP, address, Hello{Role: RoleGateway, Session: session}, silent())
	if err == nil {
		t.Cleanup(c.Close)
	}
	return c, err
}

// A session that calls again is welcomed only when everything that was read
// from its older connection has been handed on, and nothing of that one comes
// later.
func TestTakeover(t *testing.T) {
	t.Parallel()
	var handling, welcomed atomic.Bool
	var late atomic.Int32
	blocked := make(chan struct{})
	release := sync.OnceFunc(func() { close(blocked) })
	defer release()
	first := true
	address := serve(t, func(_ *Conn, hello Hello) (Handler, error) {
		if hello.Session != "s" || !first {
			welcomed.Store(hello.Session == "s")
			return echo(), nil
		}
		first = false
		return handle(func(*Request) {
			if welcomed.Load() {
				late.Add(1)
			}
			handling.Store(true)
			<-blocked
			if welcomed.Load() {
				late.Add(1)
			}
		}), nil
	})
	older, err := dial(t, address, "s")
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		older.Start(KindSubmit, make([]byte, 100), nil, func([]byte, error) {})
	}
	eventually(t, "the first request is being handed on", handling.Load)

	newer := make(chan error, 1)
	go func() {
		c, err := Dial(context.Background(), DialTCP, address, Hello{Session: "s"}, silent())
		if err == nil {
			_, err = c.Call(t.Context(), KindRead, nil, nil)
			c.Close()
		}
		newer <- err
	}()
	if other, err := dial(t, address, "another"); err != nil {
		t.Error(err)
	} else if _, err := other.Call(t.Context(), KindRead, nil, nil); err != nil {
		t.Errorf("another session is disturbed: %v", err)
	}
	select {
	case err := <-newer:
		t.Fatalf("welcomed too early: %v", err)
	case <-older.Done(): // the server has begun to drop it
	}
	select {
	case err := <-newer:
		t.Fatalf("welcomed too early: %v", err)
	case <-time.After(20 * time.Millisecond): // time enough to be wrong
	}
	release()
	if err := <-newer; err != nil {
		t.Errorf("the newer connection: %v", err)
	}
	if n := late.Load(); n != 0 {
		t.Errorf("%d requests of the older connection came late", n)
	}
}

// What Accept lets others ask at once comes behind the greeting.
func TestServerMayAskBeforeItHasAccepted(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 1)
	address := serve(t, func(c *Conn, _ Hello) (Handler, error) {
		c.Tell(KindPause, nil, nil)
		return silent(), nil
	})
	c, err := Dial(t.Context(), DialTCP, address, Hello{Session: "s"}, handle(func(*Request) { asked <- struct{}{} }))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-asked
}

func TestRefusedGreetings(t *testing.T) {
	t.Parallel()
	address := serve(t, func(_ *Conn, hello Hello) (Handler, error) {
		if hello.Session == "stray" {
			return nil, NotLeader("10.0.0.1:7000")
		}
		return echo(), nil
	})
	if _, err := dial(t, address, ""); !errors.Is(err, chunk.ErrInvalid) {
		t.Errorf("without a session: %v", err)
	}
	if _, err := dial(t, address, "stray"); !errors.Is(err, ErrNotLeader) || LeaderOf(err) != "10.0.0.1:7000" {
		t.Errorf("refused by Accept: %v", err)
	}
	hello, _ := json.Marshal(Hello{Version: Version + 1, Session: "s"})
	long, _ := json.Marshal(Hello{Version: Version, Session: strings.Repeat("s", 1<<17)})
	for name, test := range map[string]struct {
		sent []byte
		code Code // of the answer; codeOK: none
	}{
		"another version": {frame(header{kind: KindHello}, string(hello)), codeInvalid},
		"too long":        {frame(header{kind: KindHello}, string(long)), codeOK},
		"another kind":    {frame(header{kind: KindRead}, string(hello)), codeOK},
		"not JSON":        {frame(header{kind: KindHello}, "hello"), codeOK},
		"garbage":         {[]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), codeOK},
		"cut short":       {[]byte{1, 2}, codeOK},
	} {
		nc, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		go func() { // a refused peer may not take it all
			nc.Write(test.sent)
			nc.(*net.TCPConn).CloseWrite()
		}()
		h, _, err := newReader(nc).readFrame()
		if h.code != test.code || (err == nil) != (test.code != codeOK) {
			t.Errorf("%s: answered with %+v, %v", name, h, err)
		}
		nc.Close()
	}
	if c, err := dial(t, address, "s"); err != nil {
		t.Error(err)
	} else if _, err := c.Call(t.Context(), KindRead, nil, nil); err != nil {
		t.Errorf("a good session afterwards: %v", err)
	}
}

func TestServerGivesUpOnSilence(t *testing.T) {
	t.Parallel()
	address := serve(t, func(*Conn, Hello) (Handler, error) { return echo(), nil })
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	began := time.Now()
	nc.SetReadDeadline(began.Add(4 * helloTimeout))
	if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after %v of silence: %v", time.Since(began), err)
	}
}

func TestDialFails(t *testing.T) {
	t.Parallel()
	answer := func(b []byte) Dialer {
		return func(context.Context, string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() {
				defer far.Close()
				newReader(far).readFrame()
				far.Write(b)
			}()
			return near, nil
		}
	}
	for name, test := range map[string]struct {
		dial Dialer
		want error
	}{
		"refused by the network": {func(context.Context, string) (net.Conn, error) { return nil, unix.ECONNREFUSED }, ErrUnavailable},
		"hung up":                {answer(nil), ErrUnavailable},
		"another kind":           {answer(frame(header{kind: KindRead, flags: flagReply}, "")), chunk.ErrInvalid},
		"not a reply":            {answer(frame(header{kind: KindHello}, "")), chunk.ErrInvalid},
		"refused":                {answer(frame(header{kind: KindHello, flags: flagReply, code: codeForeign}, "who?")), ErrForeign},
	} {
		if _, err := Dial(t.Context(), test.dial, "x", Hello{}, silent()); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	near, far := net.Pipe() // nobody answers
	defer far.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := Dial(ctx, func(context.Context, string) (net.Conn, error) { return near, nil }, "x", Hello{}, silent())
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("no answer: %v", err)
	}
}

// Serve returns when nothing runs any more, whatever its connections do.
func TestServeStopsAndWaits(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var working atomic.Int32
	s := &Server{
		Accept: func(*Conn, Hello) (Handler, error) {
			return handle(func(r *Request) {
				working.Add(1)
				r.Go(func(ctx context.Context) {
					<-ctx.Done()
					time.Sleep(10 * time.Millisecond) // time enough for Serve to be wrong
					working.Add(-1)
				})
			}), nil
		},
		Log: slog.New(slog.DiscardHandler),
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, ln) }()
	mute, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	for _, session := range []string{"a", "b", "a"} {
		c, err := dial(t, ln.Addr().String(), session)
		if err != nil {
			t.Fatal(err)
		}
		c.Start(KindRead, nil, nil, func([]byte, error) {})
	}
	eventually(t, "both sessions' latest requests are worked on", func() bool { return working.Load() >= 2 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := working.Load(); n != 0 {
		t.Errorf("%d requests are still being worked on", n)
	}
	if len(s.sessions) != 0 || len(s.conns) != 0 {
		t.Errorf("%d sessions and %d connections are left", len(s.sessions), len(s.conns))
	}
}

// fickle fails to accept now and then.
type fickle struct {
	net.Listener
	failures []error
}

func (f *fickle) Accept() (net.Conn, error) {
	if len(f.failures) > 0 {
		err := f.failures[0]
		f.failures = f.failures[1:]
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	return f.Listener.Accept()
}

func TestServeOutlastsAShortage(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{
		Accept: func(*Conn, Hello) (Handler, error) { return echo(), nil },
		Log:    slog.New(slog.DiscardHandler),
	}
	done := make(chan error)
	go func() { done <- s.Serve(t.Context(), &fickle{ln, []error{unix.EMFILE, unix.ECONNABORTED}}) }()
	c, err := dial(t, ln.Addr().String(), "s")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Call(t.Context(), KindRead, nil, nil); err != nil {
		t.Error(err)
	}
	ln.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a listener that broke: %v", err)
	}
}

func TestTCPConnectionsAreWatched(t *testing.T) {
	t.Parallel()
	client, server := pair(t, silent(), silent())
	for _, c := range []*Conn{client, server} {
		raw, err := c.nc.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			timeout, _ := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			probes, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			if timeout != int(silence.Milliseconds()) || probes != 1 {
				t.Errorf("user timeout %d ms, keep-alive %d", timeout, probes)
			}
		})
	}
}
