package api

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/cluster"
	"github.com/localsnap/localsnap/fsm"
)

const makeDir = servicePath + "?Action=CreateDir&Version=1.5&User=ann&File=/d"

// listing is a query, for what only commands can't show.
const listing = servicePath + "?Action=ListFile&Version=1.5&User=ann&Dir=/"

// startServer serves a member and counts the requests that reach it.
func startServer(t *testing.T, m *member, timeout time.Duration) (address string, requests *atomic.Int32) {
	t.Helper()
	service := (&Server{Metadata: m, Timeout: timeout}).service(nil)
	handler := service.routes()
	requests = new(atomic.Int32)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		service.peers.CloseIdleConnections()
		server.Close()
	})
	return server.Listener.Addr().String(), requests
}

// ask sends a request over the network, under the id "id".
func ask(t *testing.T, address, target string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, "http://"+address+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(headerRequestID, "id")
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	return response, body(t, response)
}

// expect makes sure that a reply has a code, and a Detail that says something.
func expect(t *testing.T, reply string, code client.Code, detail string) {
	t.Helper()
	if !strings.Contains(reply, fmt.Sprintf(`"Code":"%d"`, code)) || !strings.Contains(reply, detail) {
		t.Errorf("reply %s, want code %d, %q", reply, code, detail)
	}
}

// made answers a command as a leader does.
func made(context.Context, fsm.Command) (any, error) { return fsm.Directory{}, nil }

func TestFollowerPassesOn(t *testing.T) {
	t.Parallel()
	leader, follower := &member{}, &member{}
	var got []fsm.Command
	var left time.Duration
	leader.lead(func(ctx context.Context, c fsm.Command) (any, error) {
		got = append(got, c)
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return nil, &fsm.Error{Kind: fsm.NotExist, Detail: "nowhere"}
	})
	at, passed := startServer(t, leader, time.Hour)
	follower.follow(at)
	from, _ := startServer(t, follower, time.Minute)

	response, reply := ask(t, from, makeDir+"%20%2b+")
	want := `{"Code":"-8","Message":"File not exist.","RequestId":"id","Detail":"nowhere"}` + "\n"
	if reply != want || response.StatusCode != 500 || response.Header.Get(headerRequestID) != "id" ||
		response.Header.Get("Content-Type") != "application/json" || response.ContentLength != int64(len(want)) {
		t.Errorf("reply %s with %d, %v", reply, response.StatusCode, response.Header)
	}
	if len(got) != 1 || got[0].(fsm.CreateDir).Path != "/d ++" || passed.Load() != 1 {
		t.Errorf("the leader did %#v in %d requests", got, passed.Load())
	}
	if left > time.Minute || left < time.Minute/2 {
		t.Errorf("the leader has %v left of a minute", left)
	}
}

// Two servers that take each other for the leader don't pass a request to and
// fro.
func TestRequestIsPassedOnOnce(t *testing.T) {
	t.Parallel()
	a, b := &member{}, &member{}
	atA, reachedA := startServer(t, a, 200*time.Millisecond)
	atB, reachedB := startServer(t, b, 200*time.Millisecond)
	a.follow(atB)
	b.follow(atA)
	response, reply := ask(t, atA, makeDir)
	expect(t, reply, client.Stopped, "no leader was found")
	if response.StatusCode != 500 || reachedA.Load() != 1 || reachedB.Load() < 1 {
		t.Errorf("A was asked %d times, B %d times", reachedA.Load(), reachedB.Load())
	}
}

func TestNewLeaderIsFound(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().String()
	l.Close()

	leader := &member{}
	leader.lead(made)
	alive, _ := startServer(t, leader, 0)
	stranger, _ := startServer(t, &member{}, 0)
	for name, before := range map[string]func(*member){
		"none was known": func(*member) {},
		"it died":        func(m *member) { m.follow(dead) },
		"it is another":  func(m *member) { m.follow(stranger) },
		"it was this one": func(m *member) {
			m.lead(func(context.Context, fsm.Command) (any, error) { return nil, cluster.ErrNotLeader })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := &member{}
			before(m)
			from, _ := startServer(t, m, 0)
			var reply string
			var answered sync.WaitGroup
			answered.Go(func() { _, reply = ask(t, from, makeDir) })
			m.looked(t, 2)
			m.follow(alive)
			answered.Wait()
			expect(t, reply, client.OK, "")
		})
	}
}

func TestNoLeaderInTime(t *testing.T) {
	t.Parallel()
	from, _ := startServer(t, &member{}, 50*time.Millisecond)
	for _, target := range []string{makeDir, listing} {
		response, reply := ask(t, from, target)
		expect(t, reply, client.Stopped, "no leader was found")
		if response.StatusCode != 500 {
			t.Errorf("status %d", response.StatusCode)
		}
	}
	// A malformed request needs no leader to be refused.
	_, reply := ask(t, from, servicePath+"?Action=CreateDir&Version=1.5&User=ann")
	expect(t, reply, client.BadRequest, "parameter File")
}

// When it isn't known whether a command took effect, it isn't tried again, and
// the reply says so.
func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	var tries atomic.Int32
	lost, hangs, follower := &member{}, &member{}, &member{}
	lost.lead(func(context.Context, fsm.Command) (any, error) {
		tries.Add(1)
		return nil, fmt.Errorf("apply: %w: leadership lost", cluster.ErrUnknown)
	})
	hangs.lead(func(ctx context.Context, _ fsm.Command) (any, error) {
		<-ctx.Done()
		return nil, fmt.Errorf("apply: %w: %w", cluster.ErrUnknown, ctx.Err())
	})
	hangs.read = func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	atLost, _ := startServer(t, lost, 0)
	_, reply := ask(t, atLost, makeDir)
	expect(t, reply, client.Stopped, "may have taken effect")
	if tries.Load() != 1 {
		t.Errorf("tried %d times", tries.Load())
	}

	atHanging, passed := startServer(t, hangs, 50*time.Millisecond)
	follower.follow(atHanging)
	from, _ := startServer(t, follower, 50*time.Millisecond)
	for i, target := range []string{makeDir, listing} {
		_, reply = ask(t, atHanging, target)
		expect(t, reply, client.Stopped, "may have taken effect")
		_, reply = ask(t, from, target)
		expect(t, reply, client.Stopped, "may have taken effect")
		if want := int32(2 * (i + 1)); passed.Load() != want {
			t.Errorf("asked %d times, want %d", passed.Load(), want)
		}
	}
}

// A leader that dies with the request is not asked again by the follower.
func TestLeaderDiesWithTheRequest(t *testing.T) {
	t.Parallel()
	var tries atomic.Int32
	leader := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		// The connection has served a request, as one that is kept open has:
		// that is when a library may try again by itself.
		if tries.Add(1) == 1 {
			fmt.Fprintln(w, `{"Code":"0"}`)
			return
		}
		panic(http.ErrAbortHandler)
	}))
	defer leader.Close()
	follower := &member{}
	follower.follow(leader.Listener.Addr().String())
	from, _ := startServer(t, follower, 0)
	ask(t, from, makeDir)
	_, reply := ask(t, from, makeDir)
	expect(t, reply, client.Stopped, "may have taken effect")
	if tries.Load() != 2 {
		t.Errorf("the leader was asked %d times", tries.Load())
	}
}

// A reply that breaks off is not taken for whole.
func TestReplyIsCutOff(t *testing.T) {
	t.Parallel()
	leader := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		fmt.Fprint(w, `{"Code":"0"`)
	}))
	defer leader.Close()
	follower := &member{}
	follower.follow(leader.Listener.Addr().String())
	from, _ := startServer(t, follower, 0)
	response, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(httptest.NewRequest(http.MethodGet, "http://"+from+makeDir, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if got, err := io.ReadAll(response.Body); err == nil {
		t.Errorf("read %q without an error", got)
	}
}

func TestTimeLeft(t *testing.T) {
	t.Parallel()
	s := (&Server{Timeout: time.Second}).service(nil)
	for header, want := range map[string]struct {
		left      time.Duration
		forwarded bool
	}{
		"": {time.Second, false}, "300ms": {300 * time.Millisecond, true}, "1h": {time.Second, true},
		"-1s": {-time.Second, true}, "nonsense": {time.Second, true},
	} {
		r := httptest.NewRequest(http.MethodGet, makeDir, nil)
		r.Header.Set(headerForwarded, header)
		if left, forwarded := s.left(r); left != want.left || forwarded != want.forwarded {
			t.Errorf("%q: %v, %v", header, left, forwarded)
		}
	}
}
