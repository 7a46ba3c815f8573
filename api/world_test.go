package api

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/cluster"
	"github.com/localsnap/localsnap/fsm"
)

// epoch is when the tests' clocks start.
var epoch = time.UnixMicro(1_700_000_000_000_000)

// clock goes on by a second whenever it is looked at.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(time.Second)
	return c.now
}

// world is the metadata of a cluster of one, which always leads.
type world struct {
	mu  sync.Mutex
	fsm *fsm.FSM
}

// newWorld returns a cluster with some settings, and checks it at the end.
func newWorld(t testing.TB, change func(*fsm.Settings)) *world {
	t.Helper()
	f, err := fsm.Open(filepath.Join(t.TempDir(), "fsm.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Check(); err != nil {
			t.Errorf("Check: %v", err)
		}
		if err := f.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	w := &world{fsm: f}
	settings := fsm.DefaultSettings(uuid.New())
	change(&settings)
	w.must(t, fsm.InitCluster{Time: uint64(epoch.UnixMicro()), Settings: settings})
	return w
}

func (w *world) Do(_ context.Context, c fsm.Command) (any, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.fsm.Apply([]fsm.Entry{{Index: w.fsm.Applied() + 1, Data: fsm.Encode(c)}})[0]
	return r.Value, r.Err
}

func (w *world) Read(_ context.Context, fn func(*fsm.State) error) error { return w.fsm.View(fn) }

func (w *world) Leader() (string, bool, bool) { return "", true, true }

func (w *world) Presences() (map[chunk.NodeID]cluster.Presence, error) {
	return map[chunk.NodeID]cluster.Presence{1: {Silent: time.Millisecond, Used: 4096, Free: 8192}}, nil
}

func (w *world) Verify(context.Context) (map[chunk.CopysetID]cluster.Verdict, error) {
	return map[chunk.CopysetID]cluster.Verdict{0: cluster.Identical}, nil
}

// must carries out a command that no request stands for.
func (w *world) must(t testing.TB, c fsm.Command) any {
	t.Helper()
	value, err := w.Do(t.Context(), c)
	if err != nil {
		t.Fatalf("%#v: %v", c, err)
	}
	return value
}

// volume returns the volume at a path.
func (w *world) volume(t testing.TB, path string) (v fsm.Volume) {
	t.Helper()
	err := w.fsm.View(func(s *fsm.State) (err error) {
		v, err = s.Volume(fsm.Root, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// member is the metadata as one server of several sees it: what is not set
// belongs to a server that knows no leader.
type member struct {
	mu     sync.Mutex
	looks  int    // how often Leader was called
	leader string // address
	self   bool
	do     func(context.Context, fsm.Command) (any, error)
	read   func(context.Context) error
}

func (m *member) Do(ctx context.Context, c fsm.Command) (any, error) {
	m.mu.Lock()
	do := m.do
	m.mu.Unlock()
	if do == nil {
		return nil, cluster.ErrNotLeader
	}
	return do(ctx, c)
}

func (m *member) Read(ctx context.Context, _ func(*fsm.State) error) error {
	m.mu.Lock()
	read := m.read
	m.mu.Unlock()
	if read == nil {
		return cluster.ErrNotLeader
	}
	return read(ctx)
}

func (m *member) Leader() (string, bool, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looks++
	return m.leader, m.self, m.self || m.leader != ""
}

func (m *member) Presences() (map[chunk.NodeID]cluster.Presence, error) {
	return nil, cluster.ErrNotLeader
}

func (m *member) Verify(context.Context) (map[chunk.CopysetID]cluster.Verdict, error) {
	return nil, cluster.ErrNotLeader
}

// looked waits until the leader was looked for so many times.
func (m *member) looked(t testing.TB, times int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for tick := time.NewTicker(time.Millisecond); ; {
		m.mu.Lock()
		looks := m.looks
		m.mu.Unlock()
		if looks >= times {
			tick.Stop()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the leader was looked for %d times, want %d", looks, times)
		}
	}
}

// lead makes this server the leader.
func (m *member) lead(do func(context.Context, fsm.Command) (any, error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leader, m.self, m.do = "", true, do
}

// follow makes another server the leader.
func (m *member) follow(address string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leader, m.self = address, false
}

// do answers one request without a network.
func do(h http.Handler, r *http.Request) *http.Response {
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, r)
	return recorder.Result()
}

// body returns what a response says.
func body(t testing.TB, r *http.Response) string {
	t.Helper()
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
