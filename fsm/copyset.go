package fsm

import (
	"fmt"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

const (
	maxCopysets = 1 << 16 // of a pool
	maxMembers  = 16      // of a copyset
)

// MinInSync is how many members of a copyset have to be in sync for it to
// accept writes, if it has that many members.
const MinInSync = 2

// CreatePool makes a pool of copysets: a power of two of them, with the ids 0,
// 1, 2 ... in this order, and epochs of 1. A pool that exists stays as it is.
// Its value is the []chunk.Copyset of the pool.
type CreatePool struct {
	Name     string
	Copysets []chunk.Copyset
}

// Reconfigure gives copysets of a pool new configurations: all, if each may
// follow on the present one, or none. One whose epoch is not the next is Stale.
//
// Members in sync hold every acknowledged operation. That stays so, as only
// those join them that were Syncing, in the same process: nobody that is out,
// or new, is in sync one step later. Some member always is. And they become
// fewer than MinInSync only in a step that has another one synced: so the last
// two are not parted because one is away. Writes wait in any case; but as
// nothing is acknowledged meanwhile, either alone is as good as both.
type Reconfigure struct {
	Pool     string
	Copysets []chunk.Copyset
}

// pool is the record of a pool.
type pool struct {
	Name     string
	Copysets int
}

func (p pool) table() string { return "pools" }

func (p pool) key() []byte { return []byte(p.Name) }

func (p pool) entries() []entry { return nil }

// copyset is the record of a pool's copyset.
type copyset struct {
	Pool string
	chunk.Copyset
}

func (c copyset) table() string { return "copysets" }

func (c copyset) key() []byte { return []byte(text(c.Pool) + number(c.ID)) }

func (c copyset) entries() []entry { return nil }

// Pools lists the names of all pools that have copysets.
func (s *State) Pools() []string {
	names := []string{}
	for _, p := range all[pool](s) {
		names = append(names, p.Name)
	}
	return names
}

// Copysets returns the copysets of a pool, in the order of their ids: none if
// it has none yet.
func (s *State) Copysets(name string) []chunk.Copyset {
	p, _ := load[pool](s, []byte(name))
	copysets := make([]chunk.Copyset, p.Copysets)
	for i := range copysets {
		c, _ := s.copyset(name, chunk.CopysetID(i))
		copysets[i] = c.Copyset
	}
	return copysets
}

func (s *State) copyset(pool string, id chunk.CopysetID) (copyset, bool) {
	return load[copyset](s, copyset{Pool: pool, Copyset: chunk.Copyset{ID: id}}.key())
}

// checkPool refuses a pool that is not known.
func (s *State) checkPool(name string) error {
	if _, ok := load[pool](s, []byte(name)); !ok && name != DefaultPool {
		return refuse(NotExist, "poolset %q does not exist", name)
	}
	return nil
}

func (c CreatePool) apply(s *State) (any, error) {
	if err := checkName(c.Name); err != nil {
		return nil, refuse(InvalidArgument, "poolset %q: %v", c.Name, err)
	}
	n := len(c.Copysets)
	if n == 0 || n > maxCopysets || n&(n-1) != 0 {
		return nil, refuse(InvalidArgument, "poolset %s of %d copysets: must be a power of two up to %d", c.Name, n, maxCopysets)
	}
	for i, set := range c.Copysets {
		if set.ID != chunk.CopysetID(i) || set.Epoch != 1 {
			return nil, refuse(InvalidArgument, "copyset %d of epoch %d is number %d of a new poolset", set.ID, set.Epoch, i)
		}
		if err := s.checkMembers(set); err != nil {
			return nil, err
		}
	}
	if _, ok := load[pool](s, []byte(c.Name)); ok {
		return s.Copysets(c.Name), nil
	}
	put(s, pool{Name: c.Name, Copysets: n})
	for _, set := range c.Copysets {
		put(s, copyset{Pool: c.Name, Copyset: set})
	}
	return c.Copysets, nil
}

// checkMembers refuses a configuration that makes no sense: its members are
// different chunkservers, some are in sync, and its primary is one of these.
func (s *State) checkMembers(set chunk.Copyset) error {
	if len(set.Members) == 0 || len(set.Members) > maxMembers {
		return refuse(InvalidArgument, "copyset %d has %d members: must be 1 to %d", set.ID, len(set.Members), maxMembers)
	}
	for i, m := range set.Members {
		if _, err := s.Node(m.Node); err != nil {
			return err
		}
		if set.Member(m.Node) != &set.Members[i] {
			return refuse(InvalidArgument, "copyset %d has chunkserver %d twice", set.ID, m.Node)
		}
		if m.State < chunk.InSync || m.State > chunk.Out {
			return refuse(InvalidArgument, "copyset %d has a member with the state %v", set.ID, m.State)
		}
	}
	if count(set, chunk.InSync) == 0 {
		return refuse(InvalidArgument, "copyset %d has no member in sync", set.ID)
	}
	if p := set.Member(set.Primary); set.Primary != 0 && (p == nil || p.State != chunk.InSync) {
		return refuse(InvalidArgument, "primary %d of copyset %d is no member in sync", set.Primary, set.ID)
	}
	return nil
}

// checkFollows refuses a configuration that must not come next after present.
func checkFollows(present, next chunk.Copyset) error {
	if next.Epoch != present.Epoch+1 {
		return refuse(Stale, "copyset %d is in epoch %d: epoch %d does not follow", next.ID, present.Epoch, next.Epoch)
	}
	if next.Primary == 0 {
		return refuse(InvalidArgument, "epoch %d of copyset %d has no primary", next.Epoch, next.ID)
	}
	for _, m := range next.Members {
		if before := present.Member(m.Node); !mayBecome(before, m) {
			return refuse(InvalidArgument, "chunkserver %d can't become %v in copyset %d: it was %s", m.Node, m.State, next.ID, standing(before))
		}
	}
	n, least := count(next, chunk.InSync), min(MinInSync, count(present, chunk.InSync))
	if n < least && count(next, chunk.Syncing) == 0 {
		return refuse(InvalidArgument, "copyset %d would have %d members in sync and none that is being synced: must be %d", next.ID, n, least)
	}
	for _, m := range present.Members {
		if m.State == chunk.InSync && next.Member(m.Node) == nil && n < least {
			return refuse(InvalidArgument, "chunkserver %d is in sync and can't leave copyset %d with %d others in sync: must be %d", m.Node, next.ID, n, least)
		}
	}
	return nil
}

// mayBecome reports whether a chunkserver may be what m says after it was what
// before says, or no member, which is nil.
func mayBecome(before *chunk.Member, m chunk.Member) bool {
	switch {
	case before == nil:
		return m.State == chunk.Syncing
	case m.State == chunk.InSync && before.State == chunk.Syncing:
		return m.Incarnation == before.Incarnation
	case m.State == chunk.InSync:
		return before.State == chunk.InSync
	case m.State == chunk.Out:
		return m.Incarnation == before.Incarnation
	}
	return before.State != chunk.InSync // it is out first, and loses its part in the history
}

func standing(m *chunk.Member) string {
	if m == nil {
		return "no member"
	}
	return fmt.Sprintf("%v in process %x", m.State, m.Incarnation)
}

// count is the number of members with a state.
func count(set chunk.Copyset, state chunk.MemberState) (n int) {
	for _, m := range set.Members {
		if m.State == state {
			n++
		}
	}
	return n
}

func (c Reconfigure) apply(s *State) (any, error) {
	seen := make(map[chunk.CopysetID]bool)
	for _, set := range c.Copysets {
		if seen[set.ID] {
			return nil, refuse(InvalidArgument, "copyset %d is named twice", set.ID)
		}
		seen[set.ID] = true
		if err := s.checkMembers(set); err != nil {
			return nil, err
		}
	}
	for _, set := range c.Copysets {
		present, ok := s.copyset(c.Pool, set.ID)
		if !ok {
			return nil, refuse(NotExist, "copyset %d of poolset %s does not exist", set.ID, c.Pool)
		}
		if err := checkFollows(present.Copyset, set); err != nil {
			return nil, err
		}
	}
	for _, set := range c.Copysets {
		put(s, copyset{Pool: c.Pool, Copyset: set})
	}
	return nil, nil
}
