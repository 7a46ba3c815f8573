package chunk

import "fmt"

// CopysetID names one of a pool's copysets, 0 to N-1.
type CopysetID uint32

// MemberState says what a member of a copyset may be relied on for.
type MemberState uint8

const (
	// InSync members hold every acknowledged operation.
	InSync MemberState = 1
	// Syncing members receive new operations while they are brought up to
	// date; they count for nothing.
	Syncing MemberState = 2
	// Out members have missed operations.
	Out MemberState = 3
)

func (s MemberState) String() string {
	switch s {
	case InSync:
		return "in sync"
	case Syncing:
		return "syncing"
	case Out:
		return "out"
	}
	return fmt.Sprintf("MemberState(%d)", uint8(s))
}

// Member is a chunkserver's place in a copyset.
type Member struct {
	Node        NodeID
	Incarnation Incarnation // of the process that the state was decided about
	State       MemberState
}

// Copyset is the configuration of a group of chunkservers that hold equal
// copies of many chunks. It is changed only by consensus of the metadata
// servers, and each change raises Epoch by one.
type Copyset struct {
	ID      CopysetID
	Epoch   Epoch
	Primary NodeID // orders the operations; 0 while none is decided on
	Members []Member
}

// Member returns the member that is node, or nil.
func (c *Copyset) Member(node NodeID) *Member {
	for i := range c.Members {
		if c.Members[i].Node == node {
			return &c.Members[i]
		}
	}
	return nil
}

// Locate returns the copyset, of n, that holds a chunk of any volume in the
// ancestry of root. n is a power of two.
func Locate(root VolumeID, index uint32, n int) CopysetID {
	// The finalizer of MurmurHash3: a fixed function, as data is found by it.
	h := uint64(root)*0x9e3779b97f4a7c15 + uint64(index)
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return CopysetID(h & uint64(n-1))
}
