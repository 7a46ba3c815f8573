package store

import (
	"fmt"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// The errors that a caller decides by, under the names of this package.
var (
	ErrDamaged  = chunk.ErrDamaged
	ErrNoSpace  = chunk.ErrNoSpace
	ErrNotReady = chunk.ErrNotReady
	ErrStopped  = chunk.ErrStopped
)

// DamageError is an [ErrDamaged] that says which block it is, so that
// [Store.Repair] can put it right.
type DamageError struct {
	Ref   chunk.Ref
	Seq   chunk.Seq
	Block int
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%v: block %d of %v", ErrDamaged, e.Block, layerID{e.Ref, e.Seq})
}

// Unwrap returns ErrDamaged.
func (e *DamageError) Unwrap() error { return ErrDamaged }
