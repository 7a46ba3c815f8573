package cluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

var seed = flag.Uint64("cluster.seed", 0, "of the random schedule; 0: a new one")

// access is a write to a register, or a read of it.
type access struct {
	key   uint64
	write string // "": a read
}

// registers is what a history of accesses must look like.
var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := make(map[uint64][]porcupine.Operation)
		for _, o := range history {
			k := o.Input.(access).key
			byKey[k] = append(byKey[k], o)
		}
		var parts [][]porcupine.Operation
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		if a := input.(access); a.write != "" {
			return true, a.write
		}
		return output == state, state
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprint(input, " -> ", output) },
}

// history records what clients did and got.
type history struct {
	mu         sync.Mutex
	start      time.Time
	operations []porcupine.Operation
}

func (h *history) now() int64 { return int64(time.Since(h.start)) }

func (h *history) add(o porcupine.Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.operations = append(h.operations, o)
}

// TestLinearizable lets clients ask any member, while members die, come back
// and are cut off, and judges what they were answered.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	const clients, keys, rounds = 6, 3, 6
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-cluster.seed=%d", *seed)
	random := rand.New(rand.NewPCG(*seed, 0))

	c := startTrio(t)
	c.leader()
	h := &history{start: time.Now()}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	var nodes sync.RWMutex // c.node doesn't change
	for client := range clients {
		random := rand.New(rand.NewPCG(*seed, uint64(client)+1))
		done.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				nodes.RLock()
				n := c.node[random.IntN(3)]
				nodes.RUnlock()
				a := access{key: random.Uint64N(keys)}
				if random.IntN(2) == 0 {
					a.write = fmt.Sprintf("%d.%d", client, i)
				}
				if n != nil {
					h.do(ctx, client, n, a)
				}
			}
		})
	}
	set := func(i int, n *Node) {
		nodes.Lock()
		defer nodes.Unlock()
		c.node[i] = n
	}
	progress := func() {
		h.mu.Lock()
		enough := len(h.operations) + 30
		h.mu.Unlock()
		c.until("operations", func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return len(h.operations) >= enough
		})
	}
	for range rounds {
		progress()
		victim := c.leader()
		if random.IntN(4) == 0 {
			victim = random.IntN(3)
		}
		n := c.node[victim]
		if random.IntN(2) == 0 {
			c.net.sever(n.self.Raft, random.IntN(2) == 0)
			progress()
			c.net.heal()
			continue
		}
		set(victim, nil)
		n.leave()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		progress()
		c.config[victim].Listener = c.net.listen(t, n.self.Raft)
		again, err := Open(c.config[victim])
		if err != nil {
			t.Fatal(err)
		}
		set(victim, again)
	}
	progress()
	cancel()
	done.Wait()
	c.settled()

	t.Logf("%d operations", len(h.operations))
	if result := porcupine.CheckOperationsTimeout(registers, h.operations, patience); result != porcupine.Ok {
		t.Errorf("the history of %d operations is %v", len(h.operations), result)
	}
}

// do carries out an access and records it, if it may have happened.
func (h *history) do(ctx context.Context, client int, n *Node, a access) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	o := porcupine.Operation{ClientId: client, Input: a, Call: h.now()}
	var err error
	if a.write == "" {
		if o.Output, err = get(ctx, n, a.key); err != nil {
			return
		}
	} else if _, err = n.Apply(ctx, register(a.key, a.write)); err != nil && !errors.Is(err, ErrUnknown) {
		return
	}
	o.Return = h.now()
	if err != nil {
		o.Return = int64(time.Hour) // it may yet happen
	}
	h.add(o)
}
