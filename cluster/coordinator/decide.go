package coordinator

import (
	"cmp"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
	"github.com/localsnap/localsnap/fsm"
)

// outlook is what is known of the cluster besides its state: what decisions on
// copysets are made on. Nothing of it needs to be right for data to be safe.
type outlook struct {
	nodes map[chunk.NodeID]sighting

	// sealed has copysets that a member refuses to serve under the epoch
	// named, or a smaller one. They need a new one.
	sealed map[chunk.CopysetID]chunk.Epoch

	// reports is what primaries have told last about the members of their
	// copysets.
	reports map[chunk.CopysetID]wire.Report

	// turned are the copysets that were to get another primary lately,
	// whether or not they did.
	turned map[chunk.CopysetID]bool
}

// sighting is how a chunkserver was last seen. The zero value is one that is
// not connected, or silent, but may be back any moment.
type sighting struct {
	standing    standing
	incarnation chunk.Incarnation // of the connected process
	full        bool              // nothing more can be written there
	resting     bool              // it could not keep up lately
	away        bool              // failed, and for so long that others shall have its copies
	draining    bool              // it is to leave
	roomy       bool              // there is room for copies that others have, too
}

// standing is what can be counted on of a chunkserver.
type standing uint8

const (
	absent  standing = iota // not connected, or silent
	present                 // connected, and heard of
	failed                  // silent for too long, or its process is gone
)

// change is a decision to give a copyset its next configuration.
type change struct {
	config chunk.Copyset // the present one

	// staying are the members in sync that go on; at least as many as least
	// must.
	staying []chunk.NodeID
	least   int

	// mended are the members that are not in sync, or become so, as they
	// are to be.
	mended []chunk.Member

	// joining are new members, and leaving those that are members no more.
	joining []chunk.Member
	leaving []chunk.NodeID

	// heir is to be the next primary, if its history is as long as any.
	heir chunk.NodeID

	// seal says that the primary does not simply go on: those that stay
	// must refuse the present epoch before one of them can follow.
	seal bool
}

// decide tells what is to be done about a copyset, if anything can be. Members
// in sync that have failed are out, and so are, while enough are left, those
// that lag or are full; if the primary is among them, or a member runs in another
// process than the configuration says, which has forgotten what it was about, the
// epoch is ended in order. Too few copies wait for more. If all is well with those
// in sync, the others are looked after.
func (o *outlook) decide(config chunk.Copyset) (c change, ok bool) {
	members := inSync(config)
	c = change{config: config, least: min(fsm.MinInSync, len(members))}
	c.seal = o.sealed[config.ID] >= config.Epoch
	for _, m := range members {
		seen := o.nodes[m.Node]
		if seen.standing == failed {
			continue
		}
		c.staying = append(c.staying, m.Node)
		c.seal = c.seal || seen.standing == present && seen.incarnation != m.Incarnation
	}
	for _, m := range members {
		hampers := o.nodes[m.Node].full || o.lags(config, m.Node)
		if i := slices.Index(c.staying, m.Node); hampers && i >= 0 && len(c.staying) > c.least {
			c.staying = slices.Delete(c.staying, i, i+1)
		}
	}
	c.seal = c.seal || !slices.Contains(c.staying, config.Primary)
	switch {
	case len(c.staying) == len(members) && !c.seal:
		c.mended = o.mend(config)
		return c, len(c.mended) > 0 && o.nodes[config.Primary].standing == present
	case len(c.staying) < c.least:
		return c, false
	case c.seal:
		return c, !slices.ContainsFunc(c.staying, func(n chunk.NodeID) bool { return o.nodes[n].standing != present })
	}
	return c, o.nodes[config.Primary].standing == present
}

// mend tells how members that are not in sync go on: one that is there, and has
// room, is brought up to date, and is in sync when the primary says that it is.
func (o *outlook) mend(config chunk.Copyset) (mended []chunk.Member) {
	for _, m := range config.Members {
		seen, next := o.nodes[m.Node], m
		there := seen.standing == present && !seen.full
		switch {
		case m.State == chunk.Syncing && (seen.standing == failed || seen.full || o.lags(config, m.Node)):
			next.State = chunk.Out
		case m.State == chunk.Syncing && there && seen.incarnation != m.Incarnation:
			next.Incarnation = seen.incarnation
		case m.State == chunk.Syncing && there && o.synced(config, m.Node):
			next.State = chunk.InSync
		case m.State == chunk.Out && there && !seen.resting:
			next.State, next.Incarnation = chunk.Syncing, seen.incarnation
		}
		if next != m {
			mended = append(mended, next)
		}
	}
	return mended
}

// lags reports whether a member keeps the primary of the present epoch waiting.
func (o *outlook) lags(config chunk.Copyset, node chunk.NodeID) bool {
	r := o.reports[config.ID]
	return r.Epoch == config.Epoch && slices.Contains(r.Lagging, node)
}

// synced reports whether a member has everything, and the primary of the present
// epoch acknowledges nothing without it any more.
func (o *outlook) synced(config chunk.Copyset, node chunk.NodeID) bool {
	r := o.reports[config.ID]
	return r.Epoch == config.Epoch && slices.Contains(r.Synced, node)
}

// goOn is the configuration under which the primary goes on without those that
// have failed.
func (c *change) goOn(nodes map[chunk.NodeID]sighting) chunk.Copyset {
	return c.follow(c.config.Primary, nodes)
}

// succeed is the configuration after those that stay have sealed the present
// one: the one with the longest history is the primary. Without the word of each
// of them there is none.
func (c *change) succeed(ends map[history]wire.Sealed, nodes map[chunk.NodeID]sighting) (next chunk.Copyset, ok bool) {
	var primary chunk.NodeID
	var longest wire.Sealed
	for _, node := range c.turns() {
		end, ok := ends[history{node, c.config.ID}]
		if !ok {
			return next, false
		}
		if primary == 0 || cmp.Or(cmp.Compare(end.Epoch, longest.Epoch), cmp.Compare(end.LSN, longest.LSN)) > 0 {
			primary, longest = node, end
		}
	}
	return c.follow(primary, nodes), true
}

// turns are those that stay, in the order in which they become the primary if
// their histories are equal: first the heir; then the member that is named first, so that
// primaries are spread as copysets are; then the others, the first of which
// differs, so that the copysets of one primary that fails are shared.
func (c *change) turns() []chunk.NodeID {
	members := c.config.Members
	spread := int(uint32(c.config.ID) * 0x9e3779b1 >> 16)
	var turns []chunk.NodeID
	if c.heir != 0 {
		turns = append(turns, c.heir)
	}
	for i := range members {
		if i > 0 {
			i = 1 + (spread+i)%(len(members)-1)
		}
		if slices.Contains(c.staying, members[i].Node) {
			turns = append(turns, members[i].Node)
		}
	}
	return turns
}

// follow is the next configuration: those that stay are in sync, in their
// present processes, the other members that were are out or have left, and those
// that are mended or join are as they shall be.
func (c *change) follow(primary chunk.NodeID, nodes map[chunk.NodeID]sighting) chunk.Copyset {
	next := chunk.Copyset{ID: c.config.ID, Epoch: c.config.Epoch + 1, Primary: primary, Members: slices.Clone(c.config.Members)}
	for i := range next.Members {
		m := &next.Members[i]
		switch {
		case m.State != chunk.InSync:
			if i := slices.IndexFunc(c.mended, func(to chunk.Member) bool { return to.Node == m.Node }); i >= 0 {
				*m = c.mended[i]
			}
		case !slices.Contains(c.staying, m.Node):
			m.State = chunk.Out
		case nodes[m.Node].standing == present:
			m.Incarnation = nodes[m.Node].incarnation
		}
	}
	next.Members = slices.DeleteFunc(next.Members, func(m chunk.Member) bool { return slices.Contains(c.leaving, m.Node) })
	next.Members = append(next.Members, c.joining...)
	return next
}

func inSync(config chunk.Copyset) []chunk.Member {
	return slices.DeleteFunc(slices.Clone(config.Members), func(m chunk.Member) bool { return m.State != chunk.InSync })
}
