package coordinator

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
	"github.com/localsnap/localsnap/cluster"
	"github.com/localsnap/localsnap/fsm"
)

const (
	// verifyTime is how long copies may take to become equal before they are
	// said to differ: members free space at different moments, and those that
	// are written are never compared at the same.
	verifyTime = 5 * time.Second
	// verifyPause is the time between two comparisons.
	verifyPause = 100 * time.Millisecond
)

// Presences returns the chunkservers that are connected.
func (c *Coordinator) Presences() (map[chunk.NodeID]cluster.Presence, error) {
	t, err := c.current()
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	presences := make(map[chunk.NodeID]cluster.Presence)
	for id, s := range t.chunkservers {
		presences[id] = cluster.Presence{Silent: time.Since(t.heard[id]), Used: s.sign.Used, Free: s.sign.Free}
	}
	return presences, nil
}

// Verify compares the copies in sync of every copyset of the default pool.
func (c *Coordinator) Verify(ctx context.Context) (map[chunk.CopysetID]cluster.Verdict, error) {
	t, err := c.current()
	if err != nil {
		return nil, err
	}
	ctx, done := t.within(ctx)
	defer done()
	ctx, cancel := context.WithTimeout(ctx, verifyTime)
	defer cancel()
	verdicts := make(map[chunk.CopysetID]cluster.Verdict)
	for {
		configs, roots, err := t.toVerify(ctx)
		if err != nil {
			return nil, err
		}
		copies := t.digests(ctx, len(configs), roots)
		if ctx.Err() != nil && len(verdicts) > 0 {
			return verdicts, nil // this round was cut short
		}
		again := false
		for _, config := range configs {
			if verdicts[config.ID] != cluster.Identical {
				verdicts[config.ID] = judge(config, copies)
				again = again || verdicts[config.ID] != cluster.Identical
			}
		}
		if !again || !wait(ctx, verifyPause) {
			return verdicts, nil
		}
	}
}

// toVerify reads the copysets, and the root of each volume.
func (t *term) toVerify(ctx context.Context) (configs []chunk.Copyset, roots map[chunk.VolumeID]chunk.VolumeID, err error) {
	err = t.node.Read(ctx, func(state *fsm.State) error {
		configs, roots = state.Copysets(fsm.DefaultPool), state.Roots()
		return nil
	})
	return configs, roots, err
}

// digests asks every chunkserver that is connected what its copies come to.
func (t *term) digests(ctx context.Context, copysets int, roots map[chunk.VolumeID]chunk.VolumeID) map[history]wire.Digested {
	t.mu.Lock()
	sessions := maps.Clone(t.chunkservers)
	t.mu.Unlock()
	copies := make(map[history]wire.Digested)
	var mu sync.Mutex
	var asking sync.WaitGroup
	for id, s := range sessions {
		asking.Go(func() {
			var sums []wire.Digested
			if err := wire.Ask(ctx, s.conn, wire.KindDigest, wire.Digest{Copysets: copysets, Roots: roots}, &sums); err != nil {
				t.log.Debug("no digests", "node", id, "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, sum := range sums {
				copies[history{id, sum.Copyset}] = sum
			}
		})
	}
	asking.Wait()
	return copies
}

// judge compares the copies in sync of one copyset.
func judge(config chunk.Copyset, copies map[history]wire.Digested) cluster.Verdict {
	verdict := cluster.Identical
	members := inSync(config)
	first := copies[history{members[0].Node, config.ID}]
	for _, m := range members {
		copy, ok := copies[history{m.Node, config.ID}]
		switch {
		case !ok:
			return cluster.Unheard
		case !copy.Settled || copy.LSN != first.LSN:
			verdict = cluster.Unsettled
		case copy != first && verdict == cluster.Identical:
			verdict = cluster.Differing
		}
	}
	return verdict
}
