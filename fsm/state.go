package fsm

import (
	"encoding/binary"

	"go.etcd.io/bbolt"
)

// State is the state at one moment. Its methods are the queries; they are in
// the files of what they ask about. They refuse like commands do, with an
// *Error. A State must not be used after the function that was given it.
type State struct {
	tx    *bbolt.Tx
	index uint64 // of the command being applied
}

// Root is the user who may do everything. Whoever asks on behalf of the
// cluster itself asks as Root.
const Root = "root"

// Page says which part of a list to return.
type Page struct {
	Offset, Limit int
}

// owns reports whether user may do as owner may.
func owns(user, owner string) bool { return user == owner || user == Root }

var keyApplied = []byte("applied")

// applied is the index of the last entry applied.
func (s *State) applied() uint64 {
	return binary.BigEndian.Uint64(s.bucket(bucketMeta).Get(keyApplied))
}

func (s *State) setApplied(index uint64) {
	must(s.bucket(bucketMeta).Put(keyApplied, binary.BigEndian.AppendUint64(nil, index)))
}
