package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is a server that answers with what it was told, one after the other, and
// the last for ever.
type peer struct {
	*httptest.Server
	mu       sync.Mutex
	answers  []answer
	requests []*http.Request
}

type answer struct {
	status int
	body   string
}

var (
	done     = answer{200, `{"Code":"0","Message":"Exec success.","RequestId":"r"}`}
	refused  = answer{500, `{"Code":"-8","Message":"File not exist.","RequestId":"r","Detail":"no /v"}`}
	stopping = answer{500, `{"Code":"-4","Message":"Service is stop","RequestId":"r","Detail":"stopping"}`}
	gateway  = answer{502, `<html>Bad Gateway</html>`}
	cutOff   = answer{0, `{"Code":"0","Mess`}
)

func newPeer(t *testing.T, answers ...answer) *peer {
	p := &peer{answers: answers}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

func (p *peer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	a := p.answers[min(len(p.requests), len(p.answers)-1)]
	p.requests = append(p.requests, r)
	p.mu.Unlock()
	if a == cutOff {
		w.Header().Set("Content-Length", "1000")
		fmt.Fprint(w, a.body)
		return
	}
	if a.status == http.StatusFound {
		w.Header().Set("Location", "/elsewhere")
	}
	w.WriteHeader(a.status)
	fmt.Fprint(w, a.body)
}

func (p *peer) asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.requests)
}

// newClient returns a client that leaves no connections behind.
func newClient(t *testing.T, servers ...string) *Client {
	c := New(servers...)
	t.Cleanup(c.HTTP.CloseIdleConnections)
	return c
}

// nobody returns an address at which nothing listens.
func nobody(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestAsksUntilThereIsAnAnswer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		first, second []answer
		asked         [2]int
	}{
		"at once":           {[]answer{done}, []answer{done}, [2]int{1, 0}},
		"the other":         {[]answer{stopping}, []answer{done}, [2]int{1, 1}},
		"a load balancer":   {[]answer{gateway}, []answer{done}, [2]int{1, 1}},
		"a reply cut off":   {[]answer{cutOff}, []answer{done}, [2]int{1, 1}},
		"after a while":     {[]answer{stopping, stopping, done}, []answer{stopping}, [2]int{3, 2}},
		"not what is wrong": {[]answer{refused}, []answer{done}, [2]int{1, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, second := newPeer(t, c.first...), newPeer(t, c.second...)
			err := newClient(t, first.URL, second.URL).DeleteFile(t.Context(), DeleteFileRequest{User: "ann", File: "/v"})
			if wrong := c.first[0] == refused; (err != nil) != wrong {
				t.Errorf("error: %v", err)
			}
			if asked := [2]int{first.asked(), second.asked()}; asked != c.asked {
				t.Errorf("the servers were asked %v times, want %v", asked, c.asked)
			}
		})
	}
}

func TestStaysWithTheServerThatAnswered(t *testing.T) {
	t.Parallel()
	dead, alive := nobody(t), newPeer(t, done)
	c := newClient(t, dead, strings.TrimPrefix(alive.URL, "http://")+"/")
	for range 3 {
		if err := c.DeleteFile(t.Context(), DeleteFileRequest{User: "ann", File: "/v"}); err != nil {
			t.Fatal(err)
		}
	}
	if c.current.Load() != 1 || alive.asked() != 3 {
		t.Errorf("server %d, asked %d times", c.current.Load(), alive.asked())
	}
}

func TestRefusalsAreTyped(t *testing.T) {
	t.Parallel()
	_, err := newClient(t, newPeer(t, refused).URL).CreateSnapshot(t.Context(), CreateSnapshotRequest{})
	var e *Error
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Error{NotExist, "File not exist.", "no /v", "r"}, e); diff != "" {
		t.Error(diff)
	}
	if want := "CreateSnapshot: File not exist. (-8): no /v"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}

func TestNotAServer(t *testing.T) {
	t.Parallel()
	for name, a := range map[string]answer{
		"other JSON": {200, `{"hello":"world"}`},
		"a list":     {200, `[]`},
		"not found":  {404, `404 page not found`},
		"a redirect": {302, ``},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, a)
			err := newClient(t, p.URL).Flatten(t.Context(), FlattenRequest{User: "ann", File: "/v"})
			if err == nil || !strings.Contains(err.Error(), "no server of this service") || p.asked() != 1 {
				t.Errorf("asked %d times: %v", p.asked(), err)
			}
		})
	}
	if err := New().Flatten(t.Context(), FlattenRequest{}); err == nil {
		t.Error("no server answered")
	}
	if err := New("http://[").Flatten(t.Context(), FlattenRequest{}); err == nil {
		t.Error("a server without an address answered")
	}
}

// A context that ends, ends the trying; the error says why, and what the last
// try met.
func TestContextEndsTheTrying(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	p := newPeer(t, stopping)
	err := newClient(t, p.URL, p.URL).Flatten(ctx, FlattenRequest{User: "ann", File: "/v"})
	var e *Error
	if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &e) || e.Code != Stopped {
		t.Errorf("error: %v", err)
	}
	if p.asked() < 2 {
		t.Errorf("asked %d times", p.asked())
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := newClient(t, p.URL).Flatten(ended, FlattenRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
}

// All tries of one request bear one id, and another request bears another.
func TestRequestID(t *testing.T) {
	t.Parallel()
	p := newPeer(t, gateway, gateway, done)
	c := newClient(t, p.URL)
	for range 2 {
		if err := c.Flatten(t.Context(), FlattenRequest{User: "ann", File: "/v"}); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for _, r := range p.requests {
		ids = append(ids, r.Header.Get("X-Request-Id"))
	}
	if len(ids) != 4 || ids[0] == "" || ids[0] != ids[1] || ids[1] != ids[2] || ids[2] == ids[3] {
		t.Errorf("ids: %q", ids)
	}
}

func TestRepliesAreFilledIn(t *testing.T) {
	t.Parallel()
	// The first try leaves nothing behind.
	c := newClient(t, newPeer(t, stopping, answer{200, `{"Code":"0","Message":"Exec success.","RequestId":"r","TotalCount":7,"TaskInfos":[
		{"UUID":"u","User":"ann","File":"/c","Src":"s","TaskType":1,"TaskStatus":7,"Time":1700000000000001,"IsLazy":true,"FileType":1,"NextStep":0,"Progress":5}]}`}).URL)
	got, err := c.GetCloneTasks(t.Context(), CloneTasksRequest{User: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	want := TasksReply{Reply{Code: OK, Message: "Exec success.", RequestID: "r"}, 7, []TaskInfo{{
		UUID: "u", User: "ann", File: "/c", Src: "s", TaskType: TaskRecover, TaskStatus: TaskMetaInstalled,
		Time: 1700000000000001, IsLazy: true, FileType: FromSnapshot, Progress: 5,
	}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestEncode(t *testing.T) {
	t.Parallel()
	zero, deleting := SnapshotDone, SnapshotDeleting
	for want, request := range map[string]any{
		"User=ann&File=%2Fa%20b%2B%26%3D%E5%8D%B7&Size=18446744073709551615": CreateFileRequest{
			User: "ann", File: "/a b+&=卷", Size: 1<<64 - 1},
		"User=ann&Dir=%2F&Limit=5&Offset=10": ListFileRequest{User: "ann", Dir: "/", Page: Page{5, 10}},
		"User=ann&File=%2Fv&Name=s&Readonly=true&Lazy=false&Destination=%2Fc": CloneRequest{
			User: "ann", File: "/v", Name: "s", Readonly: true, Destination: "/c"},
		"Readonly=false&Source=%2Fv&Lazy=true":      CloneRequest{Source: "/v", Lazy: true},
		"Status=0":                                  SnapshotListRequest{Status: &zero},
		"Status=2&Limit=1":                          SnapshotListRequest{Status: &deleting, Page: Page{Limit: 1}},
		"User=ann&File=%2Fv&StripeUnit=1&PoolSet=p": CreateFileRequest{User: "ann", File: "/v", StripeUnit: 1, PoolSet: "p"},
	} {
		if got := encode("A", request); got != "Action=A&Version=1.5&"+want {
			t.Errorf("%+v is %s, want %s", request, got, want)
		}
	}
}
