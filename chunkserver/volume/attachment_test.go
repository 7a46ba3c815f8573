package volume

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// counters are blocks in as many chunks, hence in several copysets, that a
// writer counts up one after the other, each when the one before has been
// acknowledged. At any point in time they are n, ..., n, n-1, ..., n-1.
const counters = 6

func (c *cluster) checkCounters(t *testing.T, view *chunk.View) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var values []uint64
	for i := range uint32(counters) {
		value := uint64(0)
		if block := c.block(view, i, 0); block != nil {
			value = binary.LittleEndian.Uint64(block)
		}
		values = append(values, value)
	}
	for i := 1; i < counters; i++ {
		if values[i] > values[i-1] || values[0] > values[i]+1 {
			t.Errorf("a snapshot has the counters %v", values)
			return
		}
	}
}

// A snapshot taken under load is one point in time, and nothing is carried
// out between the answer to a pause and the word to proceed.
func TestPauseCutsAtOnePoint(t *testing.T) {
	t.Parallel()
	c := newCluster(t, counters*chunk.Size, chunk.Layout{})
	v := c.attach()
	stop := make(chan struct{})
	var load sync.WaitGroup
	stopped := func() bool {
		select {
		case <-stop:
			return true
		default:
			return false
		}
	}
	load.Go(func() {
		block := make([]byte, chunk.BlockSize)
		for n := uint64(1); ; n++ {
			for i := range uint64(counters) {
				if stopped() {
					return
				}
				binary.LittleEndian.PutUint64(block, n)
				if err := v.WriteAt(context.Background(), block, i*chunk.Size); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for i := range uint64(8) {
		load.Go(func() {
			for !stopped() {
				if err := v.WriteAt(context.Background(), make([]byte, 10_000), i*chunk.Size/2+chunk.BlockSize+7); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var views []*chunk.View
	var longest time.Duration
	for range 20 {
		c.mu.Lock()
		before := len(c.applied)
		c.mu.Unlock()
		c.eventually("writers are at work", func() bool { return len(c.applied) > before+20 })
		began := time.Now()
		if err := c.call(t.Context(), wire.KindPause, wire.Pause{Attachment: 1}); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(began))
		c.mu.Lock()
		carriedOut := len(c.applied)
		c.mu.Unlock()
		for range 10 { // reads go on meanwhile
			read(t, v, 0, 100)
		}
		c.mu.Lock()
		if len(c.applied) != carriedOut {
			t.Errorf("%d operations while paused", len(c.applied)-carriedOut)
		}
		views = append(views, c.freeze())
		next := c.context(1)
		c.mu.Unlock()
		if err := c.call(t.Context(), wire.KindProceed, wire.Proceed{Attachment: 1, Context: next}); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	load.Wait()
	for _, view := range views {
		c.checkCounters(t, view)
	}
	history := c.history()
	if !slices.IsSortedFunc(history, chunk.Token.Compare) {
		t.Errorf("operations were carried out in the order %v", history)
	}
	if last := history[len(history)-1]; last.Seq < 20 {
		t.Errorf("the last operation is stamped %v", last)
	}
	t.Logf("the longest pause took %v to take effect", longest)
}

// A writer that has answered a pause stays paused when the leader is lost,
// however long, and goes on with what the next leader says.
func TestPausedWriterWaitsForTheNextLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	v := c.attach()
	write(t, v, pattern(1, 4096), 0)
	if err := c.call(t.Context(), wire.KindPause, wire.Pause{Attachment: 1}); err != nil {
		t.Fatal(err)
	}
	written := make(chan error)
	go func() { written <- v.WriteAt(t.Context(), pattern(2, 4096), 0) }()
	c.mu.Lock()
	c.resume = func() error { return wire.ErrUnavailable } // the new leader isn't ready yet
	c.freeze()
	c.mu.Unlock()
	c.lead("m2")
	c.eventually("the session resumes again and again", func() bool { return c.resumes > 3 })
	select {
	case err := <-written:
		t.Fatalf("written without a leader's word: %v", err)
	default:
	}
	if got := read(t, v, 0, 4096); !bytes.Equal(got, pattern(1, 4096)) {
		t.Error("a read does not find what was written before the pause")
	}
	c.mu.Lock()
	c.resume = nil
	c.mu.Unlock()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if history := c.history(); history[len(history)-1].Seq != 2 {
		t.Errorf("resumed with the stamps %v", history)
	}
}

// A pause that can't be completed ends when the leader says so.
func TestPauseThatIsGivenUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	v := c.attach()
	arrived := 0
	c.setFault(func(*chunk.Op) (fault, error) { arrived++; return carryOut, chunk.ErrNotReady })
	stuck := make(chan error)
	go func() { stuck <- v.WriteAt(t.Context(), make([]byte, 4096), 0) }()
	c.eventually("a write is stuck", func() bool { return arrived > 0 })
	paused := make(chan error)
	go func() { paused <- c.call(t.Context(), wire.KindPause, wire.Pause{Attachment: 1}) }()
	for !v.attachment.held() {
		time.Sleep(100 * time.Microsecond)
	}
	c.mu.Lock()
	next := c.context(1)
	c.mu.Unlock()
	if err := c.call(t.Context(), wire.KindProceed, wire.Proceed{Attachment: 1, Context: next}); err != nil {
		t.Fatal(err)
	}
	if err := <-paused; !errors.Is(err, wire.ErrUnavailable) {
		t.Errorf("pause: %v", err)
	}
	c.setFault(nil)
	if err := <-stuck; err != nil {
		t.Error(err)
	}
}

func (a *attachment) held() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hold != nil
}

// Only the connection that closed the gate, or a resume, opens it.
func TestProceedOfAnotherConnectionIsRefused(t *testing.T) {
	t.Parallel()
	first, second := new(wire.Conn), new(wire.Conn)
	a := newAttachment(1, wire.Context{Token: chunk.Token{Attachment: 1, Seq: 1}})
	hold := a.pause(first)
	if err := a.complete(t.Context(), hold); err != nil {
		t.Fatal(err)
	}
	if err := a.proceed(second, wire.Context{}); err == nil {
		t.Error("proceeded on another connection")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.enter(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("entered a closed gate: %v", err)
	}
	next := wire.Context{Token: chunk.Token{Attachment: 1, Seq: 2}}
	a.resume(next)
	if now, err := a.enter(t.Context()); err != nil || now.Token != next.Token {
		t.Errorf("after a resume: %v, %v", now, err)
	}
	again := a.pause(second)
	if err := a.complete(ctx, again); !errors.Is(err, context.Canceled) {
		t.Errorf("complete with a change inside: %v", err)
	}
	a.leave()
	if err := a.complete(ctx, again); err != nil {
		t.Errorf("complete with nothing inside: %v", err)
	}
	if err := a.complete(t.Context(), hold); !errors.Is(err, wire.ErrUnavailable) {
		t.Errorf("complete of a hold that is over: %v", err)
	}
	if err := a.proceed(second, next); err != nil {
		t.Error(err)
	}
	a.end(errors.New("why"))
	if _, err := a.enter(t.Context()); !errors.Is(err, ErrDetached) {
		t.Errorf("entered what has ended: %v", err)
	}
}

func TestLeaderForgetsTheAttachment(t *testing.T) {
	t.Parallel()
	for _, refusal := range []error{wire.ErrNotExist, chunk.ErrFenced, wire.ErrOccupied} {
		c := newCluster(t, 64*mib, chunk.Layout{})
		v := c.attach()
		if err := c.call(t.Context(), wire.KindPause, wire.Pause{Attachment: 1}); err != nil {
			t.Fatal(err)
		}
		written := make(chan error)
		go func() { written <- v.WriteAt(t.Context(), make([]byte, 4096), 0) }()
		c.mu.Lock()
		c.resume = func() error { return refusal }
		c.mu.Unlock()
		c.lead("m2")
		if err := <-written; !errors.Is(err, ErrDetached) || !errors.Is(err, refusal) {
			t.Errorf("after %v: %v", refusal, err)
		}
		if err := v.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, ErrDetached) {
			t.Errorf("read after %v: %v", refusal, err)
		}
	}
}

// A revoked volume is dead at once, and the leader is told when nothing is in
// flight any more.
func TestRevoke(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	v := c.attach()
	var arrived atomic.Int32
	c.setFault(func(*chunk.Op) (fault, error) { arrived.Add(1); return hang, nil })
	ctx, cancel := context.WithCancel(t.Context())
	stuck := make(chan error)
	go func() { stuck <- v.WriteAt(ctx, make([]byte, 4096), 0) }()
	c.eventually("a write is in flight", func() bool { return arrived.Load() == 1 })
	revoked := make(chan error)
	go func() { revoked <- c.call(t.Context(), wire.KindRevoke, wire.Revoke{Attachment: 1}) }()
	<-v.attachment.life.Done()
	if err := v.WriteAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, ErrDetached) {
		t.Errorf("write: %v", err)
	}
	if err := v.Sync(t.Context()); !errors.Is(err, ErrDetached) {
		t.Errorf("sync: %v", err)
	}
	select {
	case err := <-revoked:
		t.Fatalf("revoked with a write in flight: %v", err)
	default:
	}
	cancel()
	<-stuck
	if err := <-revoked; err != nil {
		t.Error(err)
	}
	if err := c.call(t.Context(), wire.KindPause, wire.Pause{Attachment: 1}); !errors.Is(err, wire.ErrNotExist) {
		t.Errorf("pause of what is revoked: %v", err)
	}
	if n := arrived.Load(); n != 1 {
		t.Errorf("the write was sent %d times", n)
	}
}

func TestSessionRenews(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	renewals := 0
	c.renewed = func() { renewals++ }
	c.session()
	c.eventually("the session renews", func() bool { return renewals > 1 })
}

func TestLeaderMayNotAskOtherThings(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64*mib, chunk.Layout{})
	c.attach()
	if err := c.call(t.Context(), wire.KindMap, struct{}{}); !errors.Is(err, chunk.ErrInvalid) {
		t.Errorf("the map from a gateway: %v", err)
	}
	if err := c.call(t.Context(), wire.KindPause, []int{1}); !errors.Is(err, chunk.ErrInvalid) {
		t.Errorf("a malformed pause: %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	if _, err := Connect(Config{}); err == nil {
		t.Error("connected to nowhere as nobody")
	}
}
