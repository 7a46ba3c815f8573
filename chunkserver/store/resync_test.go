package store

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

var pairCount = flag.Int("pairs", 100, "number of random pairs of stores that are brought together")

// A pair is two members of a copyset: one after the other is away, comes back
// with what it had, and more that nobody else has, and is brought up to date
// while operations go on, through losses of power.
type pair struct {
	t    *testing.T
	rng  *rand.Rand
	log  []string
	last chunk.LSN // of the history

	members [2]*member
	seqs    map[chunk.VolumeID]chunk.Seq
	tokens  map[chunk.VolumeID]chunk.Token
	stamp   byte
}

type member struct {
	*Store
	disk *disk
	lsn  chunk.LSN
}

func TestMembersAreBroughtTogether(t *testing.T) {
	first := *histSeed
	if first == 0 {
		first = rand.Uint64N(1 << 40)
	}
	for seed := first; seed < first+uint64(*pairCount) && !t.Failed(); seed++ {
		p := &pair{
			t: t, rng: newRand(seed),
			seqs:   map[chunk.VolumeID]chunk.Seq{1: 1, 2: 1, 3: 1},
			tokens: make(map[chunk.VolumeID]chunk.Token),
		}
		p.run()
		if t.Failed() {
			t.Logf("seed %d", seed)
			for _, line := range p.log {
				t.Log(line)
			}
		}
	}
}

func (p *pair) note(format string, args ...any) { p.log = append(p.log, fmt.Sprintf(format, args...)) }

func (p *pair) run() {
	for i := range p.members {
		p.members[i] = &member{disk: newDisk()}
		p.open(p.members[i])
		defer func() { p.members[i].Close() }()
		must(p.t, await(func(done func(error)) error { return p.members[i].Trust(context.Background(), 0, done) }))
	}
	for range 1 + p.rng.IntN(3) {
		for range p.rng.IntN(12) {
			p.append(p.someOp(true), p.members[:]...)
		}
		away := p.rng.IntN(2)
		p.visit(p.members[away], p.members[1-away])
	}
}

// await waits for what calls back.
func await(begin func(done func(error)) error) error {
	done := make(chan error, 1)
	if err := begin(func(err error) { done <- err }); err != nil {
		return err
	}
	return <-done
}

func (p *pair) open(m *member) {
	o := small
	o.FS, o.SegmentBytes, o.CacheBytes = m.disk, 1<<20, 1 // what is saved is read again and again
	s, err := Open("", o)
	must(p.t, err)
	m.Store = s
}

// visit has m miss what happens at the other one, and come back.
func (p *pair) visit(m, other *member) {
	p.note("a member is away")
	must(p.t, m.commit(p.rng.IntN(2) == 0))
	apart := 0
	for range p.rng.IntN(4) { // what is never acknowledged
		op := p.someOp(true)
		apart += reaches(op)
		m.lsn++
		p.note("only there, %d: %v %v of %d", m.lsn, op.Kind, op.Ref, op.Token.Seq)
		must(p.t, m.appendOne(op, m.lsn))
	}
	for range p.rng.IntN(20) {
		op := p.someOp(true)
		apart += reaches(op)
		p.append(op, other)
	}
	sent, tries, began := 0, 0, p.last
	for whole := false; !whole; tries++ {
		n := 0
		n, whole = p.bring(m, other, tries > 3)
		sent += n
	}
	must(p.t, await(func(done func(error)) error { return m.Trust(context.Background(), 0, done) }))
	p.note("it is back, %d blocks were sent in %d tries", sent, tries)
	apart += int(p.last - began)
	if sent > apart*tries {
		p.t.Errorf("%d blocks were sent in %d tries, after operations apart on %d", sent, tries, apart)
	}
	p.compare(m, other)
}

// reaches tells how many blocks an operation may change.
func reaches(op chunk.Op) int {
	if op.Kind == chunk.OpPurge {
		return len(slots) * int(op.UpTo)
	}
	return 1
}

// commit tells m that all that it has is committed, or only what has been
// noted in its journal.
func (m *member) commit(all bool) error {
	if all {
		m.Committed(0, m.lsn)
	}
	return m.Checkpoint(context.Background())
}

// layers returns what a member has.
func (p *pair) layers(m *member) map[string][16]byte {
	found := make(map[string][16]byte)
	for _, s := range p.survey(m, 0) {
		for _, l := range s.Layers {
			found[fmt.Sprint(s.Ref, l.Seq)] = l.Digest
		}
	}
	return found
}

func (p *pair) survey(m *member, trusted chunk.LSN) (all []chunk.Survey) {
	for after := (chunk.Ref{}); ; {
		some, err := m.Survey(0, after, 1+p.rng.IntN(4), trusted)
		must(p.t, err)
		if len(some) == 0 {
			return all
		}
		all, after = append(all, some...), some[len(some)-1].Ref
	}
}

// bring makes m what other is, and reports whether that came to its end.
func (p *pair) bring(m, other *member, surely bool) (sent int, whole bool) {
	tokens := maps.Clone(p.tokens)
	must(p.t, await(func(done func(error)) error { return m.Reset(context.Background(), 0, 1, p.last, tokens, done) }))
	m.lsn = p.last
	p.note("goes on behind %d, trusting %d", p.last, m.Trusted(0))
	for _, part := range p.differing(m, other) {
		if !surely && p.rng.IntN(40) == 0 {
			p.crash(m)
			return sent, false
		}
		has, err := m.Outline(part)
		must(p.t, err)
		for range p.rng.IntN(3) {
			p.append(p.someOp(false), p.members[:]...)
		}
		c, differs, err := other.Differ(part, has)
		must(p.t, err)
		if !differs {
			continue
		}
		p.note("%v: data %x, zeros %x, sent %x", part, c.Data, c.Zero, c.Sent)
		sent += bits.OnesCount64(c.Sent)
		must(p.t, await(func(done func(error)) error { return m.Copy(context.Background(), 0, &c, done) }))
	}
	return sent, true
}

func (p *pair) crash(m *member) {
	p.note("the power goes")
	m.disk.cutAfter(1)
	m.Checkpoint(context.Background())
	m.Close()
	m.disk.lose(p.rng)
	p.open(m)
}

// differing returns the parts that may differ: by what changed last alone,
// not by the digests that chunkservers look at, too.
func (p *pair) differing(m, other *member) (parts []chunk.Part) {
	type layer struct {
		ref chunk.Ref
		seq chunk.Seq
	}
	found := make(map[layer][2]chunk.LayerSurvey)
	for i, of := range []*member{m, other} {
		for _, s := range p.survey(of, m.Trusted(0)) {
			for _, l := range s.Layers {
				both := found[layer{s.Ref, l.Seq}]
				both[i] = l
				found[layer{s.Ref, l.Seq}] = both
			}
		}
	}
	for id, both := range found {
		for all := both[0].Parts ^ both[1].Parts | both[0].Fresh | both[1].Fresh; all != 0; all &= all - 1 {
			parts = append(parts, chunk.Part{Ref: id.ref, Seq: id.seq, Part: uint8(bits.TrailingZeros64(all))})
		}
	}
	slices.SortFunc(parts, func(a, b chunk.Part) int { return bytes.Compare(fmt.Append(nil, a), fmt.Append(nil, b)) })
	p.rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	return parts
}

// append makes an operation the next of the history, which some members execute.
func (p *pair) append(op chunk.Op, members ...*member) {
	p.last++
	p.note("%d: %v %v of %d at %d+%d, by %d", p.last, op.Kind, op.Ref, op.Token.Seq, op.Off/chunk.BlockSize, op.Len/chunk.BlockSize, len(members))
	if op.Token.Compare(p.tokens[op.Ref.Volume]) > 0 {
		p.tokens[op.Ref.Volume] = op.Token
	}
	for _, m := range members {
		m.lsn = p.last
		must(p.t, m.appendOne(op, p.last))
	}
}

func (m *member) appendOne(op chunk.Op, lsn chunk.LSN) error {
	entry := chunk.Entry{Epoch: 1, LSN: lsn, Op: op}
	return await(func(done func(error)) error { return m.Append(context.Background(), []chunk.Entry{entry}, done) })
}

// someOp returns an operation; only if any is true one that depends on what
// there is. Volume 3 is a clone of the first layer of volume 1.
func (p *pair) someOp(any bool) chunk.Op {
	volume := chunk.VolumeID(1 + p.rng.IntN(3))
	ref := chunk.Ref{Volume: volume, Index: uint32(p.rng.IntN(2))}
	if any && p.rng.IntN(6) == 0 && p.seqs[volume] < 4 {
		p.seqs[volume]++
	}
	seq := p.seqs[volume]
	if volume == 1 && seq == 1 && p.rng.IntN(2) == 0 {
		p.seqs[1]++ // the clone's snapshot does not change any more
	}
	block := slots[p.rng.IntN(len(slots))]
	switch k := p.rng.IntN(8); {
	case k == 0 && any:
		return chunk.Op{Kind: chunk.OpPurge, Ref: ref, Views: p.views(volume), UpTo: seq}
	case k == 1 && any && volume == 3 && p.seqs[1] > 1:
		return chunk.Op{Kind: chunk.OpFlatten, Ref: ref, Off: uint32(block) * chunk.BlockSize, Len: chunk.BlockSize, Views: p.views(3)}
	case k < 3:
		return zeroOp(ref, seq, block, 1)
	}
	p.stamp++
	op := writeOp(ref, seq, block, filled(1, p.stamp))
	op.Token.Attachment = 1
	return op
}

// views are those of a volume that are left: its head, and the clone's snapshot.
func (p *pair) views(volume chunk.VolumeID) []*chunk.View {
	var parent *chunk.View
	lineage := chunk.NewLineage()
	switch volume {
	case 1:
		return []*chunk.View{chunk.NewView(1, lineage.Freeze(1), nil), chunk.NewView(1, lineage.Freeze(p.seqs[1]), nil)}
	case 3:
		parent = chunk.NewView(1, lineage.Freeze(1), nil)
	}
	return []*chunk.View{chunk.NewView(volume, lineage.Freeze(p.seqs[volume]), parent)}
}

// compare finds the members equal, down to the last block, and undamaged.
func (p *pair) compare(m, other *member) {
	if diff := cmp.Diff(p.layers(other), p.layers(m)); diff != "" {
		p.t.Errorf("layers differ (-other +member):\n%s", diff)
	}
	for _, s := range p.survey(other, 0) {
		for _, l := range s.Layers {
			for all := l.Parts; all != 0; all &= all - 1 {
				part := chunk.Part{Ref: s.Ref, Seq: l.Seq, Part: uint8(bits.TrailingZeros64(all))}
				has, err := m.Outline(part)
				must(p.t, err)
				if c, differs, err := other.Differ(part, has); err != nil || differs {
					p.t.Errorf("%v differs: %v, %x sent", part, err, c.Sent)
				}
			}
		}
	}
	must(p.t, m.Check(context.Background(), func(f Finding) { p.t.Errorf("%v", f) }))
	var used [2]uint64
	for i, of := range []*member{m, other} {
		usage, err := of.Usage()
		must(p.t, err)
		used[i] = usage.Used
	}
	if used[0] != used[1] {
		p.t.Errorf("%d bytes used, %d by the other", used[0], used[1])
	}
}
