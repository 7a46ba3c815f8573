package chunkserver

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/store"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// without returns a configuration of everybody in which one member has a state.
func (l *leader) without(id chunk.CopysetID, epoch chunk.Epoch, primary, node chunk.NodeID, state chunk.MemberState) chunk.Copyset {
	c := l.config(id, epoch, primary)
	c.Member(node).State = state
	return c
}

// synced waits until the primary reports that a member may be in sync.
func (l *leader) synced(id chunk.CopysetID, epoch chunk.Epoch, primary, node chunk.NodeID) {
	l.t.Helper()
	l.await(fmt.Sprintf("node %d synced in epoch %d", node, epoch), func() bool {
		return slices.ContainsFunc(l.signs[primary].Reports, func(r wire.Report) bool {
			return r.Copyset == id && r.Epoch == epoch && slices.Contains(r.Synced, node)
		})
	})
}

// A member that was out while others wrote, and that has an operation that
// nobody else has, is sent what differs, while writes go on.
func TestReturningMemberIsBroughtUpToDate(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 3)
	cell.configure(cell.config(0, 1, 1))
	client := cell.client(1)
	const blocks = 1024
	for i := range uint32(blocks) {
		client.mustWrite(0, 1, i*chunk.BlockSize, byte(i))
	}
	cell.configure(cell.without(0, 2, 1, 3, chunk.Out))
	for i := range uint32(10) {
		client.mustWrite(0, 2, i*chunk.BlockSize, byte(100+i))
	}
	cell.configure(cell.without(0, 3, 1, 3, chunk.Syncing))
	for i := range uint32(20) {
		client.mustWrite(0, 3, (5+i)*chunk.BlockSize, byte(200+i))
	}
	cell.synced(0, 3, 1, 3)
	cell.configure(cell.config(0, 4, 1))
	client.mustWrite(0, 4, 0, 255)
	same(t, cell.hosts[0], cell.hosts[2])
	if copied := cell.hosts[2].server.copied.Load(); copied == 0 || copied > 35*chunk.BlockSize {
		t.Errorf("%d bytes were copied, at most %d blocks differed", copied, 35)
	}
	// It is the primary now, and knows everything.
	if _, err := cell.seal(3, map[chunk.CopysetID]chunk.Epoch{0: 5}); err != nil {
		t.Fatal(err)
	}
	cell.configure(cell.config(0, 5, 3))
	client = cell.client(3)
	client.mustRead(0, 5, 0, 255)
	client.mustRead(0, 5, 4*chunk.BlockSize, 104)
	client.mustRead(0, 5, 24*chunk.BlockSize, 219)
	client.mustRead(0, 5, 100*chunk.BlockSize, 100)
}

// A member that has nothing is sent everything, also if its process ends half
// way.
func TestNewMemberIsSentEverything(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 3)
	cell.configure(cell.without(0, 1, 1, 3, chunk.Out))
	client := cell.client(1)
	const blocks = 2000
	for i := range uint32(blocks) {
		client.mustWrite(0, 1, i*chunk.BlockSize, byte(i))
	}
	epoch := chunk.Epoch(2)
	cell.configure(cell.without(0, epoch, 1, 3, chunk.Syncing))
	for cell.hosts[2].server.copied.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	old := cell.session(3).Incarnation
	cell.hosts[2].stop()
	cell.hosts[2].start()
	cell.process(3, old)
	epoch++
	cell.configure(cell.without(0, epoch, 1, 3, chunk.Syncing))
	cell.synced(0, epoch, 1, 3)
	same(t, cell.hosts[0], cell.hosts[2])
}

// Nothing has to be written for it after all processes were restarted.
func TestMemberIsBroughtUpToDateAfterARestart(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 3)
	cell.configure(cell.config(0, 1, 1))
	client := cell.client(1)
	client.mustWrite(0, 1, 0, 1)
	cell.configure(cell.without(0, 2, 1, 3, chunk.Out))
	client.mustWrite(0, 2, 0, 2)
	cell.restart()
	for node := chunk.NodeID(1); node <= 2; node++ {
		if _, err := cell.seal(node, map[chunk.CopysetID]chunk.Epoch{0: 3}); err != nil {
			t.Fatal(err)
		}
	}
	cell.configure(cell.without(0, 3, 1, 3, chunk.Syncing))
	cell.synced(0, 3, 1, 3)
	same(t, cell.hosts[0], cell.hosts[2])
}

// What a chunkserver has of a copyset that it is no member of any more is
// dropped.
func TestCopysetOfOthersIsDropped(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 3)
	cell.configure(cell.config(0, 1, 1))
	client := cell.client(1)
	client.mustWrite(0, 1, 0, 1)
	without := cell.config(0, 2, 1)
	without.Members = without.Members[:2]
	cell.configure(without)
	client.mustWrite(0, 2, 0, 2)
	s := cell.hosts[2].server.store
	cell.eventually("drop of what is left", func() bool {
		left, err := s.Survey(0, chunk.Ref{}, 1, 0)
		return err == nil && len(left) == 0
	})
	// It can become a member again, like any other.
	cell.configure(cell.without(0, 3, 1, 3, chunk.Syncing))
	cell.synced(0, 3, 1, 3)
	cell.configure(cell.config(0, 4, 1))
	client.mustWrite(0, 4, chunk.BlockSize, 3)
	same(t, cell.hosts[0], cell.hosts[2])
}

// eventually waits until ok.
func (l *leader) eventually(what string, ok func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("%s: not within the time", what)
		}
	}
}

// A block that is damaged on disk is never returned: it is put right from
// another member's copy, on reading, and by the search for damage.
func TestDamagedBlocksAreMended(t *testing.T) {
	t.Parallel()
	cell := newCell(t, 3)
	cell.configure(cell.config(0, 1, 1))
	client := cell.client(1)
	for i := range uint32(4) {
		client.mustWrite(0, 1, i*chunk.BlockSize, byte(1+i))
	}
	for i, h := range cell.hosts[:2] {
		if err := h.server.store.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		damage(t, h.dir, int64(i+1)*chunk.BlockSize)
	}
	client.mustRead(0, 1, chunk.BlockSize, 2)
	client.mustRead(0, 1, 2*chunk.BlockSize, 3)
	if err := cell.hosts[1].server.store.Check(t.Context(), cell.hosts[1].server.mendFound); err != nil {
		t.Fatal(err)
	}
	for _, h := range cell.hosts {
		var found []string
		if err := h.server.store.Check(t.Context(), func(f store.Finding) { found = append(found, f.String()) }); err != nil || len(found) > 0 {
			t.Errorf("left damaged: %q, %v", found, err)
		}
	}
}

// damage flips a byte in the one layer file of a directory.
func damage(t *testing.T, dir string, off int64) {
	files, err := filepath.Glob(filepath.Join(dir, "layers", "*", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%d layers, %v", len(files), err)
	}
	file, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var b [1]byte
	if _, err := file.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := file.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

func TestDiffering(t *testing.T) {
	t.Parallel()
	ref := chunk.Ref{Volume: 1, Index: 2}
	layer := func(seq chunk.Seq, fresh, parts uint64, digest byte) chunk.LayerSurvey {
		return chunk.LayerSurvey{Seq: seq, Fresh: fresh, Parts: parts, Digest: [16]byte{digest}}
	}
	part := func(seq chunk.Seq, n uint8) chunk.Part { return chunk.Part{Ref: ref, Seq: seq, Part: n} }
	theirs := chunk.Survey{Ref: ref, Layers: []chunk.LayerSurvey{layer(2, 0, 3, 1), layer(3, 1, 3, 1), layer(4, 0, 6, 1), layer(5, 0, 5, 1), layer(7, 0, 1, 1)}}
	ours := chunk.Survey{Ref: ref, Layers: []chunk.LayerSurvey{layer(1, 0, 1, 1), layer(2, 0, 3, 1), layer(3, 0, 3, 1), layer(4, 0, 3, 2), layer(5, 0, 5, 2), layer(8, 0, 8, 1)}}
	want := []chunk.Part{part(1, 0), part(3, 0), part(4, 0), part(4, 2), part(5, 0), part(5, 2), part(7, 0), part(8, 3)}
	if diff := cmp.Diff(want, differing(theirs, ours)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := differing(chunk.Survey{Ref: ref}, ours); len(got) != 10 {
		t.Errorf("nothing there: %v", got)
	}
}
