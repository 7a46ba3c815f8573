package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
	"github.com/localsnap/localsnap/fsm"
)

const (
	// copies is how many chunkservers hold each copyset.
	copies = 3
	// sealTimeout bounds how long a member may take to promise. Copysets
	// wait for the one that takes longest, until it counts as silent.
	sealTimeout = time.Second
	// inFlight is how long messages between members are under way at most, as
	// a rule.
	inFlight = 20 * time.Millisecond
	// turnRest is how long a copyset keeps a primary that it was to lose, or
	// has got, for the sake of balance.
	turnRest = 10 * time.Second
	// poolSize is the number of copysets of a pool, for good.
	poolSize = 64
)

// keepCopysets makes the pool when there are chunkservers for it, gives new
// configurations to copysets whose members have failed or were replaced by
// other processes, and tells members what they have not confirmed.
func (t *term) keepCopysets(ctx context.Context) error {
	if err := t.refreshCopysets(); err != nil {
		return err
	}
	t.mu.Lock()
	configs := t.copysets
	t.mu.Unlock()
	if len(configs) == 0 {
		return t.makePool(ctx)
	}
	t.configure()
	t.tellLacking(configs)
	o := outlook{nodes: t.look(), reports: t.reports(), turned: make(map[chunk.CopysetID]bool)}
	for id, at := range t.turned {
		o.turned[id] = time.Since(at) < turnRest
	}
	t.mu.Lock()
	o.sealed = maps.Clone(t.sealed)
	t.mu.Unlock()
	return t.reconfigure(ctx, configs, o)
}

func (t *term) makePool(ctx context.Context) error {
	t.mu.Lock()
	sessions := maps.Clone(t.chunkservers)
	t.mu.Unlock()
	if len(sessions) < copies {
		return fmt.Errorf("%d of %d chunkservers have registered", len(sessions), copies)
	}
	if _, err := t.node.Apply(ctx, fsm.CreatePool{Name: fsm.DefaultPool, Copysets: place(sessions)}); err != nil {
		return fmt.Errorf("make the pool: %w", err)
	}
	if err := t.refreshCopysets(); err != nil {
		return err
	}
	t.configure()
	return nil
}

// refreshCopysets reads what copysets and chunkservers there are, and tells
// gateways when that has changed.
func (t *term) refreshCopysets() error {
	return t.node.ReadLocal(func(state *fsm.State) error {
		copysets, addresses, draining := state.Copysets(fsm.DefaultPool), make(map[chunk.NodeID]string), make(map[chunk.NodeID]bool)
		for _, node := range state.Nodes() {
			addresses[node.ID], draining[node.ID] = node.Address, node.Draining
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		same := maps.Equal(t.addresses, addresses) && slices.EqualFunc(t.copysets, copysets, func(a, b chunk.Copyset) bool { return a.Epoch == b.Epoch })
		t.copysets, t.addresses, t.draining = copysets, addresses, draining
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

// reconfigure commits what there is to decide on copysets.
func (t *term) reconfigure(ctx context.Context, configs []chunk.Copyset, o outlook) error {
	var next []chunk.Copyset
	var sealing, turning []change
	changes, waiting := o.plan(configs)
	for _, c := range changes {
		switch {
		case c.heir != 0:
			turning = append(turning, c)
		case c.seal:
			sealing = append(sealing, c)
		default:
			next = append(next, c.goOn(o.nodes))
		}
	}
	if waiting != t.waiting {
		t.waiting = waiting
		t.log.Warn("copysets that wait for a chunkserver, as they have too few copies without it", "copysets", waiting)
	}
	if err := t.commit(ctx, next); err != nil {
		return err
	}
	if err := t.succeed(ctx, sealing, o); err != nil {
		return err
	}
	return t.turn(ctx, turning, o)
}

// turn gives copysets other primaries. The present ones stop first, so that what
// they have sent is everywhere when the others stop: with an end of their own they
// would stay the primary.
func (t *term) turn(ctx context.Context, turning []change, o outlook) error {
	if len(turning) == 0 {
		return nil
	}
	stopping := slices.Clone(turning)
	for i := range stopping {
		stopping[i].staying = []chunk.NodeID{stopping[i].config.Primary}
		t.turned[stopping[i].config.ID] = time.Now()
	}
	if _, err := t.seal(ctx, stopping); err != nil {
		return err
	}
	wait(ctx, inFlight)
	return t.succeed(ctx, turning, o)
}

// succeed ends the present epochs of copysets and begins the next.
func (t *term) succeed(ctx context.Context, sealing []change, o outlook) error {
	ends, err := t.seal(ctx, sealing)
	if err != nil {
		return err
	}
	var next []chunk.Copyset
	for _, c := range sealing {
		config, ok := c.succeed(ends, o.nodes)
		if !ok {
			return fmt.Errorf("%w: copyset %d was not sealed by all members", wire.ErrUnavailable, c.config.ID)
		}
		next = append(next, config)
	}
	return t.commit(ctx, next)
}

// tellLacking logs when copysets begin to lack copies, and when none does.
func (t *term) tellLacking(configs []chunk.Copyset) {
	lacking := 0
	for _, config := range configs {
		if len(inSync(config)) < copies {
			lacking++
		}
	}
	switch {
	case lacking > 0 && t.lacking == 0:
		t.log.Warn("copysets lack copies", "copysets", lacking)
	case lacking == 0 && t.lacking > 0:
		t.log.Info("all copysets have all their copies in sync")
	}
	t.lacking = lacking
}

// commit makes configurations the present ones.
func (t *term) commit(ctx context.Context, configs []chunk.Copyset) error {
	if len(configs) == 0 {
		return nil
	}
	if _, err := t.node.Apply(ctx, fsm.Reconfigure{Pool: fsm.DefaultPool, Copysets: configs}); err != nil {
		return fmt.Errorf("configure %d copysets: %w", len(configs), err)
	}
	t.log.Info("configured copysets anew", "copysets", len(configs))
	if err := t.refreshCopysets(); err != nil {
		return err
	}
	t.configure()
	return nil
}

// history is where a member's history of a copyset ends.
type history struct {
	node    chunk.NodeID
	copyset chunk.CopysetID
}

// seal has the members that stay promise to refuse the present epoch, and
// returns how far the history of each reaches.
func (t *term) seal(ctx context.Context, changes []change) (map[history]wire.Sealed, error) {
	epochs := make(map[chunk.NodeID]map[chunk.CopysetID]chunk.Epoch) // to seal, by member
	t.mu.Lock()
	sessions := maps.Clone(t.chunkservers)
	for _, c := range changes {
		// From here on some member may have done it, whatever is heard of it.
		t.sealed[c.config.ID] = c.config.Epoch
		for _, node := range c.staying {
			if epochs[node] == nil {
				epochs[node] = make(map[chunk.CopysetID]chunk.Epoch)
			}
			epochs[node][c.config.ID] = c.config.Epoch + 1
		}
	}
	t.mu.Unlock()
	nodes := slices.Collect(maps.Keys(epochs))
	sealed := make(map[history]wire.Sealed)
	var mu sync.Mutex
	err := parallel(ctx, len(nodes), len(nodes), func(ctx context.Context, i int) error {
		node := nodes[i]
		session := sessions[node]
		if session == nil {
			return fmt.Errorf("%w: chunkserver %d has left", wire.ErrUnavailable, node)
		}
		answers, err := session.seal(ctx, epochs[node])
		if err != nil {
			return fmt.Errorf("seal at chunkserver %d: %w", node, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, answer := range answers {
			sealed[history{node, answer.Copyset}] = answer
		}
		return nil
	})
	return sealed, err
}

func (s *chunkserver) seal(ctx context.Context, epochs map[chunk.CopysetID]chunk.Epoch) (answers []wire.Sealed, err error) {
	ctx, cancel := context.WithTimeout(ctx, sealTimeout)
	defer cancel()
	err = wire.Ask(ctx, s.conn, wire.KindSeal, wire.Seal{Epochs: epochs}, &answers)
	return answers, err
}

// configure begins to tell every connected chunkserver the configurations that it
// has not confirmed: all of them, as it drops what it has of copysets that it is
// no member of.
func (t *term) configure() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.chunkservers {
		if s.telling {
			continue
		}
		what := wire.Configure{Peers: t.addresses}
		for _, config := range t.copysets {
			if s.told[config.ID] < config.Epoch {
				what.Copysets = append(what.Copysets, config)
			}
		}
		if len(what.Copysets) > 0 {
			s.telling = true
			t.errands.Go(func() { s.tell(what) })
		}
	}
}

// tell has a chunkserver take in configurations.
func (s *chunkserver) tell(what wire.Configure) {
	t := s.term
	ctx, cancel := context.WithTimeout(t.ctx, callTimeout)
	defer cancel()
	var reply wire.Configured
	err := wire.Ask(ctx, s.conn, wire.KindConfigure, what, &reply)
	t.mu.Lock()
	s.telling = false
	if err == nil {
		for _, config := range what.Copysets {
			s.told[config.ID] = config.Epoch
			if slices.Contains(reply.Sealed, config.ID) {
				t.sealed[config.ID] = max(t.sealed[config.ID], config.Epoch)
			}
		}
	}
	t.mu.Unlock()
	if err != nil {
		t.log.Debug("will be told again", "node", s.node.ID, "err", err)
		return
	}
	t.ring() // there may be more to tell
}
