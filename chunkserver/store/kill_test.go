package store

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// victimDir names the directory that a process writes to until it is killed.
const victimDir = "LOCALSNAP_TEST_VICTIM_DIR"

var killCount = flag.Int("kills", 4, "how often TestKilledProcess kills a process")

// A process is killed over and over while it writes as fast as it can, and
// sometimes while it recovers from the last time. All that it has acknowledged
// is found by the next one, which goes on from there.
func TestKilledProcess(t *testing.T) {
	if dir := os.Getenv(victimDir); dir != "" {
		writeUntilKilled(t, dir)
		return
	}
	if testing.Short() {
		t.Skip("starts processes")
	}
	t.Parallel()
	rng := seeded(t)
	dir := t.TempDir()
	for round := range *killCount {
		acked := killVictim(t, dir, rng.IntN(10)*rng.IntN(150))
		s := mustOpen(t, dir, victimOptions)
		last := lastOf(s, 0).Last
		if last < acked {
			t.Fatalf("round %d: %d was acknowledged, the history ends at %d", round, acked, last)
		}
		checkVictim(t, &client{Store: s}, last)
		must(t, s.Check(context.Background(), func(f Finding) { t.Error(f) }))
		must(t, s.Close())
		if t.Failed() {
			t.Fatalf("in round %d, after %d operations", round, last)
		}
	}
}

// checkVictim compares the head and some snapshots with what the operations up
// to last have made of them.
func checkVictim(t *testing.T, c *client, last chunk.LSN) {
	t.Helper()
	want := make(map[int][]byte)
	check := func(v *chunk.View) {
		t.Helper()
		for block, content := range want {
			if got := c.mustRead(t, v, 0, block, 1); !bytes.Equal(got, content) {
				t.Errorf("block %d of %v holds %d, want %d", block, v.Lineage(), stampOf(got), stampOf(content))
			}
		}
	}
	for lsn := chunk.LSN(1); lsn <= last; lsn++ {
		op := victimOp(lsn)
		want[int(op.Off)/chunk.BlockSize] = op.Data
		if op.Kind == chunk.OpZero {
			want[int(op.Off)/chunk.BlockSize] = filled(1, 0)
		}
		if seq := op.Token.Seq; lsn%victimSnapshot == victimSnapshot-1 && seq%4 == 0 {
			check(chunk.NewView(1, chunk.NewLineage().Freeze(seq), nil))
		}
	}
	check(head(1))
}

// victimOptions make segments and checkpoints change often.
var victimOptions = Options{SegmentBytes: 512 << 10, CheckpointBytes: 1 << 20, ReserveBytes: 1, CacheBytes: 1 << 20}

// victimSnapshot is the number of operations from one snapshot to the next.
const victimSnapshot = 1000

// victimOp is what the victim does at lsn: it writes blocks and, now and then,
// clears one.
func victimOp(lsn chunk.LSN) chunk.Op {
	seq := 1 + chunk.Seq(lsn)/victimSnapshot
	block := int(uint64(lsn)*0x9e3779b97f4a7c15>>40) % 1000
	if lsn%17 == 0 {
		return zeroOp(ref10, seq, block, 1)
	}
	return writeOp(ref10, seq, block, stamped(uint64(lsn), 1))
}

// killVictim lets a process acknowledge n operations, kills it, and returns
// the last LSN that it has acknowledged.
func killVictim(t *testing.T, dir string, n int) chunk.LSN {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$")
	cmd.Env = append(os.Environ(), victimDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var acked chunk.LSN
	lines := bufio.NewScanner(out)
	for i := 0; lines.Scan(); i++ {
		lsn, err := strconv.ParseUint(lines.Text(), 10, 64)
		if err != nil {
			t.Errorf("the victim said %q", lines.Text())
			break
		}
		acked = chunk.LSN(lsn)
		if i == n {
			must(t, cmd.Process.Kill())
		}
	}
	if cmd.Wait() == nil {
		t.Error("the victim ended by itself")
	}
	return acked
}

func writeUntilKilled(t *testing.T, dir string) {
	s, err := Open(dir, victimOptions)
	must(t, err)
	slots := make(chan struct{}, 16)
	for lsn := lastOf(s, 0).Last + 1; ; lsn++ {
		slots <- struct{}{}
		e := chunk.Entry{LSN: lsn, Commit: lsn - 1, Op: victimOp(lsn)}
		must(t, s.Append(context.Background(), []chunk.Entry{e}, func(err error) {
			must(t, err)
			fmt.Println(lsn)
			<-slots
		}))
	}
}
