package coordinator

import (
	"cmp"
	"maps"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// maxJoining bounds how many copysets a chunkserver joins at a time, so that
// some are moved soon, and its disk has time for those who wait for it.
const maxJoining = 4

// plan tells what is to be done about the copysets of a pool, and how many can
// only wait. Failures come first (see decide). Copysets that are at rest are
// arranged: each is to have three members, on chunkservers that stay, in equal
// shares. What is to be done follows from nothing but the present configurations
// and the outlook, so that any leader goes on where another one stopped; and as
// every move makes shares more equal, there is an end.
func (o *outlook) plan(configs []chunk.Copyset) (changes []change, waiting int) {
	var resting []chunk.Copyset
	for _, config := range configs {
		c, ok := o.decide(config)
		switch {
		case ok:
			changes = append(changes, c)
		case len(c.staying) < c.least:
			waiting++
		case o.rests(config):
			resting = append(resting, config)
		}
	}
	p := o.measure(configs)
	for _, config := range resting {
		if c, ok := p.arrange(config); ok {
			changes = append(changes, c)
		}
	}
	if len(changes) == 0 && len(resting) == len(configs) {
		changes = o.turn(configs)
	}
	return changes, waiting
}

// rests reports whether nothing is going on in a copyset: those in sync are there,
// and nobody is being brought up to date.
func (o *outlook) rests(config chunk.Copyset) bool {
	return !slices.ContainsFunc(config.Members, func(m chunk.Member) bool {
		return m.State == chunk.Syncing || m.State == chunk.InSync && o.nodes[m.Node].standing != present
	})
}

// welcomes reports whether a chunkserver may get copies.
func (s sighting) welcomes() bool {
	return s.standing == present && !s.full && !s.draining && !s.resting
}

// placement is who has how many copies, and is changed as moves are planned.
type placement struct {
	*outlook
	share   map[chunk.NodeID]int // copysets that it is a member of, but for those that it is to leave
	joining map[chunk.NodeID]int // copysets that it is being brought up to date in
	leaving map[chunk.CopysetID][]chunk.NodeID
	ready   bool // every copyset has all its copies: some may be moved for mere balance
}

func (o *outlook) measure(configs []chunk.Copyset) *placement {
	p := &placement{
		outlook: o, share: make(map[chunk.NodeID]int), joining: make(map[chunk.NodeID]int),
		leaving: make(map[chunk.CopysetID][]chunk.NodeID), ready: true,
	}
	for _, config := range configs {
		for _, m := range config.Members {
			p.share[m.Node]++
			if m.State == chunk.Syncing {
				p.joining[m.Node]++
			}
		}
		p.ready = p.ready && len(inSync(config)) >= copies
	}
	for _, config := range configs {
		p.leaving[config.ID] = p.surplus(config)
		for _, node := range p.leaving[config.ID] {
			p.share[node]--
		}
	}
	return p
}

// surplus are the members that a copyset does not need, if those that are being
// brought up to date will be: all that are out, and then those who have most.
func (p *placement) surplus(config chunk.Copyset) (surplus []chunk.NodeID) {
	var staying []chunk.Member
	for _, m := range config.Members {
		if m.State != chunk.Out {
			staying = append(staying, m)
		}
	}
	if len(staying) < copies {
		return nil
	}
	for _, m := range config.Members {
		if m.State == chunk.Out {
			surplus = append(surplus, m.Node)
		}
	}
	for ; len(staying) > copies; staying = staying[1:] {
		slices.SortStableFunc(staying, func(a, b chunk.Member) int { return p.dispensable(config, b) - p.dispensable(config, a) })
		surplus = append(surplus, staying[0].Node)
	}
	return surplus
}

// dispensable tells which members leave first: those that are in sync, and on
// chunkservers that are to leave, or are full, or have most; and rather others
// than the primary.
func (p *placement) dispensable(config chunk.Copyset, m chunk.Member) (n int) {
	const much = 1 << 20 // more than any share
	switch seen := p.nodes[m.Node]; {
	case m.State != chunk.InSync:
		return -1
	case seen.draining:
		n = 2 * much
	case seen.full:
		n = much
	}
	n += 2 * p.share[m.Node]
	if m.Node != config.Primary {
		n++
	}
	return n
}

// arrange tells the next step of a copyset at rest: members that it has too many
// leave; it gets one that it lacks; one that stays away, is to leave, or has more
// than its share is replaced. A member in sync leaves only when the other one is
// in sync.
func (p *placement) arrange(config chunk.Copyset) (c change, ok bool) {
	members := inSync(config)
	if surplus := p.leaving[config.ID]; len(surplus) > 0 {
		return p.leave(config, surplus)
	}
	newcomer, ok := p.newcomer(config)
	if !ok {
		return c, false
	}
	if len(config.Members) < copies {
		return p.join(config, newcomer), true
	}
	for _, m := range config.Members {
		if seen := p.nodes[m.Node]; m.State == chunk.Out && (seen.away || seen.full || seen.draining) {
			return p.join(config, newcomer, m.Node), true
		}
	}
	if len(members) != copies {
		return c, false // somebody is expected to be back
	}
	for _, m := range members {
		if p.nodes[m.Node].draining {
			p.share[m.Node]--
			return p.join(config, newcomer), true
		}
	}
	giver := slices.MaxFunc(members, func(a, b chunk.Member) int { return p.dispensable(config, a) - p.dispensable(config, b) }).Node
	if !p.ready || !p.nodes[newcomer].roomy || p.share[giver]-p.share[newcomer] < 2 {
		return c, false
	}
	p.share[giver]--
	return p.join(config, newcomer), true
}

// newcomer is the chunkserver that has least of those that can join a copyset.
func (p *placement) newcomer(config chunk.Copyset) (least chunk.NodeID, ok bool) {
	for _, node := range slices.Sorted(maps.Keys(p.nodes)) {
		if p.nodes[node].welcomes() && config.Member(node) == nil && p.joining[node] < maxJoining &&
			(!ok || p.share[node] < p.share[least]) {
			least, ok = node, true
		}
	}
	return least, ok
}

// join has a chunkserver become a member, in place of some that are out.
func (p *placement) join(config chunk.Copyset, newcomer chunk.NodeID, instead ...chunk.NodeID) change {
	p.share[newcomer]++
	p.joining[newcomer]++
	for _, node := range instead {
		p.share[node]--
	}
	c := steady(config)
	c.joining = []chunk.Member{{Node: newcomer, Incarnation: p.nodes[newcomer].incarnation, State: chunk.Syncing}}
	c.leaving = instead
	return c
}

// leave has members leave. The primary has another one follow it first.
func (p *placement) leave(config chunk.Copyset, surplus []chunk.NodeID) (c change, ok bool) {
	c = steady(config)
	if !slices.Contains(surplus, config.Primary) {
		c.leaving = surplus
		c.staying = slices.DeleteFunc(c.staying, func(n chunk.NodeID) bool { return slices.Contains(surplus, n) })
		return c, true
	}
	for _, node := range c.staying {
		if !slices.Contains(surplus, node) {
			c.heir = node
			break
		}
	}
	c.seal = true
	return c, !p.turned[config.ID]
}

// steady is a change that changes nothing yet.
func steady(config chunk.Copyset) change {
	c := change{config: config}
	for _, m := range inSync(config) {
		c.staying = append(c.staying, m.Node)
	}
	return c
}

// turn tells which copysets get another primary, so that chunkservers have more
// equal shares of the work: a chain of them, from a chunkserver that is the
// primary of many to one that is it of at least two less.
func (o *outlook) turn(configs []chunk.Copyset) []change {
	led := make(map[chunk.NodeID][]chunk.Copyset)
	for _, config := range configs {
		led[config.Primary] = append(led[config.Primary], config)
	}
	most := slices.SortedFunc(maps.Keys(led), func(a, b chunk.NodeID) int {
		return cmp.Or(len(led[b])-len(led[a]), cmp.Compare(a, b))
	})
	for _, first := range most {
		reached := map[chunk.NodeID]change{first: {}} // by the change that leads there
		for queue := []chunk.NodeID{first}; len(queue) > 0; queue = queue[1:] {
			at := queue[0]
			if len(led[at]) <= len(led[first])-2 {
				return chain(reached, first, at)
			}
			for _, config := range led[at] {
				for _, m := range inSync(config) {
					if _, known := reached[m.Node]; known || o.turned[config.ID] || !o.nodes[m.Node].welcomes() {
						continue
					}
					c := steady(config)
					c.seal, c.heir = true, m.Node
					reached[m.Node] = c
					queue = append(queue, m.Node)
				}
			}
		}
	}
	return nil
}

// chain are the changes that lead from first to last.
func chain(reached map[chunk.NodeID]change, first, last chunk.NodeID) (changes []change) {
	for at := last; at != first; at = reached[at].config.Primary {
		changes = append(changes, reached[at])
	}
	return changes
}
