// Package chunk holds the words of the data plane: identifiers, geometry and
// the pure arithmetic on them. It does no I/O and imports nothing of ours, so
// that every other package can speak in its terms.
//
// A volume is cut into chunks, a chunk into blocks. A volume has a sequence
// number that starts at 1; taking a snapshot freezes the present number and
// goes on with the next. A layer is what was written to one chunk at one
// sequence number. A [View] says which layers somebody sees: a [Lineage] of
// sequence numbers of the volume, and below it the view of the snapshot that
// the volume was cloned from. Snapshot, clone and rollback are therefore
// arithmetic on lineages and touch no chunk.
//
// Chunks are spread over copysets, the groups of chunkservers that hold equal
// copies. A clone is placed by the root of its ancestry (see [Locate]), so
// that its chunks lie beside those of its parent and reading through or
// flattening never crosses the network.
//
// Everything that changes a chunk is an [Op] in the history of one copyset.
package chunk

import (
	"cmp"
	"fmt"
	"math"
)

const (
	// BlockSize is the unit of reading, writing and checksumming, in bytes.
	BlockSize = 4096
	// Size is the length of a chunk in bytes.
	Size = 16 << 20
	// Blocks is the number of blocks in a chunk.
	Blocks = Size / BlockSize
	// MaxOp is the largest number of bytes that one operation may write,
	// clear or copy: it bounds how long an operation holds up those behind it.
	MaxOp = 1 << 20
)

// VolumeID names a volume for good: ids count up from 1 and are never reused.
type VolumeID uint64

// NodeID names a chunkserver's store for good. The zero NodeID is nobody.
type NodeID uint32

// Incarnation is the random number of one run of a chunkserver process.
// Configurations name it, so that a restarted process is not taken for the
// one that was trusted.
type Incarnation uint64

// Seq is a volume's sequence number. The first that is written is 1; layer 0
// of a chunk is the base, into which flattening copies.
type Seq uint64

// MaxSeq is the end of a lineage that is still written to.
const MaxSeq Seq = math.MaxUint64

// Epoch numbers a copyset's configurations; it grows by one with each.
type Epoch uint64

// LSN is the position of an operation in the history of a copyset: 1, 2, 3 ...
// without gaps. LSN 0 is the empty history.
type LSN uint64

// Ref names a chunk: the Index-th of a volume.
type Ref struct {
	Volume VolumeID
	Index  uint32
}

func (r Ref) String() string { return fmt.Sprintf("%d/%d", r.Volume, r.Index) }

// Compare orders chunks by volume, then by index.
func (r Ref) Compare(o Ref) int {
	return cmp.Or(cmp.Compare(r.Volume, o.Volume), cmp.Compare(r.Index, o.Index))
}

// Token orders the writers of a volume, and the snapshots under one writer.
// It only ever grows: whoever knows a larger token refuses work that carries
// a smaller one. It thereby fences a replaced writer.
type Token struct {
	Attachment uint64
	Seq        Seq
}

// Compare orders tokens by attachment, then by sequence number.
func (t Token) Compare(u Token) int {
	return cmp.Or(cmp.Compare(t.Attachment, u.Attachment), cmp.Compare(t.Seq, u.Seq))
}

func (t Token) String() string { return fmt.Sprintf("%d.%d", t.Attachment, t.Seq) }
