package store

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

var startMiB = flag.Int64("start-mib", 16, "journal that TestStart leaves behind, in MiB")

// startOptions let the journal grow.
var startOptions = Options{CheckpointBytes: -1, ReserveBytes: 1 << 20}

// journalBytes tells a process how much journal to leave behind.
const journalBytes = "LOCALSNAP_TEST_JOURNAL_BYTES"

// TestStart opens a store that was killed with a long journal, and one that was
// closed, which has as much data. How long that takes on a machine that is not
// busy, make bench tells.
func TestStart(t *testing.T) {
	if dir := os.Getenv(victimDir); dir != "" {
		fillJournal(t, dir)
		return
	}
	if testing.Short() {
		t.Skip("starts processes")
	}
	dir := t.TempDir()
	acked := leaveJournal(t, dir, *startMiB<<20)
	began := time.Now()
	s := mustOpen(t, dir, startOptions)
	t.Logf("started in %v after kill -9 with a journal of %d MiB", time.Since(began), *startMiB)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v to start", took)
	}
	if last := lastOf(s, 0).Last; last < acked {
		t.Fatalf("%d was acknowledged, the history ends at %d", acked, last)
	}
	c := &client{Store: s}
	for lsn := chunk.LSN(1); lsn <= acked; lsn += 1 + acked/64 {
		op := startOp(lsn)
		if got := c.mustRead(t, head(1), op.Ref.Index, int(op.Off)/chunk.BlockSize, 1); !bytes.Equal(got, op.Data) {
			t.Errorf("operation %d is lost", lsn)
		}
	}
	must(t, s.Close())
	began = time.Now()
	mustOpen(t, dir, startOptions)
	t.Logf("started in %v after a clean stop", time.Since(began))
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v to start after a clean stop", took)
	}
}

// startOp writes a block that no other one writes.
func startOp(lsn chunk.LSN) chunk.Op {
	n := uint64(lsn) * 0x9e3779b1 % (1 << 18) // odd: each block of 1 GiB once
	ref := chunk.Ref{Volume: 1, Index: uint32(n / chunk.Blocks)}
	return writeOp(ref, 1, int(n%chunk.Blocks), stamped(uint64(lsn), 1))
}

// leaveJournal has a process write until its journal is so long, kills it, and
// returns the last LSN that it has acknowledged.
func leaveJournal(t testing.TB, dir string, n int64) chunk.LSN {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestStart$")
	cmd.Env = append(os.Environ(), victimDir+"="+dir, fmt.Sprint(journalBytes, "=", n))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line := make([]byte, 64)
	got, err := out.Read(line)
	must(t, err)
	must(t, cmd.Process.Kill())
	cmd.Wait()
	acked, err := strconv.ParseUint(strings.TrimSpace(string(line[:got])), 10, 64)
	must(t, err)
	return chunk.LSN(acked)
}

// fillJournal writes and then waits to be killed.
func fillJournal(t *testing.T, dir string) {
	limit, err := strconv.ParseInt(os.Getenv(journalBytes), 10, 64)
	must(t, err)
	s, err := Open(dir, startOptions)
	must(t, err)
	const depth = 256
	slots := make(chan struct{}, depth)
	lsn := chunk.LSN(0)
	for s.journal.backlog.Load() < limit {
		slots <- struct{}{}
		lsn++
		e := chunk.Entry{LSN: lsn, Commit: lsn - 1, Op: startOp(lsn)}
		must(t, s.Append(context.Background(), []chunk.Entry{e}, func(err error) {
			must(t, err)
			<-slots
		}))
	}
	for range depth {
		slots <- struct{}{}
	}
	fmt.Println(uint64(lsn))
	select {}
}
