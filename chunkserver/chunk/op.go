package chunk

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// OpKind tells what an operation does. The numbers are part of the journal
// and wire formats.
type OpKind uint8

const (
	// OpWrite stores Data in the layer Token.Seq of Ref.
	OpWrite OpKind = 1
	// OpZero makes a range of the layer Token.Seq of Ref read as zeros,
	// whatever older layers and the parent hold.
	OpZero OpKind = 2
	// OpPurge frees every block of Ref in layers up to UpTo that none of
	// Views reaches.
	OpPurge OpKind = 3
	// OpFlatten copies the blocks of a range of Ref that some of Views
	// reads from its parent into layer 0, unless layer 0 has them.
	OpFlatten OpKind = 4
	// OpFence makes the copyset refuse everything for Ref.Volume that
	// carries a smaller Token.
	OpFence OpKind = 5
)

func (k OpKind) String() string {
	switch k {
	case OpWrite:
		return "write"
	case OpZero:
		return "zero"
	case OpPurge:
		return "purge"
	case OpFlatten:
		return "flatten"
	case OpFence:
		return "fence"
	}
	return fmt.Sprintf("OpKind(%d)", uint8(k))
}

// MaxViews bounds the views of one operation.
const MaxViews = 1 << 15

// Op is an operation on a chunk: deterministic, and harmless to repeat.
type Op struct {
	Kind  OpKind
	Ref   Ref
	Token Token  // of the writer; zero for OpPurge and OpFlatten
	Off   uint32 // bytes into the chunk, a multiple of BlockSize; OpWrite, OpZero, OpFlatten
	Len   uint32 // bytes, a multiple of BlockSize, 1 block to MaxOp; zero may span the whole chunk

	Sums []uint32 // OpWrite: the Checksum of each block of Data
	Data []byte   // OpWrite: Len bytes

	// Views are, for OpPurge, all views of the volume that still exist; for
	// OpFlatten, all views of the clone. The head is among them frozen at
	// the volume's sequence number as of when the list was made: so nothing
	// that a later snapshot can see is missed.
	Views []*View
	UpTo  Seq // OpPurge: the sequence number up to which Views is complete
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C of a block's content.
func Checksum(block []byte) uint32 { return crc32.Checksum(block, castagnoli) }

// Checksums returns the checksum of each block of p, whose length is a
// multiple of BlockSize, appended to sums.
func Checksums(sums []uint32, p []byte) []uint32 {
	for ; len(p) > 0; p = p[BlockSize:] {
		sums = append(sums, Checksum(p[:BlockSize]))
	}
	return sums
}

// opFixed is the length of an operation's fixed part.
const opFixed = 48

// AppendHeader appends the encoding of o without Data, which follows it as
// the last part. Little-endian:
//
//	 0 u8  kind
//	 1 u8  0
//	 2 u16 number of views
//	 4 u32 chunk index
//	 8 u64 volume
//	16 u64 token: attachment
//	24 u64 token: sequence number
//	32 u32 offset
//	36 u32 length
//	40 u64 up to
//	48 u32 checksum of each block (OpWrite)
//	   views, as in ParseView
//	   data (OpWrite)
func (o *Op) AppendHeader(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, byte(o.Kind), 0)
	b = le.AppendUint16(b, uint16(len(o.Views)))
	b = le.AppendUint32(b, o.Ref.Index)
	b = le.AppendUint64(b, uint64(o.Ref.Volume))
	b = le.AppendUint64(b, o.Token.Attachment)
	b = le.AppendUint64(b, uint64(o.Token.Seq))
	b = le.AppendUint32(b, o.Off)
	b = le.AppendUint32(b, o.Len)
	b = le.AppendUint64(b, uint64(o.UpTo))
	for _, sum := range o.Sums {
		b = le.AppendUint32(b, sum)
	}
	for _, v := range o.Views {
		b = append(b, v.key...)
	}
	return b
}

// EncodedLen is the length of the encoding of o, data included.
func (o *Op) EncodedLen() int {
	n := opFixed + 4*len(o.Sums) + len(o.Data)
	for _, v := range o.Views {
		n += len(v.key)
	}
	return n
}

// ParseOp decodes the operation that fills b. The result's Data aliases b.
// What it accepts is well-formed: the geometry holds and no field is set that
// the kind doesn't use. It does not compare Data with Sums: see Verify.
func ParseOp(b []byte) (Op, error) {
	if len(b) < opFixed {
		return Op{}, fmt.Errorf("%w: operation of %d bytes", ErrInvalid, len(b))
	}
	le := binary.LittleEndian
	o := Op{
		Kind:  OpKind(b[0]),
		Ref:   Ref{VolumeID(le.Uint64(b[8:])), le.Uint32(b[4:])},
		Token: Token{le.Uint64(b[16:]), Seq(le.Uint64(b[24:]))},
		Off:   le.Uint32(b[32:]),
		Len:   le.Uint32(b[36:]),
		UpTo:  Seq(le.Uint64(b[40:])),
	}
	views := int(le.Uint16(b[2:]))
	rest := b[opFixed:]
	if err := o.check(views); err != nil {
		return Op{}, err
	}
	if o.Kind == OpWrite {
		blocks := int(o.Len / BlockSize)
		if len(rest) != 4*blocks+int(o.Len) {
			return Op{}, fmt.Errorf("%w: write of %d bytes with %d bytes of sums and data", ErrInvalid, o.Len, len(rest))
		}
		o.Sums = make([]uint32, blocks)
		for i := range o.Sums {
			o.Sums[i] = le.Uint32(rest[4*i:])
		}
		o.Data = rest[4*blocks:]
		return o, nil
	}
	for range views {
		v, after, err := ParseView(rest)
		if err != nil {
			return Op{}, err
		}
		if v.volume != o.Ref.Volume {
			return Op{}, fmt.Errorf("%w: %v of volume %d with a view of volume %d", ErrInvalid, o.Kind, o.Ref.Volume, v.volume)
		}
		o.Views, rest = append(o.Views, v), after
	}
	if len(rest) != 0 {
		return Op{}, fmt.Errorf("%w: %d bytes after %v", ErrInvalid, len(rest), o.Kind)
	}
	return o, nil
}

// check tells whether the fixed fields of o fit together.
func (o *Op) check(views int) error {
	limit := uint32(MaxOp)
	switch o.Kind {
	case OpWrite:
	case OpZero:
		limit = Size
	case OpPurge, OpFence:
		limit = 0
	case OpFlatten:
	default:
		return fmt.Errorf("%w: operation of unknown kind %d", ErrInvalid, uint8(o.Kind))
	}
	ranged := limit > 0
	switch {
	case o.Ref.Volume == 0:
		return fmt.Errorf("%w: %v of volume 0", ErrInvalid, o.Kind)
	case !ranged && (o.Off != 0 || o.Len != 0):
		return fmt.Errorf("%w: %v with a range", ErrInvalid, o.Kind)
	case ranged && !InChunk(o.Off, o.Len, limit):
		return fmt.Errorf("%w: %v of %d bytes at %d", ErrInvalid, o.Kind, o.Len, o.Off)
	case views > 0 && o.Kind != OpPurge && o.Kind != OpFlatten, views > MaxViews:
		return fmt.Errorf("%w: %v with %d views", ErrInvalid, o.Kind, views)
	case (o.Kind == OpWrite || o.Kind == OpZero) && (o.Token.Seq == 0 || o.Token.Seq == MaxSeq):
		return fmt.Errorf("%w: %v at sequence number %d", ErrInvalid, o.Kind, o.Token.Seq)
	case o.Kind != OpPurge && o.UpTo != 0:
		return fmt.Errorf("%w: %v with an end of its views", ErrInvalid, o.Kind)
	}
	return nil
}

// Validate tells whether o is what ParseOp would accept, sums included but
// not compared with the data: see Verify.
func (o *Op) Validate() error {
	if err := o.check(len(o.Views)); err != nil {
		return err
	}
	blocks, bytes := 0, 0
	if o.Kind == OpWrite {
		blocks, bytes = int(o.Len/BlockSize), int(o.Len)
	}
	if len(o.Sums) != blocks || len(o.Data) != bytes {
		return fmt.Errorf("%w: %v of %d bytes with %d bytes of data and %d sums", ErrInvalid, o.Kind, o.Len, len(o.Data), len(o.Sums))
	}
	for _, v := range o.Views {
		if err := v.validate(o.Ref.Volume); err != nil {
			return err
		}
	}
	return nil
}

// InChunk reports whether a range is made of whole blocks, lies within a
// chunk, is not empty, and is no longer than limit.
func InChunk(off, n, limit uint32) bool {
	return off%BlockSize == 0 && n%BlockSize == 0 && n > 0 && n <= limit && off <= Size && n <= Size-off
}

// Verify compares the data of a write with its checksums.
func (o *Op) Verify() error {
	for i, sum := range o.Sums {
		if got := Checksum(o.Data[i*BlockSize : (i+1)*BlockSize]); got != sum {
			return fmt.Errorf("%w: block %d of chunk %v came with checksum %08x but has %08x",
				ErrInvalid, int(o.Off)/BlockSize+i, o.Ref, sum, got)
		}
	}
	return nil
}

// Entry is an operation at its place in the history of a copyset.
type Entry struct {
	Copyset CopysetID
	Epoch   Epoch // in which the primary gave it its LSN
	LSN     LSN
	Commit  LSN // up to which the primary knew every in-sync member to be durable
	Op      Op
}
