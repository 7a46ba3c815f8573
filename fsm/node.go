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
	} else {
		n.ID = chunk.NodeID(s.next(counterNode))
	}
	put(s, n)
	return n, nil
}
