package coordinator

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
	"github.com/localsnap/localsnap/fsm"
)

const (
	// copies is how many chunkservers hold each copyset.
	copies = 3
	// poolSize is the number of copysets of a pool, for good.
	poolSize = 64
)

// keepCopysets makes the pool when there are chunkservers for it, gives a new
// configuration to copysets with a member whose process was replaced, and
// tells members what they have not confirmed.
func (t *term) keepCopysets(ctx context.Context) error {
	if err := t.refreshCopysets(); err != nil {
		return err
	}
	t.mu.Lock()
	configs, present := t.copysets, maps.Clone(t.chunkservers)
	t.mu.Unlock()
	if len(configs) == 0 {
		if len(present) < copies {
			return fmt.Errorf("%d of %d chunkservers have registered", len(present), copies)
		}
		if _, err := t.node.Apply(ctx, fsm.CreatePool{Name: fsm.DefaultPool, Copysets: place(present)}); err != nil {
			return fmt.Errorf("make the pool: %w", err)
		}
	} else if err := t.reconfigure(ctx, configs, present); err != nil {
		return err
	}
	if err := t.refreshCopysets(); err != nil {
		return err
	}
	return t.configure(ctx)
}

// refreshCopysets reads what copysets and chunkservers there are, and tells
// gateways when that has changed.
func (t *term) refreshCopysets() error {
	return t.node.ReadLocal(func(state *fsm.State) error {
		copysets, addresses := state.Copysets(fsm.DefaultPool), make(map[chunk.NodeID]string)
		for _, node := range state.Nodes() {
			addresses[node.ID] = node.Address
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		same := maps.Equal(t.addresses, addresses) && slices.EqualFunc(t.copysets, copysets, func(a, b chunk.Copyset) bool { return a.Epoch == b.Epoch })
		t.copysets, t.addresses = copysets, addresses
		if !same {
			for _, g := range t.gateways {
				t.tellMap(g.conn)
			}
		}
		return nil
	})
}

// tellMap tells a gateway, if it is connected, where copysets are. mu must be
// held.
func (t *term) tellMap(conn *wire.Conn) {
	if conn == nil || len(t.copysets) == 0 {
		return
	}
	body, err := json.Marshal(wire.Map{Cluster: t.cluster.String(), Copysets: t.copysets, Peers: t.addresses})
	if err != nil {
		panic(fmt.Sprintf("coordinator: encode the map: %v", err)) // plain values only: can't fail
	}
	conn.Tell(wire.KindMapped, body, nil)
}

// place spreads a new pool over the chunkservers, all of which are empty.
func place(present map[chunk.NodeID]*chunkserver) []chunk.Copyset {
	ids := slices.Sorted(maps.Keys(present))
	pool := make([]chunk.Copyset, poolSize)
	for i := range pool {
		config := chunk.Copyset{ID: chunk.CopysetID(i), Epoch: 1}
		for j := range copies {
			node := present[ids[(i+j)%len(ids)]].node
			config.Members = append(config.Members, chunk.Member{Node: node.ID, Incarnation: node.Incarnation, State: chunk.InSync})
		}
		config.Primary = config.Members[0].Node
		pool[i] = config
	}
	return pool
}

// reconfigure begins a new epoch of each copyset with a member that runs in
// another process than its configuration says. All its in-sync members have to
// be there.
func (t *term) reconfigure(ctx context.Context, configs []chunk.Copyset, present map[chunk.NodeID]*chunkserver) error {
	var changing []chunk.Copyset
	epochs := make(map[chunk.NodeID]map[chunk.CopysetID]chunk.Epoch) // to seal, by member
	for _, config := range configs {
		if !restarted(config, present) {
			continue
		}
		changing = append(changing, config)
		for _, m := range inSync(config) {
			if epochs[m.Node] == nil {
				epochs[m.Node] = make(map[chunk.CopysetID]chunk.Epoch)
			}
			epochs[m.Node][config.ID] = config.Epoch + 1
		}
	}
	if len(changing) == 0 {
		return nil
	}
	sealed, err := t.seal(ctx, epochs, present)
	if err != nil {
		return err
	}
	for i, config := range changing {
		changing[i] = succeed(config, present, sealed)
	}
	if _, err := t.node.Apply(ctx, fsm.Reconfigure{Pool: fsm.DefaultPool, Copysets: changing}); err != nil {
		return fmt.Errorf("configure %d copysets: %w", len(changing), err)
	}
	t.log.Info("configured copysets anew", "copysets", len(changing))
	return nil
}

// restarted reports whether a copyset needs, and can get, a new epoch.
func restarted(config chunk.Copyset, present map[chunk.NodeID]*chunkserver) bool {
	changed := false
	for _, m := range inSync(config) {
		s := present[m.Node]
		if s == nil {
			return false
		}
		changed = changed || s.node.Incarnation != m.Incarnation
	}
	return changed
}

func inSync(config chunk.Copyset) []chunk.Member {
	return slices.DeleteFunc(slices.Clone(config.Members), func(m chunk.Member) bool { return m.State != chunk.InSync })
}

// history is where a member's history of a copyset ends.
type history struct {
	node    chunk.NodeID
	copyset chunk.CopysetID
}

// seal has members promise to refuse smaller epochs, and returns how far the
// history of each reaches.
func (t *term) seal(ctx context.Context, epochs map[chunk.NodeID]map[chunk.CopysetID]chunk.Epoch, present map[chunk.NodeID]*chunkserver) (map[history]wire.Sealed, error) {
	nodes := slices.Collect(maps.Keys(epochs))
	sealed := make(map[history]wire.Sealed)
	var mu sync.Mutex
	err := parallel(ctx, len(nodes), len(nodes), func(ctx context.Context, i int) error {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		var answers []wire.Sealed
		if err := wire.Ask(ctx, present[nodes[i]].conn, wire.KindSeal, wire.Seal{Epochs: epochs[nodes[i]]}, &answers); err != nil {
			return fmt.Errorf("seal at chunkserver %d: %w", nodes[i], err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, answer := range answers {
			sealed[history{nodes[i], answer.Copyset}] = answer
		}
		for copyset := range epochs[nodes[i]] {
			if _, ok := sealed[history{nodes[i], copyset}]; !ok {
				return fmt.Errorf("%w: chunkserver %d left copyset %d unsealed", wire.ErrUnavailable, nodes[i], copyset)
			}
		}
		return nil
	})
	return sealed, err
}

// succeed is the configuration that follows on config: with the present
// processes, and the longest history as primary. Of equal ones it takes the
// member whose turn it is, so that primaries stay spread.
func succeed(config chunk.Copyset, present map[chunk.NodeID]*chunkserver, sealed map[history]wire.Sealed) chunk.Copyset {
	next := chunk.Copyset{ID: config.ID, Epoch: config.Epoch + 1, Members: slices.Clone(config.Members)}
	var longest wire.Sealed
	for i := range next.Members {
		m := &next.Members[i]
		if m.State != chunk.InSync {
			continue
		}
		m.Incarnation = present[m.Node].node.Incarnation
		end := sealed[history{m.Node, config.ID}]
		if next.Primary == 0 || cmp.Or(cmp.Compare(end.Epoch, longest.Epoch), cmp.Compare(end.LSN, longest.LSN)) > 0 {
			next.Primary, longest = m.Node, end
		}
	}
	return next
}

// configure tells every connected member the configurations that it has not
// confirmed.
func (t *term) configure(ctx context.Context) error {
	type errand struct {
		to   *chunkserver
		what wire.Configure
	}
	var errands []errand
	t.mu.Lock()
	for id, s := range t.chunkservers {
		e := errand{s, wire.Configure{Peers: t.addresses}}
		for _, config := range t.copysets {
			if config.Member(id) != nil && s.told[config.ID] < config.Epoch {
				e.what.Copysets = append(e.what.Copysets, config)
			}
		}
		if len(e.what.Copysets) > 0 {
			errands = append(errands, e)
		}
	}
	t.mu.Unlock()
	return parallel(ctx, len(errands), len(errands), func(ctx context.Context, i int) error {
		e := errands[i]
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if err := wire.Ask(ctx, e.to.conn, wire.KindConfigure, e.what, nil); err != nil {
			return fmt.Errorf("configure chunkserver %d: %w", e.to.node.ID, err)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, config := range e.what.Copysets {
			e.to.told[config.ID] = config.Epoch
		}
		return nil
	})
}
