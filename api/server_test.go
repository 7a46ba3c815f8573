package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/fsm"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a Server at work on a listener of its own.
type running struct {
	address string
	stop    context.CancelFunc
	done    chan error // what Run returned
}

func run(t *testing.T, s *Server) *running {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &running{l.Addr().String(), stop, make(chan error, 1)}
	go func() { r.done <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-r.done; err != nil {
			t.Errorf("Run: %v", err)
		}
		r.done <- nil
	})
	return r
}

// wait returns when Run has returned.
func (r *running) wait() {
	err := <-r.done
	r.done <- err
}

func TestRequestIsFinishedBeforeTheServerStops(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}), make(chan struct{})
	m := &member{}
	m.lead(func(context.Context, fsm.Command) (any, error) {
		close(begun)
		<-finish
		return fsm.Directory{}, nil
	})
	server := run(t, &Server{Metadata: m})
	reply := make(chan string)
	go func() {
		_, text := ask(t, server.address, makeDir)
		reply <- text
	}()
	<-begun
	server.stop()
	select {
	case err := <-server.done:
		t.Fatalf("Run returned %v while a request was under way", err)
	case text := <-reply:
		t.Fatalf("%s before the command was done", text)
	default:
	}
	close(finish)
	expect(t, <-reply, client.OK, "")
	server.wait()
	if conn, err := net.Dial("tcp", server.address); err == nil {
		conn.Close()
		t.Error("a connection was accepted after Run returned")
	}
}

func TestWaitingRequestsAreToldOfTheStop(t *testing.T) {
	t.Parallel()
	m := &member{}
	server := run(t, &Server{Metadata: m, Timeout: time.Hour})
	reply := make(chan string)
	go func() {
		_, text := ask(t, server.address, makeDir)
		reply <- text
	}()
	m.looked(t, 1)
	server.stop()
	expect(t, <-reply, client.Stopped, "this server is stopping")
	server.wait()
}

// A server that has stopped holds no connection to another.
func TestStoppedServerLetsGoOfItsPeers(t *testing.T) {
	t.Parallel()
	closed := make(chan struct{}, 1)
	leader := httptest.NewUnstartedServer(http.NotFoundHandler())
	leader.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			closed <- struct{}{}
		}
	}
	leader.Start()
	defer leader.Close()
	m := &member{}
	m.follow(leader.Listener.Addr().String())
	server := run(t, &Server{Metadata: m})
	ask(t, server.address, makeDir)
	server.stop()
	server.wait()
	select {
	case <-closed:
	case <-time.After(idlePeerTimeout / 3):
		t.Error("the connection to the leader is still open")
	}
}

func TestStoppingServer(t *testing.T) {
	t.Parallel()
	stopping := make(chan struct{})
	m := &member{}
	m.lead(made)
	h := (&Server{Metadata: m}).service(stopping).routes()
	expect(t, body(t, do(h, httptest.NewRequest(http.MethodGet, makeDir, nil))), client.OK, "")
	close(stopping)
	expect(t, body(t, do(h, httptest.NewRequest(http.MethodGet, makeDir, nil))), client.Stopped, "this server is stopping")
	passedOn := httptest.NewRequest(http.MethodGet, makeDir, nil)
	passedOn.Header.Set(headerForwarded, "1s")
	if r := do(h, passedOn); r.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("a request passed on: %d", r.StatusCode)
	}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 503, "/leader": 503} {
		if r := do(h, httptest.NewRequest(http.MethodGet, path, nil)); r.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, r.StatusCode, want)
		}
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	leader, follower, lost := &member{}, &member{}, &member{}
	leader.lead(made)
	follower.follow("10.0.0.1:5555")
	for _, c := range []struct {
		m    *member
		path string
		want int
	}{
		{leader, "/healthz", 200}, {leader, "/readyz", 200}, {leader, "/leader", 200},
		{follower, "/healthz", 200}, {follower, "/readyz", 200}, {follower, "/leader", 503},
		{lost, "/healthz", 200}, {lost, "/readyz", 503}, {lost, "/leader", 503},
	} {
		h := (&Server{Metadata: c.m}).Handler()
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			if r := do(h, httptest.NewRequest(method, c.path, nil)); r.StatusCode != c.want {
				t.Errorf("%s %s: %d, want %d", method, c.path, r.StatusCode, c.want)
			}
		}
		if r := do(h, httptest.NewRequest(http.MethodPost, c.path, nil)); r.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %d", c.path, r.StatusCode)
		}
	}
}

func TestAnyMethod(t *testing.T) {
	t.Parallel()
	m := &member{}
	m.lead(made)
	h := (&Server{Metadata: m}).Handler()
	for _, method := range methods {
		r := httptest.NewRequest(method, makeDir, strings.NewReader("Action=DeleteFile&a body is=ignored"))
		expect(t, body(t, do(h, r)), client.OK, "")
	}
	for _, path := range []string{"/", "/SnapshotCloneService/", "/snapshotcloneservice", "/SnapshotCloneService/x", "/.."} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL.Path = path
		if got := do(h, r); got.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", path, got.StatusCode)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	m := &member{}
	m.lead(made)
	h := (&Server{Metadata: m}).Handler()
	for id, taken := range map[string]bool{
		exampleUUID: true, "a": true, "A.b_c:d-9": true, strings.Repeat("x", 128): true,
		"": false, strings.Repeat("x", 129): false, "a b": false, `a"b`: false, "a\nb": false, "ü": false,
	} {
		r := httptest.NewRequest(http.MethodGet, makeDir, nil)
		r.Header.Set(headerRequestID, id)
		response := do(h, r)
		got := response.Header.Get(headerRequestID)
		if taken != (got == id) || !taken && !anyUUID.MatchString(got) {
			t.Errorf("%q became %q", id, got)
		}
		expect(t, body(t, response), client.OK, `"RequestId":"`+got+`"`)
	}
}

// What nobody foresaw is logged under the request's id, and not told.
func TestInternalError(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(context.Context, fsm.Command) (any, error){
		"an error":       func(context.Context, fsm.Command) (any, error) { return nil, errors.New("secret") },
		"a wrong answer": func(context.Context, fsm.Command) (any, error) { return "secret", nil },
	} {
		var log bytes.Buffer
		m := &member{}
		m.lead(do)
		h := (&Server{Metadata: m, Log: slog.New(slog.NewTextHandler(&log, nil))}).Handler()
		r := httptest.NewRequest(http.MethodGet, servicePath+"?Action=CreateSnapshot&Version=1.5&User=ann&File=/v&Name=s", nil)
		r.Header.Set(headerRequestID, "id")
		recorder := httptest.NewRecorder()
		h.ServeHTTP(recorder, r)
		want := `{"Code":"-1","Message":"Internal error.","RequestId":"id"}` + "\n"
		if got := recorder.Body.String(); got != want || recorder.Code != 500 {
			t.Errorf("%s: %d, %s", name, recorder.Code, got)
		}
		if !strings.Contains(log.String(), "request=id") || !strings.Contains(log.String(), "error=") {
			t.Errorf("%s: log %s", name, log.String())
		}
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	t.Parallel()
	server := run(t, &Server{Metadata: &member{}, MaxConns: 1})
	get := func(conn net.Conn) string {
		if _, err := fmt.Fprint(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return err.Error()
		}
		return line
	}
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", server.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	first, second := dial(), dial()
	if line := get(first); !strings.Contains(line, "200 OK") {
		t.Fatalf("first connection: %s", line)
	}
	if err := second.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if line := get(second); !strings.Contains(line, "timeout") {
		t.Errorf("second connection beside the first: %s", line)
	}
	if err := errors.Join(first.Close(), second.SetReadDeadline(time.Now().Add(10*time.Second))); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(second).ReadString('\n'); !strings.Contains(line, "200 OK") {
		t.Errorf("second connection after the first: %s, %v", line, err)
	}
}

func TestHeadersAreLimited(t *testing.T) {
	t.Parallel()
	server := run(t, &Server{Metadata: &member{}})
	r, err := http.NewRequest(http.MethodGet, "http://"+server.address+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X", strings.Repeat("x", 2*maxHeaderBytes))
	response, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d", response.StatusCode)
	}
}

// A listener that fails ends Run.
func TestListenerFails(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := (&Server{Metadata: &member{}}).Run(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
}
