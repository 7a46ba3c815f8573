package coordinator

import (
	"context"
	"time"

	"github.com/localsnap/localsnap/fsm"
)

// sweepPeriod is the least time between two sweeps: a volume whose writer stays
// may take up to twice its size meanwhile, and each sweep is an operation on
// every chunk of it.
const sweepPeriod = time.Hour

// sweep has volumes purged whose writers leave garbage of which nobody tells.
func (t *term) sweep(ctx context.Context) error {
	due := false
	err := t.node.ReadLocal(func(state *fsm.State) error {
		last, eroding := state.Swept()
		due = eroding && last+uint64(sweepPeriod.Microseconds()) <= now()
		return nil
	})
	if err != nil || !due {
		return err
	}
	volumes, err := t.node.Apply(ctx, fsm.Sweep{Time: now()})
	if err != nil {
		return err
	}
	t.log.Info("swept", "volumes", volumes)
	t.ring()
	return nil
}
