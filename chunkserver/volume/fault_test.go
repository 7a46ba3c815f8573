package volume

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// once is a fault that befalls the first operation only.
func once(f fault) func(*chunk.Op) (fault, error) {
	first := true
	return func(*chunk.Op) (fault, error) {
		if !first {
			return carryOut, nil
		}
		first = false
		return f, nil
	}
}

func (c *cluster) setFault(f func(*chunk.Op) (fault, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = f
}

func TestWriteIsRepeatedWhenItsConnectionIsLost(t *testing.T) {
	t.Parallel()
	for f, applied := range map[fault]int{loseRequest: 1, loseReply: 2} {
		c := newCluster(t, 64*mib, chunk.Layout{})
		v := c.attach()
		c.setFault(once(f))
		p := pattern(9, 4096)
		write(t, v, p, 8192)
		if got := read(t, v, 8192, 4096); !bytes.Equal(got, p) {
			t.Error("read something else than was written")
		}
		if n := len(c.history()); n != applied {
			t.Errorf("fault %d: the write was carried out %d times, want %d", f, n, applied)
		}
	}
}

func TestUnansweredRequestIsRepeated(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	s := c.session()
	s.patience = backoff{least: 20 * time.Millisecond, most: time.Second}
	v, err := s.Attach(t.Context(), "/v", "", false)
	if err != nil {
		t.Fatal(err)
	}
	c.setFault(once(hang))
	write(t, v, pattern(1, 4096), 0)
}

// A chunkserver that has stopped answers nothing, but its connection lives.
func TestUnansweredRequestMovesWithThePrimary(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	s := c.session()
	s.patience = backoff{least: time.Hour, most: time.Hour}
	v, err := s.Attach(t.Context(), "/v", "", false)
	if err != nil {
		t.Fatal(err)
	}
	p := pattern(1, 4096)
	write(t, v, p, 0) // so that there is a connection
	stopped := c.set[chunk.Locate(testVolume, 0, copysets)].Primary
	hung := make(chan struct{})
	c.setFault(func(*chunk.Op) (fault, error) {
		close(hung)
		return hang, nil
	})
	written := make(chan error)
	go func() { written <- v.WriteAt(t.Context(), p, 0) }()
	<-hung
	c.setFault(nil)
	for id, set := range c.set {
		if set.Primary == stopped {
			c.move(id, stopped%3+1)
		}
	}
	m, _ := c.readMap()
	body, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	c.gateway.Tell(wire.KindMapped, body, nil)
	if err := <-written; err != nil {
		t.Error(err)
	}
	c.gateway.Tell(wire.KindMapped, []byte("{}"), nil) // is not taken in
	write(t, v, p, 0)
}

func TestFollowsThePrimary(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	v := c.attach()
	for round := range byte(5) {
		p := pattern(round, 4*mib)
		write(t, v, p, 14*mib)
		for id := range copysets {
			c.move(id, chunk.NodeID((id+int(round))%3+1))
		}
		if got := read(t, v, 14*mib, 4*mib); !bytes.Equal(got, p) {
			t.Fatal("read something else than was written")
		}
	}
}

func TestWaitsForAChunkserverToReturn(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	v := c.attach()
	write(t, v, pattern(1, 4096), 0)
	for _, name := range []string{"c1", "c2", "c3"} {
		c.hosts[name].down()
	}
	c.mu.Lock()
	before := c.maps
	c.mu.Unlock()
	written := make(chan error)
	go func() { written <- v.WriteAt(t.Context(), pattern(2, 4096), 0) }()
	c.eventually("the map is read again and again", func() bool { return c.maps > before+3 })
	select {
	case err := <-written:
		t.Fatalf("written without chunkservers: %v", err)
	default:
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := v.ReadAt(ctx, make([]byte, 4096), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read without chunkservers: %v", err)
	}
	for _, name := range []string{"c1", "c2", "c3"} {
		c.hosts[name].up()
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	if got := read(t, v, 0, 4096); !bytes.Equal(got, pattern(2, 4096)) {
		t.Error("read something else than was written")
	}
}

// With the leader gone, I/O goes on, also across lost connections.
func TestWorksWithoutALeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	v := c.attach()
	c.hosts["m1"].down()
	c.hosts["m2"].down()
	for i := range byte(5) {
		write(t, v, pattern(i, 3*4096), 16*mib-4096)
		if got := read(t, v, 16*mib-4096, 3*4096); !bytes.Equal(got, pattern(i, 3*4096)) {
			t.Fatal("read something else than was written")
		}
		for _, name := range []string{"c1", "c2", "c3"} {
			c.hosts[name].cut()
		}
	}
}

func TestReadsTheMapAnewWhenItAttaches(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	s := c.session()
	for want := 1; want <= 3; want++ {
		if _, err := s.Attach(t.Context(), "/v", "", true); err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		if c.maps != want {
			t.Errorf("the map was read %d times after attaching %d times", c.maps, want)
		}
		c.mu.Unlock()
	}
}

func TestAttachGivesBackWhatItCantUse(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	c.onMap = func() error { return wire.ErrUnavailable }
	s := c.session()
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := s.Attach(ctx, "/v", "", false)
		failed <- err
	}()
	c.eventually("the map is asked for", func() bool { return c.maps > 0 })
	cancel()
	if err := <-failed; err == nil {
		t.Fatal("attached without a map")
	}
	c.eventually("the attachment is given back", func() bool { return len(c.attached) == 0 })
}

// A leader that says that it leads no more is left for another.
func TestLeavesALeaderThatLeadsNoMore(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	c.onMap = func() error {
		if c.led == 1 {
			return wire.NotLeader("m1")
		}
		return nil
	}
	v := c.attach()
	write(t, v, pattern(1, 100), 0)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.led != 2 || c.resumes != 1 || c.last != 1 {
		t.Errorf("%d connections to leaders, %d resumes, %d attachments", c.led, c.resumes, c.last)
	}
}

func TestAttachmentThatComesTooLateIsGivenBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	asked, give := make(chan struct{}), make(chan struct{})
	c.onOpen = func() {
		close(asked)
		<-give
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := c.session().Attach(ctx, "/v", "", false); !errors.Is(err, context.Canceled) {
		t.Errorf("attached: %v", err)
	}
	close(give)
	c.eventually("the attachment is given and given back", func() bool { return c.last == 1 && len(c.attached) == 0 })
}

func TestMapNeverGoesBack(t *testing.T) {
	t.Parallel()
	newer := wire.Map{Copysets: []chunk.Copyset{{Epoch: 5, Primary: 1}, {ID: 1, Epoch: 2, Primary: 1}}}
	older := wire.Map{Copysets: []chunk.Copyset{{Epoch: 4, Primary: 2}, {ID: 1, Epoch: 3, Primary: 2}}}
	answers := []wire.Map{newer, older, {}, {Copysets: make([]chunk.Copyset, 3)}, {Copysets: make([]chunk.Copyset, 4)}}
	a := atlas{ask: func(context.Context) (wire.Map, error) {
		m := answers[0]
		answers = answers[1:]
		return m, nil
	}}
	for range 2 {
		if _, err := a.read(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if set := a.newest.Load().Copysets; set[0].Epoch != 5 || set[0].Primary != 1 || set[1].Epoch != 3 {
		t.Errorf("after an older map: %+v", set)
	}
	for range 3 {
		if _, err := a.read(t.Context()); err == nil {
			t.Errorf("took in %d copysets", len(a.newest.Load().Copysets))
		}
	}
}

// A write that its caller gives up while its outcome is unknown keeps its
// blocks locked and a pause waiting until it has been repeated.
func TestGivenUpWriteIsFinishedInTheBackground(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		first   fault // of the write, which is refused from then on
		arrive  int   // tries before its caller gives up
		applied int
	}{{hang, 1, 2}, {loseReply, 3, 3}} {
		c := newCluster(t, 64*mib, chunk.Layout{})
		v := c.attach()
		arrived, maps := 0, 0
		c.setFault(func(op *chunk.Op) (fault, error) {
			if arrived++; arrived == test.arrive {
				maps = c.maps
			}
			switch {
			case op.Data[0] != 1:
				return carryOut, nil
			case arrived == 1:
				return test.first, nil
			}
			return carryOut, chunk.ErrNotReady
		})
		p := bytes.Repeat([]byte{1}, 4096)
		ctx, cancel := context.WithCancel(t.Context())
		given := make(chan error)
		go func() { given <- v.WriteAt(ctx, p, 0) }()
		c.eventually("the write has arrived, and its refusal was taken in", func() bool {
			return arrived >= test.arrive && (test.first == hang || c.maps > maps)
		})
		cancel()
		if err := <-given; !errors.Is(err, context.Canceled) {
			t.Fatalf("given-up write: %v", err)
		}
		clear(p) // the caller's again
		second := make(chan error)
		go func() { second <- v.WriteAt(t.Context(), bytes.Repeat([]byte{2}, 4096), 0) }()
		paused := make(chan error)
		go func() { paused <- c.call(t.Context(), wire.KindPause, wire.Pause{Attachment: 1}) }()
		c.eventually("the given-up write is repeated", func() bool { return arrived > test.arrive+3 })
		select {
		case err := <-second:
			t.Fatalf("an overlapping write went ahead: %v", err)
		case err := <-paused:
			t.Fatalf("paused with a write of unknown outcome: %v", err)
		default:
		}
		c.setFault(nil)
		if err := <-paused; err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		next := c.context(1)
		if got := c.blocks[blockID{chunk.Ref{Volume: testVolume}, 0}][1][0]; got != 1 {
			t.Errorf("repeated with %d, which is not what was written", got)
		}
		c.mu.Unlock()
		if err := c.call(t.Context(), wire.KindProceed, wire.Proceed{Attachment: 1, Context: next}); err != nil {
			t.Fatal(err)
		}
		if err := <-second; err != nil {
			t.Fatal(err)
		}
		if got := read(t, v, 0, 1); got[0] != 2 {
			t.Errorf("the block holds %d", got[0])
		}
		if n := len(c.history()); n != test.applied {
			t.Errorf("%d writes were carried out, want %d", n, test.applied)
		}
	}
}

// Whatever is stuck, closing the session gets everything out.
func TestSessionCloseEndsWhatIsStuck(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	s := c.session()
	v, err := s.Attach(t.Context(), "/v", "", false)
	if err != nil {
		t.Fatal(err)
	}
	arrived := 0
	c.setFault(func(*chunk.Op) (fault, error) { arrived++; return hang, nil })
	ctx, cancel := context.WithCancel(t.Context())
	stuck := make(chan error, 2)
	go func() { stuck <- v.WriteAt(ctx, make([]byte, 4096), 0) }()
	go func() { stuck <- v.WriteAt(t.Context(), make([]byte, 4096), 4096) }()
	c.eventually("both have arrived", func() bool { return arrived == 2 })
	cancel()
	if err := <-stuck; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	s.Close()
	if err := <-stuck; !errors.Is(err, ErrDetached) {
		t.Error(err)
	}
}

func TestCloseDoesNotReleaseWhatIsStuck(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	v := c.attach()
	arrived := 0
	c.setFault(func(*chunk.Op) (fault, error) { arrived++; return hang, nil })
	ctx, cancel := context.WithCancel(t.Context())
	stuck := make(chan error)
	go func() { stuck <- v.WriteAt(ctx, make([]byte, 4096), 0) }()
	c.eventually("it has arrived", func() bool { return arrived == 1 })
	cancel()
	<-stuck
	if err := v.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("close: %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.attached[1] {
		t.Error("released with a write in flight")
	}
}

var seed = flag.Uint64("seed", 0, "of the faults in TestModel; 0 takes a random one")

// Several writers, each the only one of its stretches of bytes, which share
// blocks; primaries move, connections break, replies are lost, writers are
// paused, snapshots taken, leaders change. Each writer finds what it wrote
// last, at every step and at the end.
func TestModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		layout := rapid.SampledFrom([]chunk.Layout{{}, {Unit: 8192, Count: 3}, {Unit: 1 << 20, Count: 2}}).Draw(t, "layout")
		const from, length = chunk.Size - 200_000, 400_000
		const writers = 4
		var stretches [writers][][2]uint64
		for at := uint64(from); at < from+length; {
			n := rapid.SampledFrom([]uint64{100, 512, 1000, 4096, 5000, 70_000}).Draw(t, "stretch")
			w := rapid.IntRange(0, writers-1).Draw(t, "writer")
			stretches[w] = append(stretches[w], [2]uint64{at, at + n})
			at += n
		}
		runModel(t, layout, stretches[:])
	})
}

func runModel(t *rapid.T, layout chunk.Layout, stretches [][][2]uint64) {
	const size = 2 * chunk.Size
	nemesis := *seed
	if nemesis == 0 {
		nemesis = rand.Uint64()
	}
	c := newCluster(t, size, layout)
	v := c.attach()
	model := make([]byte, size)
	stop := make(chan struct{})
	var faults, writers sync.WaitGroup
	var mu sync.Mutex
	var failures []string // rapid would show the last one only
	fail := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		failures = append(failures, fmt.Sprintf(format, args...))
	}
	faults.Go(func() { c.torment(rand.New(rand.NewPCG(nemesis, 0)), stop) })
	for w, mine := range stretches {
		if len(mine) == 0 {
			continue
		}
		rng := rand.New(rand.NewPCG(nemesis, uint64(w+1)))
		writers.Go(func() {
			for range 6 {
				s := mine[rng.IntN(len(mine))]
				off := s[0] + rng.Uint64N(s[1]-s[0])
				n := 1 + rng.Uint64N(s[1]-off)
				want := model[off : off+n]
				var err error
				switch rng.IntN(4) {
				case 0:
					clear(want)
					err = v.Zero(context.Background(), off, n)
				case 1:
					lo, hi := inner(off, off+n)
					clear(model[lo:hi])
					err = v.Discard(context.Background(), off, n)
				default:
					copy(want, pattern(byte(rng.Uint32()), int(n)))
					err = v.WriteAt(context.Background(), want, off)
				}
				got := make([]byte, s[1]-s[0])
				if err == nil {
					err = v.ReadAt(context.Background(), got, s[0])
				}
				if err != nil {
					fail("writer %d: %v", w, err)
					return
				}
				if !bytes.Equal(got, model[s[0]:s[1]]) {
					fail("writer %d: stretch %v is not what was written", w, s)
					return
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	faults.Wait()
	const from = size/2 - mib
	got := make([]byte, 2*mib)
	if err := v.ReadAt(context.Background(), got, from); err != nil {
		fail("read it all: %v", err)
	}
	if !bytes.Equal(got, model[from:from+2*mib]) {
		fail("the volume is not what was written")
	}
	if !slices.IsSortedFunc(c.history(), chunk.Token.Compare) {
		fail("operations were carried out in the order %v", c.history())
	}
	if len(failures) > 0 {
		t.Fatalf("%s\nthe faults were those of -seed %d", strings.Join(failures, "\n"), nemesis)
	}
}

// torment does harm to a cluster until stop is closed, and then none.
func (c *cluster) torment(rng *rand.Rand, stop <-chan struct{}) {
	harm := func() {
		switch rng.IntN(7) {
		case 0:
			c.move(rng.IntN(copysets), chunk.NodeID(rng.IntN(3)+1))
		case 1:
			c.hosts[[]string{"c1", "c2", "c3"}[rng.IntN(3)]].cut()
		case 2:
			c.setFault(once(loseReply))
		case 3:
			c.setFault(once(loseRequest))
		case 4:
			c.lead([]string{"m1", "m2"}[rng.IntN(2)])
		case 5:
			h := c.hosts[[]string{"c1", "c2", "c3"}[rng.IntN(3)]]
			h.down()
			h.up()
		case 6:
			c.snapshot(rng.IntN(3) == 0)
		}
	}
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(rng.IntN(3000)) * time.Microsecond):
			harm()
		}
	}
}

// snapshot pauses the writer and freezes the volume if that succeeds. Then it
// lets the writer go on, or loses the leader instead.
func (c *cluster) snapshot(lose bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c.mu.Lock()
	conn, id := c.gateway, c.last
	c.mu.Unlock()
	err := wire.Ask(ctx, conn, wire.KindPause, wire.Pause{Attachment: id}, nil)
	c.mu.Lock()
	if c.gateway != conn { // it has come back meanwhile and been resumed
		c.mu.Unlock()
		return
	}
	if err == nil {
		c.freeze()
	}
	next := wire.Proceed{Attachment: id, Context: c.context(id)}
	c.mu.Unlock()
	if lose {
		c.lead([]string{"m1", "m2"}[next.Context.Token.Seq%2])
		return
	}
	wire.Ask(ctx, conn, wire.KindProceed, next, nil)
}
