package chunk

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
)

const (
	// PartBlocks is the number of blocks of a layer that are compared and
	// copied together.
	PartBlocks = 64
	// PartSize is the length of a part in bytes.
	PartSize = PartBlocks * BlockSize
	// Parts is the number of parts of a layer.
	Parts = Blocks / PartBlocks
)

// Part names a part of a layer of a chunk.
type Part struct {
	Ref  Ref
	Seq  Seq
	Part uint8 // Part times PartBlocks is its first block
}

func (p Part) String() string {
	return fmt.Sprintf("part %d of layer %d of chunk %v", p.Part, p.Seq, p.Ref)
}

// Off is where the part begins in its chunk, in bytes.
func (p Part) Off() uint32 { return uint32(p.Part) * PartSize }

// Hash tells the contents of blocks apart: the first half of the SHA-256 of
// one.
type Hash [16]byte

// HashBlock returns the hash of a block's content.
func HashBlock(block []byte) Hash {
	sum := sha256.Sum256(block)
	return Hash(sum[:16])
}

// Outline tells what a part has: a bit of Data for each block with data, a bit
// of Zero for each that is zeros and hides what lies below.
type Outline struct {
	Data, Zero uint64
	Hashes     []Hash // of each block in Data, ascending
}

// Copy is what one part shall have, and nothing else: as a member that is
// brought up to date is told.
type Copy struct {
	Part
	Data, Zero uint64
	Sent       uint64   // the blocks of Data that are in Content; the others are there already
	Sums       []uint32 // the Checksum of each block in Sent, ascending
	Content    []byte   // the blocks in Sent, ascending
}

// copyFixed is the length of a copy's fixed part.
const copyFixed = 56

// AppendHeader appends the encoding of c without Content, which follows it as
// the last part. Little-endian:
//
//	 0 u64 volume
//	 8 u32 chunk index
//	12 u32 part
//	16 u64 sequence number
//	24 u64 data
//	32 u64 zero
//	40 u64 sent
//	48 u64 0
//	56 u32 checksum of each block that is sent
//	   content
func (c *Copy) AppendHeader(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(c.Ref.Volume))
	b = le.AppendUint32(b, c.Ref.Index)
	b = le.AppendUint32(b, uint32(c.Part.Part))
	b = le.AppendUint64(b, uint64(c.Seq))
	b = le.AppendUint64(b, c.Data)
	b = le.AppendUint64(b, c.Zero)
	b = le.AppendUint64(b, c.Sent)
	b = le.AppendUint64(b, 0)
	for _, sum := range c.Sums {
		b = le.AppendUint32(b, sum)
	}
	return b
}

// EncodedLen is the length of the encoding of c, content included.
func (c *Copy) EncodedLen() int { return copyFixed + 4*len(c.Sums) + len(c.Content) }

// ParseCopy decodes the copy that fills b. The result's Content aliases b and
// has not been compared with Sums: see Verify.
func ParseCopy(b []byte) (Copy, error) {
	if len(b) < copyFixed {
		return Copy{}, fmt.Errorf("%w: copy of %d bytes", ErrInvalid, len(b))
	}
	le := binary.LittleEndian
	part := le.Uint32(b[12:])
	if part >= Parts || le.Uint64(b[48:]) != 0 {
		return Copy{}, fmt.Errorf("%w: copy of part %d", ErrInvalid, part)
	}
	c := Copy{
		Part: Part{Ref: Ref{VolumeID(le.Uint64(b)), le.Uint32(b[8:])}, Seq: Seq(le.Uint64(b[16:])), Part: uint8(part)},
		Data: le.Uint64(b[24:]),
		Zero: le.Uint64(b[32:]),
		Sent: le.Uint64(b[40:]),
	}
	n := bits.OnesCount64(c.Sent)
	rest := b[copyFixed:]
	if len(rest) != n*(4+BlockSize) {
		return Copy{}, fmt.Errorf("%w: copy of %d blocks with %d bytes of sums and content", ErrInvalid, n, len(rest))
	}
	c.Sums = make([]uint32, n)
	for i := range c.Sums {
		c.Sums[i] = le.Uint32(rest[4*i:])
	}
	c.Content = rest[4*n:]
	return c, c.Validate()
}

// Validate tells whether the fields of c fit together.
func (c *Copy) Validate() error {
	n := bits.OnesCount64(c.Sent)
	switch {
	case c.Ref.Volume == 0, c.Seq == MaxSeq, c.Part.Part >= Parts:
		return fmt.Errorf("%w: copy of %v", ErrInvalid, c.Part)
	case c.Data&c.Zero != 0, c.Sent&^c.Data != 0:
		return fmt.Errorf("%w: copy of %v with data %x, zeros %x, sent %x", ErrInvalid, c.Part, c.Data, c.Zero, c.Sent)
	case len(c.Sums) != n, len(c.Content) != n*BlockSize:
		return fmt.Errorf("%w: copy of %v: %d blocks with %d sums and %d bytes", ErrInvalid, c.Part, n, len(c.Sums), len(c.Content))
	}
	return nil
}

// Verify compares the content with its checksums.
func (c *Copy) Verify() error {
	for i, sum := range c.Sums {
		if got := Checksum(c.Content[i*BlockSize : (i+1)*BlockSize]); got != sum {
			return fmt.Errorf("%w: block %d of the copy of %v came with checksum %08x but has %08x", ErrInvalid, i, c.Part, sum, got)
		}
	}
	return nil
}

// Survey tells which layers of a chunk there are.
type Survey struct {
	Ref    Ref
	Layers []LayerSurvey // ascending
}

// LayerSurvey tells about one layer what suffices to see in which parts another
// copy of it may differ.
type LayerSurvey struct {
	Seq    Seq
	Parts  uint64 // a bit for each part that has anything
	Fresh  uint64 // of these, for each that operations behind some LSN have changed
	Digest [16]byte
}
