package store

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// victimDir names the directory that a process writes to until it is killed.
const victimDir = "LOCALSNAP_TEST_VICTIM_DIR"

// A process is killed over and over while it writes as fast as it can. All
// that it has acknowledged is found by the next one, which writes on.
func TestKilledProcess(t *testing.T) {
	if dir := os.Getenv(victimDir); dir != "" {
		writeUntilKilled(t, dir)
		return
	}
	if testing.Short() {
		t.Skip("starts processes")
	}
	t.Parallel()
	dir := t.TempDir()
	for round := range 4 {
		acked := killVictim(t, dir, 300+200*round)
		s := mustOpen(t, dir, victimOptions)
		last := lastOf(s, 0).Last
		if last < acked {
			t.Fatalf("round %d: %d was acknowledged, the history ends at %d", round, acked, last)
		}
		c := &client{Store: s}
		// What the last operations on each block have left.
		want := make(map[int]uint64)
		for lsn := chunk.LSN(1); lsn <= last; lsn++ {
			want[victimBlock(lsn)] = uint64(lsn)
		}
		for block, stamp := range want {
			if got := c.mustRead(t, head(1), 0, block, 1); !bytes.Equal(got, stamped(stamp, 1)) {
				t.Errorf("round %d: block %d holds %d, want %d", round, block, stampOf(got), stamp)
			}
		}
		must(t, s.Check(context.Background(), func(f Finding) { t.Error(f) }))
		must(t, s.Close())
	}
}

// victimOptions make segments and checkpoints change often.
var victimOptions = Options{SegmentBytes: 512 << 10, CheckpointBytes: 1 << 20, ReserveBytes: 1, CacheBytes: 1 << 20}

func victimBlock(lsn chunk.LSN) int { return int(uint64(lsn)*0x9e3779b97f4a7c15>>20) % chunk.Blocks }

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
		e := chunk.Entry{LSN: lsn, Commit: lsn - 1, Op: writeOp(ref10, 1, victimBlock(lsn), stamped(uint64(lsn), 1))}
		must(t, s.Append(context.Background(), []chunk.Entry{e}, func(err error) {
			must(t, err)
			fmt.Println(lsn)
			<-slots
		}))
	}
}
