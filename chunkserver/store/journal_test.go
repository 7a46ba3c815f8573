package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

func onDisk(d *disk) Options {
	o := small
	o.FS = d
	return o
}

var ref10 = chunk.Ref{Volume: 1, Index: 0}

// lastOf returns where the history of a copyset ends.
func lastOf(s *Store, id chunk.CopysetID) State {
	for _, state := range s.Copysets() {
		if state.Copyset == id {
			return state
		}
	}
	return State{}
}

// Each record of a journal is damaged in turn: the last one may be torn and
// is dropped, any other one is damage, told with file and offset.
func TestDamageAndTornTail(t *testing.T) {
	const n = 6
	for i := 1; i <= n; i++ {
		for what, at := range map[string]int64{"header": 20, "payload": recordHeader + 100, "checksum": 61} {
			t.Run(fmt.Sprintf("%s of record %d", what, i), func(t *testing.T) {
				t.Parallel()
				d := newDisk()
				s := mustOpen(t, "", onDisk(d))
				c := &client{Store: s}
				for j := range n {
					c.must(t, writeOp(ref10, 1, j, filled(1, byte(j+1))))
				}
				places := s.histories.byID[0].tail
				d.kill(s)
				damaged := places[i-1].at
				d.corrupt(segmentName(damaged.segment), damaged.off+at)
				s, err := Open("", onDisk(d))
				if i == n {
					if err != nil {
						t.Fatal(err)
					}
					defer s.Close()
					if got := lastOf(s, 0).Last; got != n-1 {
						t.Errorf("history ends at %d, want %d", got, n-1)
					}
					return
				}
				if !errors.Is(err, ErrDamaged) {
					t.Fatalf("error %v, want damage", err)
				}
				want := fmt.Sprintf("offset %d of %s", damaged.off, segmentName(damaged.segment))
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not name %q", err, want)
				}
			})
		}
	}
}

// What an earlier use of a segment's file, or an earlier, torn batch at the
// same place has left is never taken for a record.
func TestStaleRecordsAreNotRead(t *testing.T) {
	store := newUUID()
	content := make([]byte, 4*chunk.BlockSize)
	put := func(off int, r record, number uint64) uint32 {
		return r.put(content[off:], segmentSeed(store, number))
	}
	sum := put(segmentHeader, record{kind: recordMark, batch: 7, flags: flagLast}, 2)
	seg := &segment{number: 2, seed: segmentSeed(store, 2)}
	r := &replay{ended: true}
	if _, _, ok := r.at(seg, content, segmentHeader); !ok {
		t.Fatal("a good record is not found")
	}
	r = &replay{any: true, chain: sum, lastBatch: 7, ended: true}
	next := record{kind: recordMark, batch: 8, chain: sum, flags: flagLast}
	off := int64(2 * segmentHeader)

	put(int(off), next, 2)
	if _, _, ok := r.at(seg, content, off); !ok {
		t.Error("the next record is not found")
	}
	put(int(off), next, 1)
	if _, _, ok := r.at(seg, content, off); ok {
		t.Error("a record of segment 1 was read from segment 2")
	}
	other := next
	other.chain++
	put(int(off), other, 2)
	if _, _, ok := r.at(seg, content, off); ok {
		t.Error("a record that does not follow the one before was read")
	}
	next.put(content[off:], segmentSeed(newUUID(), 2))
	if _, _, ok := r.at(seg, content, off); ok {
		t.Error("a record of another store was read")
	}
}

// Where a record is bad, a batch further on tells damage from a torn end.
func TestLostBatches(t *testing.T) {
	store := newUUID()
	seg := &segment{number: 2, seed: segmentSeed(store, 2)}
	for _, test := range []struct {
		last  uint64 // batch of the last good record
		ended bool   // which was the last of that
		found uint64 // batch that begins further on
		lost  bool
	}{
		{7, true, 7, false},  // left by a torn batch of an earlier run
		{7, true, 8, false},  // of the batch that is torn
		{7, true, 9, true},   // written when 8 was durable
		{7, false, 7, false}, // of the batch that is torn
		{7, false, 8, true},  // written when 7 was durable
	} {
		content := make([]byte, 4*chunk.BlockSize)
		(&record{kind: recordMark, batch: test.found}).put(content[3*chunk.BlockSize:], seg.seed)
		r := &replay{any: true, lastBatch: test.last, ended: test.ended}
		if got := r.lost(seg, content, 2*chunk.BlockSize); got != test.lost {
			t.Errorf("%+v: lost %v", test, got)
		}
	}
}

// Opening a store ends the journal with a whole batch, whatever was there.
func TestOpenMarksTheEnd(t *testing.T) {
	d := newDisk()
	for range 3 {
		s := mustOpen(t, "", onDisk(d))
		w := &s.journal.writer
		at := position{w.segment.number, w.off - chunk.BlockSize}
		r, _, err := s.journal.read(at)
		if err != nil || r.kind != recordMark || r.flags != flagLast || r.batch != w.batch {
			t.Errorf("the journal ends with %+v, %v", r, err)
		}
		d.kill(s)
	}
}

// Two files are never offered under one name for reuse.
func TestUnusedSegmentsHaveNamesOfTheirOwn(t *testing.T) {
	d := newDisk()
	must(t, d.Mkdir(journalDir))
	j := &journal{fs: d, store: newUUID(), length: minSegment, spared: 9}
	discard := func(number uint64, recycle string) {
		t.Helper()
		s, err := makeSegment(d, j.store, number, j.length, recycle)
		must(t, err)
		must(t, s.file.Close())
		j.mu.Lock()
		defer j.mu.Unlock()
		must(t, j.discard(number))
	}
	discard(9, "")
	discard(10, "")
	discard(9, j.reusable()) // made of what was 10
	for name := j.reusable(); name != ""; name = j.reusable() {
		s, err := makeSegment(d, j.store, uint64(len(j.live)), j.length, name)
		must(t, err)
		j.live = append(j.live, s.number)
	}
	if len(j.live) != 1 {
		t.Errorf("%d files for reuse, want 1", len(j.live))
	}
}

func TestRecordRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		r := record{
			kind: recordKind(rng.Uint32()), flags: recordFlags(rng.Uint32()), batch: rng.Uint64(),
			copyset: chunk.CopysetID(rng.Uint32()), chain: rng.Uint32(), epoch: chunk.Epoch(rng.Uint64()),
			lsn: chunk.LSN(rng.Uint64()), commit: chunk.LSN(rng.Uint64()), payloadLen: rng.Uint32(), payloadCRC: rng.Uint32(),
		}
		b := make([]byte, recordHeader)
		sum := r.put(b, 42)
		got, gotSum, ok := parseRecord(b, 42)
		if !ok || gotSum != sum {
			t.Fatal("own record is not accepted")
		}
		if diff := cmp.Diff(r, got, cmp.AllowUnexported(record{})); diff != "" {
			t.Fatal(diff)
		}
		b[rng.IntN(recordHeader)] ^= 1 << rng.IntN(8)
		if _, _, ok := parseRecord(b, 42); ok {
			t.Fatal("a flipped bit is not noticed")
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	b := make([]byte, recordHeader)
	(&record{kind: recordEntry, payloadLen: 99}).put(b, 5)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, sum, ok := parseRecord(b, 5)
		if !ok {
			return
		}
		again := make([]byte, recordHeader)
		if r.put(again, 5) != sum {
			t.Error("accepted something else than what is written")
		}
	})
}

// gate counts syncs of journal segments in use, and holds them back.
type gate struct {
	mu      sync.Mutex
	syncs   int
	held    chan struct{} // nil: open
	waiting chan struct{} // a token for each sync that waits
}

func (g *gate) before(op, name string) {
	if op != "sync" || !strings.HasSuffix(name, segmentSuffix) {
		return
	}
	g.mu.Lock()
	g.syncs++
	held := g.held
	g.mu.Unlock()
	if held != nil {
		g.waiting <- struct{}{}
		<-held
	}
}

func (g *gate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held, g.waiting, g.syncs = make(chan struct{}), make(chan struct{}, 100), 0
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.held)
	g.held = nil
}

func (d *disk) count(what string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[what]
}

// What arrives while a batch is synced is synced together, and is told done
// in order.
func TestGroupCommit(t *testing.T) {
	d, g := newDisk(), &gate{}
	d.before = g.before
	s := mustOpen(t, "", onDisk(d))
	g.hold()
	const n = 20
	order := make(chan chunk.LSN, n)
	for lsn := chunk.LSN(1); lsn <= n; lsn++ {
		e := chunk.Entry{LSN: lsn, Op: writeOp(ref10, 1, int(lsn), filled(1, byte(lsn)))}
		if err := s.Append(context.Background(), []chunk.Entry{e}, func(err error) {
			if err != nil {
				t.Error(err)
			}
			order <- lsn
		}); err != nil {
			t.Fatal(err)
		}
		if lsn == 1 {
			<-g.waiting // the first batch is on its way
		}
	}
	g.open()
	for want := chunk.LSN(1); want <= n; want++ {
		if got := <-order; got != want {
			t.Fatalf("entry %d done when %d was due", got, want)
		}
	}
	if g.syncs != 2 {
		t.Errorf("%d syncs for %d entries, want 2", g.syncs, n)
	}
}

func TestAppendBlocksWhileTheQueueIsFull(t *testing.T) {
	d, g := newDisk(), &gate{}
	d.before = g.before
	opts := onDisk(d)
	opts.QueueBytes = 64 << 10
	s := mustOpen(t, "", opts)
	g.hold()
	ctx, cancel := context.WithCancel(context.Background())
	entry := func(lsn chunk.LSN) []chunk.Entry {
		return []chunk.Entry{{LSN: lsn, Op: writeOp(ref10, 1, 0, filled(4, byte(lsn)))}}
	}
	done := make(chan error, 10)
	accepted := chunk.LSN(0)
	for s.journal.queue.load()+(17<<10) < opts.QueueBytes {
		accepted++
		if err := s.Append(ctx, entry(accepted), func(err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
	}
	blocked := make(chan error)
	go func() { blocked <- s.Append(ctx, entry(accepted+1), func(err error) { done <- err }) }()
	cancel()
	if err := <-blocked; !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want that of the context", err)
	}
	go func() { blocked <- s.Append(context.Background(), entry(accepted+1), func(err error) { done <- err }) }()
	g.open()
	if err := <-blocked; err != nil {
		t.Fatalf("the entry was not accepted when there was room: %v", err)
	}
	for range accepted + 1 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// While checkpoints don't get on, the journal grows to a bound, and what would
// go beyond that waits.
func TestJournalIsBounded(t *testing.T) {
	d := newDisk()
	syncing, proceed := make(chan struct{}, 100), make(chan struct{})
	d.before = func(op, name string) {
		if strings.HasPrefix(name, layerDir) {
			syncing <- struct{}{}
			<-proceed
		}
	}
	opts := onDisk(d)
	opts.SegmentBytes, opts.CheckpointBytes = 64<<10, 256<<10
	c := &client{Store: mustOpen(t, "", opts)}
	release := sync.OnceFunc(func() { close(proceed) })
	t.Cleanup(release) // before the store is closed
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	write := func() error {
		e := chunk.Entry{LSN: c.lsn + 1, Commit: c.lsn, Op: writeOp(ref10, 1, int(c.lsn%64), filled(1, byte(c.lsn)))}
		if err := c.Append(ctx, []chunk.Entry{e}, func(err error) { done <- err }); err != nil {
			return err
		}
		c.lsn++
		return <-done
	}
	const most = 10000 // more than 40 MiB
	go func() {
		<-syncing
		for held := false; !held && ctx.Err() == nil; time.Sleep(time.Millisecond) {
			c.journal.queue.mu.Lock()
			held = c.journal.queue.held
			c.journal.queue.mu.Unlock()
		}
		cancel() // what waits gives up
	}()
	var err error
	for err == nil && c.lsn < most {
		err = write()
	}
	cancel()
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("after %d writes: %v", c.lsn, err)
	}
	names, err := d.List(journalDir)
	must(t, err)
	if size := int64(len(names)) * opts.SegmentBytes; size > 2*c.maxBacklog() {
		t.Errorf("the journal has grown to %d bytes, a checkpoint is due every %d", size, opts.CheckpointBytes)
	}
	release()
	ctx = t.Context()
	for range 1000 {
		must(t, write())
	}
	names, err = d.List(journalDir)
	must(t, err)
	if size := int64(len(names)) * opts.SegmentBytes; size > 2*c.maxBacklog() {
		t.Errorf("the journal has %d bytes after checkpoints have got on", size)
	}
}

// An entry that nobody commits does not keep the journal from being freed,
// and is still there to be sent again.
func TestUncommittedEntryIsKept(t *testing.T) {
	d := newDisk()
	s := mustOpen(t, "", onDisk(d))
	stuck := &client{Store: s, copyset: 0}
	busy := &client{Store: s, copyset: 1}
	want := writeOp(chunk.Ref{Volume: 9, Index: 3}, 2, 7, filled(2, 77))
	stuck.must(t, want)
	for round := range 3 {
		for range 40 {
			busy.must(t, writeOp(ref10, 1, 0, filled(16, byte(round))))
			s.Committed(1, busy.lsn)
		}
		if err := s.Checkpoint(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := s.Checkpoint(context.Background()); err != nil {
			t.Fatal(err)
		}
		names, _ := d.List(journalDir)
		if len(names) > maxKept+s.journal.spared+3 {
			t.Fatalf("%d files in the journal after a checkpoint", len(names))
		}
	}
	d.kill(s)
	s = mustOpen(t, "", onDisk(d))
	state := lastOf(s, 0)
	if len(state.Tail) != 1 || state.Last != 1 || state.Commit != 0 {
		t.Fatalf("found %+v", state)
	}
	if got := state.Tail[0]; got.LSN != 1 || !bytes.Equal(got.Op.Data, want.Data) || got.Op.Ref != want.Ref {
		t.Errorf("the entry in the tail differs: %v of %v", got.LSN, got.Op.Ref)
	}
}

func TestReset(t *testing.T) {
	d := newDisk()
	s := mustOpen(t, "", onDisk(d))
	tokens := map[chunk.VolumeID]chunk.Token{7: {Attachment: 8, Seq: 9}}
	reset := func(epoch chunk.Epoch, lsn chunk.LSN) {
		t.Helper()
		done := make(chan error, 1)
		if err := s.Reset(context.Background(), 0, epoch, lsn, tokens, func(err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	c := &client{Store: s}
	for i := range 5 {
		c.must(t, writeOp(ref10, 1, i, filled(1, byte(i+1))))
	}
	reset(9, 3)
	c.lsn = 3
	c.must(t, writeOp(ref10, 1, 9, filled(1, 99)))
	for _, checkpoint := range []bool{false, true} {
		if checkpoint {
			if err := s.Checkpoint(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		d.kill(s)
		s = mustOpen(t, "", onDisk(d))
		state := lastOf(s, 0)
		if state.Last != 4 || state.Commit != 3 || len(state.Tail) != 1 || state.Tail[0].Op.Off != 9*chunk.BlockSize {
			t.Fatalf("checkpoint %v: found %+v", checkpoint, state)
		}
		c.Store = s
		if got := c.mustRead(t, head(1), 0, 0, 1); got[0] != 1 {
			t.Error("a layer was changed by the reset")
		}
	}
	reset(12, 100)
	c.lsn = 100
	c.must(t, writeOp(ref10, 1, 9, filled(1, 98)))
	d.kill(s)
	s = mustOpen(t, "", onDisk(d))
	state := lastOf(s, 0)
	if state.Last != 101 || state.Commit != 100 || len(state.Tail) != 1 {
		t.Fatalf("found %+v", state)
	}
	tokens[1] = chunk.Token{Attachment: 1, Seq: 1}
	if diff := cmp.Diff(tokens, state.Tokens); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
}

func TestCleanStopLeavesNothingToReplay(t *testing.T) {
	d := newDisk()
	s := mustOpen(t, "", onDisk(d))
	c := &client{Store: s}
	for i := range 10 {
		c.must(t, writeOp(ref10, 1, i, filled(1, byte(i+1))))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before := d.count("write layers")
	s = mustOpen(t, "", onDisk(d))
	if writes := d.count("write layers") - before; writes != 0 {
		t.Errorf("%d writes replayed after a clean stop", writes)
	}
	if state := lastOf(s, 0); state.Last != 10 {
		t.Errorf("history ends at %d", state.Last)
	}
}

func TestEntriesOfAnyShapeAreChecked(t *testing.T) {
	s := mustOpen(t, "", onDisk(newDisk()))
	tooLong := writeOp(ref10, 1, 0, filled(80, 1)) // longer than a segment of these tests
	badSums := writeOp(ref10, 1, 0, filled(2, 1))
	badSums.Sums = badSums.Sums[:1]
	badKind := writeOp(ref10, 1, 0, filled(1, 1))
	badKind.Kind = 99
	for name, op := range map[string]chunk.Op{"too long": tooLong, "sums": badSums, "kind": badKind} {
		err := s.Append(context.Background(), []chunk.Entry{{LSN: 1, Op: op}}, func(error) {})
		if !errors.Is(err, chunk.ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if err := s.Append(context.Background(), nil, func(error) {}); !errors.Is(err, chunk.ErrInvalid) {
		t.Errorf("no entries: error %v", err)
	}
}
