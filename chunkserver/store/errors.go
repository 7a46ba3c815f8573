package store

import "github.com/localsnap/localsnap/chunkserver/chunk"

// The errors that a caller decides by, under the names of this package.
var (
	ErrDamaged = chunk.ErrDamaged
	ErrNoSpace = chunk.ErrNoSpace
	ErrStopped = chunk.ErrStopped
)
