package fsm

import (
	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Node is a chunkserver's store, and the process that last served it.
type Node struct {
	ID          chunk.NodeID
	Store       uuid.UUID
	Address     string // where its data plane listens
	Incarnation chunk.Incarnation
	Capacity    uint64 // bytes

	// Draining: it is to leave. Its copies are moved to others.
	Draining bool `json:",omitempty"`
}

func (n Node) table() string { return "nodes" }

func (n Node) key() []byte { return []byte(number(n.ID)) }

func (n Node) entries() []entry {
	return []entry{{byStore, "", string(n.Store[:]), string(n.key())}}
}

// RegisterNode makes a chunkserver's process known. A store keeps its number.
// Its value is the Node.
type RegisterNode struct {
	Store       uuid.UUID
	Address     string
	Incarnation chunk.Incarnation
	Capacity    uint64
}

// DrainNode has a chunkserver's copies moved to others, or no longer.
type DrainNode struct {
	Node     chunk.NodeID
	Draining bool
}

// RemoveNode forgets a chunkserver that is a member of no copyset. Its number is
// not given to another store, nor to its own again.
type RemoveNode struct {
	Node chunk.NodeID
}

// Nodes lists all chunkservers, in the order of their ids.
func (s *State) Nodes() []Node { return all[Node](s) }

// Node returns a chunkserver.
func (s *State) Node(id chunk.NodeID) (Node, error) {
	n, ok := load[Node](s, Node{ID: id}.key())
	if !ok {
		return n, refuse(NotExist, "chunkserver %d does not exist", id)
	}
	return n, nil
}

func (c RegisterNode) apply(s *State) (any, error) {
	if err := checkUUID(c.Store); err != nil {
		return nil, err
	}
	if c.Address == "" {
		return nil, refuse(InvalidArgument, "chunkserver %s has no address", c.Store)
	}
	n := Node{Store: c.Store, Address: c.Address, Incarnation: c.Incarnation, Capacity: c.Capacity}
	if key := s.find(byStore, "", string(c.Store[:])); key != nil {
		n.ID = chunk.NodeID(fromNumber(key))
		before, _ := s.Node(n.ID)
		n.Draining = before.Draining
	} else {
		n.ID = chunk.NodeID(s.next(counterNode))
	}
	put(s, n)
	return n, nil
}

func (c DrainNode) apply(s *State) (any, error) {
	n, err := s.Node(c.Node)
	if err != nil {
		return nil, err
	}
	n.Draining = c.Draining
	put(s, n)
	return nil, nil
}

func (c RemoveNode) apply(s *State) (any, error) {
	if c.Node != 0 && uint64(c.Node) <= s.last(counterNode) && s.bucket(Node{}.table()).Get(Node{ID: c.Node}.key()) == nil {
		return nil, nil // the same command has done it
	}
	n, err := s.Node(c.Node)
	if err != nil {
		return nil, err
	}
	held := 0
	for _, set := range all[copyset](s) {
		if set.Member(c.Node) != nil {
			held++
		}
	}
	if held > 0 {
		return nil, refuse(BadStatus, "chunkserver %d is a member of %d copysets", c.Node, held)
	}
	remove(s, n)
	return nil, nil
}
