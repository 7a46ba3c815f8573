package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

var (
	histLength = flag.Int("length", 25, "steps of a random history")
	histCount  = flag.Int("histories", 600, "number of random histories")
	histSeed   = flag.Uint64("seed", 0, "seed of the first history; 0: by chance")
)

// TestRandomHistories runs a store against a model that keeps every view as
// an array of blocks, through all operations, checkpoints, losses of power at
// any moment, recovery included, and clean restarts.
func TestRandomHistories(t *testing.T) {
	first := *histSeed
	if first == 0 {
		first = rand.Uint64N(1 << 40)
	}
	t.Logf("seeds %d to %d", first, first+uint64(*histCount)-1)
	count := *histCount
	if testing.Short() {
		count = min(count, 100)
	}
	var group sync.WaitGroup
	seeds := make(chan uint64)
	for range 2 {
		group.Go(func() {
			for seed := range seeds {
				if !t.Failed() {
					runHistory(t, seed, *histLength)
				}
			}
		})
	}
	for i := range count {
		seeds <- first + uint64(i)
	}
	close(seeds)
	group.Wait()
}

// The model's geometry: a few blocks at the edges of parts and of the chunk.
var slots = []int{0, 1, 2, 62, 63, 64, 65, 127, 128, 4094, 4095}

const modelChunks = 2

type place struct {
	index uint32
	block int
}

// content is what a view shows: the stamp of each block, 0 for zeros.
type content map[place]uint64

type modelVolume struct {
	id      chunk.VolumeID
	seq     chunk.Seq
	lineage chunk.Lineage
	parent  *modelSnapshot
	head    content
	snaps   []*modelSnapshot
}

type modelSnapshot struct {
	of      *modelVolume
	lineage chunk.Lineage
	content content
}

func (v *modelVolume) below() *chunk.View {
	if v.parent == nil {
		return nil
	}
	return v.parent.view()
}

func (v *modelVolume) view() *chunk.View { return chunk.NewView(v.id, v.lineage, v.below()) }

func (s *modelSnapshot) view() *chunk.View { return chunk.NewView(s.of.id, s.lineage, s.of.below()) }

// listed returns all views of v, the head frozen.
func (v *modelVolume) listed() []*chunk.View {
	views := []*chunk.View{chunk.NewView(v.id, v.lineage.Freeze(v.seq), v.below())}
	for _, s := range v.snaps {
		views = append(views, s.view())
	}
	return views
}

// issued is an operation under way, and what it does to the model.
type issued struct {
	entry chunk.Entry
	apply func()
}

// run is one history.
type run struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand
	disk *disk
	s    *Store

	volumes   []*modelVolume
	nextID    chunk.VolumeID
	stamp     uint64
	later     []chunk.Op // purges whose views were listed some time ago
	log       []string
	finishing bool // no more loss of power

	last, commit [modelChunks]chunk.LSN
	entries      [modelChunks]map[chunk.LSN]chunk.Entry
	tokens       [modelChunks]map[chunk.VolumeID]chunk.Token
	promised     [modelChunks]chunk.Epoch
}

func runHistory(t *testing.T, seed uint64, length int) {
	r := &run{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), disk: newDisk()}
	for i := range modelChunks {
		r.entries[i] = make(map[chunk.LSN]chunk.Entry)
		r.tokens[i] = make(map[chunk.VolumeID]chunk.Token)
	}
	defer func() {
		if t.Failed() {
			return
		}
		if p := recover(); p != nil {
			t.Errorf("seed %d: %v", seed, p)
			panic(p)
		}
	}()
	r.open()
	r.create()
	for range length {
		if t.Failed() {
			break
		}
		r.step()
	}
	if !t.Failed() {
		r.finish()
	}
	if t.Failed() {
		t.Logf("seed %d:\n%s", seed, strings.Join(r.log, "\n"))
	}
}

func (r *run) errorf(format string, args ...any) {
	r.t.Errorf("seed %d: %s", r.seed, fmt.Sprintf(format, args...))
}

func (r *run) note(format string, args ...any) {
	r.log = append(r.log, fmt.Sprintf(format, args...))
}

func (r *run) options() Options {
	o := small
	o.FS = r.disk
	o.SegmentBytes = 32 << 10 << r.rng.IntN(3)
	o.CacheBytes = int64(r.rng.IntN(2)) << 20 // with 0 nothing stays that needn't
	if o.CacheBytes == 0 {
		o.CacheBytes = 1
	}
	o.OpenFiles = 1 + r.rng.IntN(4)
	return o
}

// open opens the store, through as many losses of power as there are.
func (r *run) open() {
	for {
		s, err := Open("", r.options())
		if err == nil {
			r.s = s
			return
		}
		if !r.disk.lost() {
			r.errorf("open: %v", err)
			r.t.FailNow()
		}
		r.note("power lost during recovery")
		if r.rng.IntN(4) == 0 {
			r.disk.killed()
		} else {
			r.disk.lose(r.rng)
		}
		if !r.finishing && r.rng.IntN(2) == 0 {
			r.disk.cutAfter(1 + r.rng.IntN(10))
		}
	}
}

func (r *run) create() *modelVolume {
	r.nextID++
	v := &modelVolume{id: r.nextID, seq: 1, lineage: chunk.NewLineage(), head: make(content)}
	r.volumes = append(r.volumes, v)
	return v
}

func (r *run) step() {
	v := r.volumes[r.rng.IntN(len(r.volumes))]
	switch k := r.rng.IntN(20); {
	case k < 8:
		r.burst()
	case k < 10:
		r.note("snapshot of %d at %d", v.id, v.seq)
		v.snaps = append(v.snaps, &modelSnapshot{v, v.lineage.Freeze(v.seq), maps.Clone(v.head)})
		v.seq++
	case k < 11 && len(v.snaps) > 0:
		s := v.snaps[r.rng.IntN(len(v.snaps))]
		v.seq++
		v.lineage, v.head = s.lineage.Rollback(v.seq), maps.Clone(s.content)
		r.note("rollback of %d to %v", v.id, v.lineage)
	case k < 12 && len(v.snaps) > 0 && len(r.volumes) < 5:
		s := v.snaps[r.rng.IntN(len(v.snaps))]
		c := r.create()
		c.parent, c.head = s, maps.Clone(s.content)
		r.note("clone %d of %d, %v", c.id, v.id, s.lineage)
	case k < 13 && v.parent != nil:
		r.flattenAll(v)
	case k < 14 && len(v.snaps) > 0:
		r.deleteSnapshot(v, r.rng.IntN(len(v.snaps)))
	case k < 15 && len(r.volumes) > 1:
		r.deleteVolume(v)
	case k < 16:
		r.note("checkpoint")
		r.tolerate(r.s.Checkpoint(context.Background()))
	case k < 17:
		r.restart()
	case k < 18:
		n := 1 + r.rng.IntN(30)
		r.disk.cutAfter(n)
		r.note("the power goes in %d operations", n)
	case k < 19:
		i := r.rng.IntN(modelChunks)
		if lsn := chunk.LSN(r.rng.Uint64N(uint64(r.last[i]) + 1)); lsn > r.commit[i] {
			r.commit[i] = lsn
			r.s.Committed(chunk.CopysetID(i), lsn)
			r.note("copyset %d committed to %d", i, lsn)
		}
	default:
		r.promise(r.rng.IntN(modelChunks))
	}
	if r.rng.IntN(4) == 0 {
		r.verify()
	}
}

// tolerate accepts that something failed because the power went.
func (r *run) tolerate(err error) {
	if err == nil {
		return
	}
	if !r.disk.lost() {
		r.errorf("%v", err)
		return
	}
	r.recover()
}

func (r *run) promise(i int) {
	done := make(chan error, 1)
	epoch := r.promised[i] + 1
	err := r.s.Promise(context.Background(), chunk.CopysetID(i), epoch, func(err error) { done <- err })
	if err == nil {
		err = <-done
	}
	if err == nil {
		r.promised[i] = epoch
	}
	r.tolerate(err)
}

// burst issues some operations at once and waits for all of them.
func (r *run) burst() {
	var ops []issued
	for range 1 + r.rng.IntN(6) {
		ops = append(ops, r.someOp())
	}
	r.issue(ops)
}

func (r *run) someOp() issued {
	if n := len(r.later); n > 0 && r.rng.IntN(3) == 0 {
		op := r.later[n-1]
		r.later = r.later[:n-1]
		return r.op(op, func() {})
	}
	v := r.volumes[r.rng.IntN(len(r.volumes))]
	index := uint32(r.rng.IntN(modelChunks))
	if v.parent != nil && r.rng.IntN(5) == 0 {
		return r.op(r.flattenOp(v, index, slots[r.rng.IntN(len(slots))]), func() {})
	}
	first := r.rng.IntN(len(slots))
	n := 1
	for first+n < len(slots) && slots[first+n] == slots[first]+n && r.rng.IntN(2) == 0 {
		n++
	}
	ref := chunk.Ref{Volume: v.id, Index: index}
	token := chunk.Token{Attachment: 1, Seq: v.seq}
	if r.rng.IntN(4) == 0 {
		op := zeroOp(ref, v.seq, slots[first], n)
		return r.op(op, func() { v.set(index, slots[first], n, 0) })
	}
	r.stamp++
	stamp := r.stamp
	op := writeOp(ref, v.seq, slots[first], stamped(stamp, n))
	op.Token = token
	return r.op(op, func() { v.set(index, slots[first], n, stamp) })
}

func (v *modelVolume) set(index uint32, block, n int, stamp uint64) {
	for b := block; b < block+n; b++ {
		if stamp == 0 {
			delete(v.head, place{index, b})
		} else {
			v.head[place{index, b}] = stamp
		}
	}
}

// stampFactor spreads stamps over 64 bits; times stampInverse it is 1.
const (
	stampFactor  = 0x9e3779b97f4a7c15
	stampInverse = 0xf1de83e19937733d
)

// stamped returns n blocks that are recognisable in every sector.
func stamped(stamp uint64, n int) []byte {
	p := make([]byte, n*chunk.BlockSize)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], stamp*stampFactor+uint64(i%chunk.BlockSize))
	}
	return p
}

// stampOf returns the stamp of a block that stamped has made.
func stampOf(p []byte) uint64 {
	return binary.LittleEndian.Uint64(p) * stampInverse
}

// op makes an operation the next of its copyset.
func (r *run) op(op chunk.Op, apply func()) issued {
	i := op.Ref.Index
	r.last[i]++
	r.note("%d/%d: %v %v seq %d off %d len %d, %d views, up to %d", i, r.last[i], op.Kind, op.Ref, op.Token.Seq,
		op.Off/chunk.BlockSize, op.Len/chunk.BlockSize, len(op.Views), op.UpTo)
	e := chunk.Entry{Copyset: chunk.CopysetID(i), Epoch: 1, LSN: r.last[i], Commit: r.commit[i], Op: op}
	r.entries[i][e.LSN] = e
	return issued{e, apply}
}

// issue appends operations, and applies to the model what the store has of
// them in the end.
func (r *run) issue(ops []issued) {
	var base [modelChunks]chunk.LSN
	for i := range base {
		base[i] = r.last[i]
	}
	for _, o := range ops {
		base[o.entry.Copyset] = min(base[o.entry.Copyset], o.entry.LSN-1)
	}
	results := make(chan error, len(ops))
	failed := error(nil)
	acked := base
	accepted := 0
	for _, o := range ops {
		done := func(err error) {
			if err == nil {
				acked[o.entry.Copyset] = o.entry.LSN
			}
			results <- err
		}
		if err := r.s.Append(context.Background(), []chunk.Entry{o.entry}, done); err != nil {
			failed = err
			break
		}
		accepted++
	}
	for range accepted {
		if err := <-results; err != nil {
			failed = err
		}
	}
	if failed == nil {
		for _, o := range ops {
			o.take(r)
		}
		return
	}
	if !r.disk.lost() {
		r.errorf("append: %v", failed)
		return
	}
	r.restartAfterLoss()
	var held [modelChunks]chunk.LSN
	states := r.s.Copysets()
	for _, state := range states {
		held[state.Copyset] = state.Last
	}
	for _, o := range ops {
		if o.entry.LSN <= held[o.entry.Copyset] {
			o.take(r)
		} else if o.entry.Op.Kind == chunk.OpPurge {
			r.later = append(r.later, o.entry.Op)
		}
	}
	for i := range held {
		if held[i] < acked[i] {
			r.errorf("copyset %d: %d was acknowledged, after the loss of power the store ends at %d", i, acked[i], held[i])
		}
		if held[i] > r.last[i] {
			r.errorf("copyset %d ends at %d, %d was the last issued", i, held[i], r.last[i])
		}
		r.last[i] = held[i]
	}
	r.checkStates(states)
}

func (o issued) take(r *run) {
	o.apply()
	i := o.entry.Copyset
	if token := o.entry.Op.Token; token.Compare(r.tokens[i][o.entry.Op.Ref.Volume]) > 0 {
		r.tokens[i][o.entry.Op.Ref.Volume] = token
	}
}

func (r *run) flattenOp(v *modelVolume, index uint32, block int) chunk.Op {
	return chunk.Op{
		Kind: chunk.OpFlatten, Ref: chunk.Ref{Volume: v.id, Index: index},
		Off: uint32(block * chunk.BlockSize), Len: chunk.BlockSize, Views: v.listed(),
	}
}

// flattenAll copies everything up and cuts the clone off its parent.
func (r *run) flattenAll(v *modelVolume) {
	var ops []issued
	for index := range uint32(modelChunks) {
		for _, block := range slots {
			ops = append(ops, r.op(r.flattenOp(v, index, block), func() {}))
		}
	}
	before := r.last
	r.issue(ops)
	if before == r.last {
		r.note("%d is flat", v.id)
		v.parent = nil
	}
}

func (r *run) deleteSnapshot(v *modelVolume, i int) {
	for _, other := range r.volumes {
		if other.parent == v.snaps[i] {
			return
		}
	}
	r.note("delete snapshot of %d, %v", v.id, v.snaps[i].lineage)
	v.snaps = slices.Delete(v.snaps, i, i+1)
	r.purgeLater(v, v.listed(), v.seq)
}

func (r *run) deleteVolume(v *modelVolume) {
	for _, other := range r.volumes {
		if other.parent != nil && other.parent.of == v {
			return
		}
	}
	r.note("delete %d", v.id)
	r.volumes = slices.DeleteFunc(r.volumes, func(o *modelVolume) bool { return o == v })
	r.later = slices.DeleteFunc(r.later, func(op chunk.Op) bool { return op.Ref.Volume == v.id })
	r.purgeLater(v, nil, chunk.MaxSeq)
}

func (r *run) purgeLater(v *modelVolume, views []*chunk.View, upTo chunk.Seq) {
	for index := range uint32(modelChunks) {
		ref := chunk.Ref{Volume: v.id, Index: index}
		r.later = append(r.later, chunk.Op{Kind: chunk.OpPurge, Ref: ref, Views: views, UpTo: upTo})
	}
}

func (r *run) restart() {
	r.note("restart")
	if err := r.s.Close(); err != nil {
		r.tolerate(err)
		return
	}
	r.open()
	r.checkStates(r.s.Copysets())
}

// recover restarts after a loss of power with nothing under way.
func (r *run) recover() {
	r.restartAfterLoss()
	states := r.s.Copysets()
	for _, state := range states {
		if state.Last != r.last[state.Copyset] {
			r.errorf("copyset %d ended at %d, after the loss of power at %d", state.Copyset, r.last[state.Copyset], state.Last)
		}
	}
	r.checkStates(states)
}

func (r *run) restartAfterLoss() {
	r.s.Close()
	if r.rng.IntN(4) == 0 {
		r.note("killed")
		r.disk.killed()
	} else {
		r.note("power lost")
		r.disk.lose(r.rng)
	}
	if !r.finishing && r.rng.IntN(4) == 0 {
		r.disk.cutAfter(1 + r.rng.IntN(10))
	}
	r.open()
	if r.rng.IntN(2) == 0 {
		r.disk.cutAfter(0)
	}
}

// checkStates compares what recovery says with what was issued.
func (r *run) checkStates(states []State) {
	for _, state := range states {
		i := state.Copyset
		if state.Promised < r.promised[i] {
			r.errorf("copyset %d: epoch %d was promised, found %d", i, r.promised[i], state.Promised)
		}
		r.promised[i] = state.Promised
		if len(state.Tail) != int(state.Last-state.Commit) {
			r.errorf("copyset %d: %d entries between %d and %d", i, len(state.Tail), state.Commit, state.Last)
		}
		if state.Commit > r.commit[i] {
			r.errorf("copyset %d: committed up to %d, found %d", i, r.commit[i], state.Commit)
		}
		for _, e := range state.Tail {
			want := r.entries[i][e.LSN]
			if !bytes.Equal(e.Op.AppendHeader(nil), want.Op.AppendHeader(nil)) || !bytes.Equal(e.Op.Data, want.Op.Data) ||
				e.Epoch != want.Epoch || e.Commit != want.Commit {
				r.errorf("copyset %d: entry %d differs in the tail", i, e.LSN)
			}
		}
		if diff := cmp.Diff(r.tokens[i], state.Tokens); diff != "" {
			r.errorf("copyset %d: tokens: %s", i, diff)
		}
	}
}

// verify reads every block of every view.
func (r *run) verify() {
	for _, v := range r.volumes {
		r.compare(v.view(), v.head)
		for _, s := range v.snaps {
			r.compare(s.view(), s.content)
		}
	}
}

func (r *run) compare(view *chunk.View, want content) {
	buffer := make([]byte, 4*chunk.BlockSize)
	for index := range uint32(modelChunks) {
		for i := 0; i < len(slots); {
			n := 1
			for i+n < len(slots) && n < 4 && slots[i+n] == slots[i]+n {
				n++
			}
			p := buffer[:n*chunk.BlockSize]
			if err := r.s.ReadAt(view, chunk.Ref{Volume: view.Volume(), Index: index}, p, uint32(slots[i]*chunk.BlockSize)); err != nil {
				if r.disk.lost() {
					r.recover()
					return
				}
				r.errorf("read %d of chunk %d of volume %d, %v: %v", slots[i], index, view.Volume(), view.Lineage(), err)
				return
			}
			for j := range n {
				stamp := want[place{index, slots[i+j]}]
				expected := make([]byte, chunk.BlockSize)
				if stamp != 0 {
					expected = stamped(stamp, 1)
				}
				if !bytes.Equal(p[j*chunk.BlockSize:][:chunk.BlockSize], expected) {
					r.errorf("block %d of chunk %d of volume %d, %v: not stamp %d", slots[i+j], index, view.Volume(), view.Lineage(), stamp)
				}
			}
			i += n
		}
	}
}

// finish checks everything, deletes everything, and looks for leaks.
func (r *run) finish() {
	r.finishing = true
	r.disk.cutAfter(0)
	r.check()
	for len(r.volumes) > 0 && !r.t.Failed() {
		for _, v := range slices.Clone(r.volumes) {
			for i := len(v.snaps) - 1; i >= 0; i-- {
				r.deleteSnapshot(v, i)
			}
			r.deleteVolume(v)
		}
	}
	var ops []issued
	for _, op := range r.later {
		ops = append(ops, r.op(op, func() {}))
	}
	if len(ops) > 0 {
		r.issue(ops)
	}
	r.check()
	if usage, err := r.s.Usage(); err != nil || usage.Used != 0 {
		r.errorf("after everything was deleted: %+v, %v", usage, err)
	}
	if saved, err := r.s.meta.load(); err != nil || len(saved.needless) > 0 {
		r.errorf("%d layers with blocks still to be freed, %v", len(saved.needless), err)
	}
	for name := range r.disk.dirs {
		if len(name) > len(layerDir) && name[:len(layerDir)] == layerDir {
			r.errorf("%s is left after everything was deleted", name)
		}
	}
	if err := r.s.Close(); err != nil {
		r.errorf("close: %v", err)
	}
}

func (r *run) check() {
	r.verify()
	if err := r.s.Check(context.Background(), func(f Finding) { r.errorf("check: %v", f) }); err != nil {
		r.tolerate(err)
		return
	}
	// Check has saved everything: digests are the same from both sources.
	for _, v := range r.volumes {
		for i := range uint32(modelChunks) {
			ref := chunk.Ref{Volume: v.id, Index: i}
			kept, err1 := r.s.Digest(ref)
			layers, err2 := r.s.meta.layers(ref)
			var saved []LayerDigest
			for _, l := range layers {
				saved = append(saved, LayerDigest{l.id.seq, l.sum.encode()})
			}
			if diff := cmp.Diff(kept, saved); diff != "" || err1 != nil || err2 != nil {
				r.errorf("digests of %v: %v, %v\n%s", ref, err1, err2, diff)
			}
		}
	}
}
