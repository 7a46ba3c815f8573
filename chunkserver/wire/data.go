package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Submit asks the primary of a copyset to order an operation:
//
//	0 u32 copyset
//	4 u64 epoch
//	12 the operation, as in chunk.ParseOp
type Submit struct {
	Copyset chunk.CopysetID
	Epoch   chunk.Epoch
	Op      chunk.Op
}

const (
	targetLen = 12
	// maxSubmit is the longest Submit, in bytes: its operation fits into a
	// replica.Message, too.
	maxSubmit = MaxPayload - (messageLen + entryLen - targetLen)
)

func appendTarget(b []byte, copyset chunk.CopysetID, epoch chunk.Epoch) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(copyset))
	return binary.LittleEndian.AppendUint64(b, uint64(epoch))
}

func parseTarget(b []byte) (chunk.CopysetID, chunk.Epoch) {
	return chunk.CopysetID(binary.LittleEndian.Uint32(b)), chunk.Epoch(binary.LittleEndian.Uint64(b[4:]))
}

// AppendHead appends the encoding of s without Op.Data, which follows it.
func (s *Submit) AppendHead(b []byte) []byte {
	return s.Op.AppendHeader(appendTarget(b, s.Copyset, s.Epoch))
}

// ParseSubmit decodes a Submit, whose data aliases b and has been compared
// with its checksums.
func ParseSubmit(b []byte) (s Submit, err error) {
	if len(b) < targetLen || len(b) > maxSubmit {
		return s, fmt.Errorf("%w: submit of %d bytes", chunk.ErrInvalid, len(b))
	}
	s.Copyset, s.Epoch = parseTarget(b)
	if s.Op, err = chunk.ParseOp(b[targetLen:]); err != nil {
		return s, err
	}
	return s, s.Op.Verify()
}

// Read asks for a range of a chunk as a view sees it:
//
//	0  u32 copyset
//	4  u64 epoch
//	12 u32 chunk index
//	16 u32 offset
//	20 u32 length
//	24 the view, as in chunk.ParseView
type Read struct {
	Copyset chunk.CopysetID
	Epoch   chunk.Epoch
	Index   uint32
	Off     uint32
	Len     uint32
	View    []byte
}

const readLen = targetLen + 12

// Append appends the encoding of r.
func (r *Read) Append(b []byte) []byte {
	b = appendTarget(b, r.Copyset, r.Epoch)
	b = binary.LittleEndian.AppendUint32(b, r.Index)
	b = binary.LittleEndian.AppendUint32(b, r.Off)
	b = binary.LittleEndian.AppendUint32(b, r.Len)
	return append(b, r.View...)
}

// ParseRead decodes a Read whose longest range is limit bytes. The view is
// not looked into and aliases b.
func ParseRead(b []byte, limit uint32) (r Read, err error) {
	if len(b) < readLen {
		return r, fmt.Errorf("%w: read of %d bytes", chunk.ErrInvalid, len(b))
	}
	r.Copyset, r.Epoch = parseTarget(b)
	r.Index = binary.LittleEndian.Uint32(b[12:])
	r.Off = binary.LittleEndian.Uint32(b[16:])
	r.Len = binary.LittleEndian.Uint32(b[20:])
	r.View = b[readLen:]
	if !chunk.InChunk(r.Off, r.Len, limit) {
		return r, fmt.Errorf("%w: read of %d bytes at %d", chunk.ErrInvalid, r.Len, r.Off)
	}
	return r, nil
}

// Extent is a run of bytes that either hold data or read as zeros.
type Extent struct {
	Len  uint32
	Data bool
}

// AppendExtents appends extents: for each a u32, the length with its lowest
// bit, always clear as lengths are whole blocks, set if there is data.
func AppendExtents(b []byte, extents []Extent) []byte {
	for _, e := range extents {
		n := e.Len
		if e.Data {
			n |= 1
		}
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return b
}

// ParseExtents decodes extents that must cover n bytes.
func ParseExtents(b []byte, n uint32) ([]Extent, error) {
	if len(b)%4 != 0 {
		return nil, fmt.Errorf("%w: extents of %d bytes", chunk.ErrInvalid, len(b))
	}
	extents := make([]Extent, 0, len(b)/4)
	for ; len(b) > 0; b = b[4:] {
		v := binary.LittleEndian.Uint32(b)
		e := Extent{v &^ 1, v&1 != 0}
		if e.Len == 0 || e.Len > n {
			return nil, fmt.Errorf("%w: extent of %d bytes where %d are left", chunk.ErrInvalid, e.Len, n)
		}
		n -= e.Len
		extents = append(extents, e)
	}
	if n != 0 {
		return nil, fmt.Errorf("%w: extents leave %d bytes out", chunk.ErrInvalid, n)
	}
	return extents, nil
}
