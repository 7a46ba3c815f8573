package nemesis

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
)

// A verifier is fio, which writes a part of a volume and then reads it back,
// again and again.
type verifier struct {
	t       *testing.T
	stopped atomic.Bool
	rounds  atomic.Int64
	done    sync.WaitGroup
}

// startFio begins to write and verify an export that somebody could open
// already.
func startFio(t *testing.T, gateway *process, export string) *verifier {
	v := &verifier{t: t}
	ctx, cancel := context.WithCancel(t.Context())
	v.done.Go(func() {
		defer cancel()
		for !v.stopped.Load() {
			_, err := run(ctx, "", "fio", "--name=verify", "--ioengine=nbd", "--uri=nbd+unix:///"+export+"?socket="+socket(gateway),
				"--rw=randwrite", "--bs=4k", "--size=8m", "--iodepth=8", "--allrandrepeat=0",
				"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--do_verify=1")
			if err != nil {
				t.Error(err)
				return
			}
			v.rounds.Add(1)
		}
	})
	t.Cleanup(func() { cancel(); v.done.Wait() })
	return v
}

// stop lets fio end what it began, verification included.
func (v *verifier) stop() {
	v.t.Helper()
	v.stopped.Store(true)
	v.done.Wait()
	if v.rounds.Load() == 0 {
		v.t.Error("fio has verified nothing")
	}
}
