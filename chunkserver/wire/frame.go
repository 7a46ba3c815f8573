package wire

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Every frame has a header of 16 bytes, little-endian, before its payload:
//
//	0 u32 length of the payload
//	4 u8  kind
//	5 u8  flags: 1 reply, 2 one-way (no reply will come)
//	6 u16 code of a reply, else 0
//	8 u64 id: a reply has its request's
const headerLen = 16

// MaxPayload is the longest payload that is accepted, in bytes: room for the
// largest operation with its checksums and views.
const MaxPayload = chunk.MaxOp + 3<<20

const (
	flagReply  = 1
	flagOneWay = 2
)

type header struct {
	length uint32
	kind   Kind
	flags  uint8
	code   Code
	id     uint64
}

func (h header) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, h.length)
	b = append(b, byte(h.kind), h.flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(h.code))
	return binary.LittleEndian.AppendUint64(b, h.id)
}

// reader reads frames. It buffers, so that one system call reads many small
// frames, or the start of a large one; and it takes memory for small payloads
// by the slab: each payload is the receiver's to keep, and lets go of its slab
// with the others.
type reader struct {
	*bufio.Reader
	slab []byte // the rest of the present one
}

const (
	slabLen = 64 << 10
	// maxInSlab is the longest payload that is taken from a slab: a slab that
	// is held for one payload holds no more than a few times that.
	maxInSlab = slabLen / 8
)

func newReader(r io.Reader) *reader {
	return &reader{Reader: bufio.NewReaderSize(r, 64<<10)}
}

// take returns memory for a payload.
func (r *reader) take(n int) []byte {
	if n > maxInSlab {
		return make([]byte, n)
	}
	if n > len(r.slab) {
		r.slab = make([]byte, slabLen)
	}
	p := r.slab[:n:n]
	r.slab = r.slab[n:]
	return p
}

// readFrame reads one frame. The payload is nobody else's.
func (r *reader) readFrame() (header, []byte, error) {
	b, err := r.Peek(headerLen)
	if err != nil {
		if len(b) > 0 && err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return header{}, nil, err
	}
	h := header{
		length: binary.LittleEndian.Uint32(b),
		kind:   Kind(b[4]),
		flags:  b[5],
		code:   Code(binary.LittleEndian.Uint16(b[6:])),
		id:     binary.LittleEndian.Uint64(b[8:]),
	}
	if _, err := r.Discard(headerLen); err != nil {
		return header{}, nil, err
	}
	if h.length > MaxPayload {
		return header{}, nil, fmt.Errorf("frame of kind %d announces %d bytes, more than the %d that are allowed", h.kind, h.length, MaxPayload)
	}
	if h.length == 0 {
		return h, nil, nil
	}
	payload := r.take(int(h.length))
	if _, err := io.ReadFull(r, payload); err != nil {
		return header{}, nil, fmt.Errorf("frame cut short: %w", err)
	}
	return h, payload, nil
}
