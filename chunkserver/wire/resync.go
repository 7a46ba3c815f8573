package wire

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Stream names the stream on which a member that is brought up to date gets
// what others write, and what it pulls: those of other rounds and epochs have
// ended.
type Stream struct {
	Copyset chunk.CopysetID
	Epoch   chunk.Epoch
	Round   uint64
}

// Survey asks the primary which chunks of a copyset it has, behind After in
// their order, and what operations behind Trusted have changed of them. The
// answer names some of the next ones: none, if there are none.
type Survey struct {
	Stream
	After   chunk.Ref
	Trusted chunk.LSN
}

// Pulled tells the primary that the caller has, durably, everything that it
// had to pull.
type Pulled struct {
	Stream
}

// Block asks for the content of a block of a layer.
type Block struct {
	Part  chunk.Part
	Block uint8 // within the part
}

// Pull asks the primary to have a part of a layer copied to the caller, who
// has what Has says. The reply, a u32, tells how many bytes are on their way;
// none if the part is equal.
//
//	 0 u32 copyset
//	 4 u64 epoch
//	12 u64 round
//	20 u64 volume
//	28 u32 chunk index
//	32 u32 part
//	36 u64 sequence number
//	44 u64 blocks with data
//	52 u64 blocks that are zeros
//	60 16  hash of each block with data, ascending
type Pull struct {
	Stream
	Part chunk.Part
	Has  chunk.Outline
}

const pullLen = 60

// Append appends the encoding of p.
func (p *Pull) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = appendTarget(b, p.Copyset, p.Epoch)
	b = le.AppendUint64(b, p.Round)
	b = le.AppendUint64(b, uint64(p.Part.Ref.Volume))
	b = le.AppendUint32(b, p.Part.Ref.Index)
	b = le.AppendUint32(b, uint32(p.Part.Part))
	b = le.AppendUint64(b, uint64(p.Part.Seq))
	b = le.AppendUint64(b, p.Has.Data)
	b = le.AppendUint64(b, p.Has.Zero)
	for i := range p.Has.Hashes {
		b = append(b, p.Has.Hashes[i][:]...)
	}
	return b
}

// ParsePull decodes a Pull.
func ParsePull(b []byte) (p Pull, err error) {
	if len(b) < pullLen {
		return p, fmt.Errorf("%w: pull of %d bytes", chunk.ErrInvalid, len(b))
	}
	le := binary.LittleEndian
	p.Copyset, p.Epoch = parseTarget(b)
	p.Round = le.Uint64(b[12:])
	part := le.Uint32(b[32:])
	p.Part = chunk.Part{
		Ref:  chunk.Ref{Volume: chunk.VolumeID(le.Uint64(b[20:])), Index: le.Uint32(b[28:])},
		Seq:  chunk.Seq(le.Uint64(b[36:])),
		Part: uint8(part),
	}
	p.Has.Data, p.Has.Zero = le.Uint64(b[44:]), le.Uint64(b[52:])
	hashes := b[pullLen:]
	n := bits.OnesCount64(p.Has.Data)
	if part >= chunk.Parts || p.Part.Ref.Volume == 0 || p.Has.Data&p.Has.Zero != 0 || len(hashes) != n*len(chunk.Hash{}) {
		return p, fmt.Errorf("%w: pull of %v with %d bytes of hashes of %d blocks", chunk.ErrInvalid, p.Part, len(hashes), n)
	}
	p.Has.Hashes = make([]chunk.Hash, n)
	for i := range p.Has.Hashes {
		copy(p.Has.Hashes[i][:], hashes[i*len(chunk.Hash{}):])
	}
	return p, nil
}
