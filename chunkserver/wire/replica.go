package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/replica"
)

// A replica.Message, little-endian:
//
//	0 u8  kind, then 3 zero bytes
//	4 u32 copyset
//	8 u64 epoch
//
// and, from 16 on, what its kind has:
//
//	Probe   u64 round | u32 primary | (u32 node, u32 state, u64 incarnation) of each member
//	Status  u64 round | u64 LSN | u64 last LSN | u64 last epoch
//	Append  u64 entry's epoch | u64 LSN | u64 commit point | the operation, as in chunk.ParseOp
//	Ack     u64 LSN
//	Commit  u64 LSN
const (
	messageLen = 16
	probeLen   = 12
	memberLen  = 16
	statusLen  = 32
	entryLen   = 24
	lsnLen     = 8
)

// AppendMessage appends the encoding of m without Entry.Op.Data, which
// follows it.
func AppendMessage(b []byte, m *replica.Message) []byte {
	b = append(b, byte(m.Kind), 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Copyset))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Epoch))
	switch m.Kind {
	case replica.Probe:
		b = binary.LittleEndian.AppendUint64(b, m.Round)
		b = binary.LittleEndian.AppendUint32(b, uint32(m.Config.Primary))
		for _, member := range m.Config.Members {
			b = binary.LittleEndian.AppendUint32(b, uint32(member.Node))
			b = binary.LittleEndian.AppendUint32(b, uint32(member.State))
			b = binary.LittleEndian.AppendUint64(b, uint64(member.Incarnation))
		}
	case replica.Status:
		b = binary.LittleEndian.AppendUint64(b, m.Round)
		b = binary.LittleEndian.AppendUint64(b, uint64(m.LSN))
		b = binary.LittleEndian.AppendUint64(b, uint64(m.Last))
		b = binary.LittleEndian.AppendUint64(b, uint64(m.LastEpoch))
	case replica.Append:
		b = binary.LittleEndian.AppendUint64(b, uint64(m.Entry.Epoch))
		b = binary.LittleEndian.AppendUint64(b, uint64(m.Entry.LSN))
		b = binary.LittleEndian.AppendUint64(b, uint64(m.Entry.Commit))
		b = m.Entry.Op.AppendHeader(b)
	case replica.Ack, replica.Commit:
		b = binary.LittleEndian.AppendUint64(b, uint64(m.LSN))
	}
	return b
}

// ParseMessage decodes a message. The data of its entry aliases b and has
// been compared with its checksums.
func ParseMessage(b []byte) (replica.Message, error) {
	if len(b) < messageLen || b[1]|b[2]|b[3] != 0 {
		return replica.Message{}, fmt.Errorf("%w: replica message of %d bytes", chunk.ErrInvalid, len(b))
	}
	m := replica.Message{
		Kind:    replica.MessageKind(b[0]),
		Copyset: chunk.CopysetID(binary.LittleEndian.Uint32(b[4:])),
		Epoch:   chunk.Epoch(binary.LittleEndian.Uint64(b[8:])),
	}
	body := b[messageLen:]
	ok := true
	var err error
	switch m.Kind {
	case replica.Probe:
		ok = parseProbe(&m, body)
	case replica.Status:
		if ok = len(body) == statusLen; ok {
			m.Round = binary.LittleEndian.Uint64(body)
			m.LSN = parseLSN(body[8:])
			m.Last = parseLSN(body[16:])
			m.LastEpoch = chunk.Epoch(binary.LittleEndian.Uint64(body[24:]))
		}
	case replica.Append:
		if ok = len(body) >= entryLen; ok {
			err = parseEntry(&m, body)
		}
	case replica.Ack, replica.Commit:
		if ok = len(body) == lsnLen; ok {
			m.LSN = parseLSN(body)
		}
	default:
		ok = false
	}
	if !ok {
		err = fmt.Errorf("%w: malformed", chunk.ErrInvalid)
	}
	if err != nil {
		return replica.Message{}, fmt.Errorf("replica message, %v of %d bytes: %w", m.Kind, len(b), err)
	}
	return m, nil
}

func parseLSN(b []byte) chunk.LSN { return chunk.LSN(binary.LittleEndian.Uint64(b)) }

func parseProbe(m *replica.Message, b []byte) bool {
	if len(b) < probeLen || (len(b)-probeLen)%memberLen != 0 {
		return false
	}
	m.Round = binary.LittleEndian.Uint64(b)
	config := &chunk.Copyset{ID: m.Copyset, Epoch: m.Epoch, Primary: chunk.NodeID(binary.LittleEndian.Uint32(b[8:]))}
	for b = b[probeLen:]; len(b) > 0; b = b[memberLen:] {
		state := binary.LittleEndian.Uint32(b[4:])
		if state < uint32(chunk.InSync) || state > uint32(chunk.Out) {
			return false
		}
		config.Members = append(config.Members, chunk.Member{
			Node:        chunk.NodeID(binary.LittleEndian.Uint32(b)),
			State:       chunk.MemberState(state),
			Incarnation: chunk.Incarnation(binary.LittleEndian.Uint64(b[8:])),
		})
	}
	m.Config = config
	return true
}

func parseEntry(m *replica.Message, b []byte) error {
	op, err := chunk.ParseOp(b[entryLen:])
	if err != nil {
		return err
	}
	m.Entry = chunk.Entry{
		Copyset: m.Copyset,
		Epoch:   chunk.Epoch(binary.LittleEndian.Uint64(b)),
		LSN:     parseLSN(b[8:]),
		Commit:  parseLSN(b[16:]),
		Op:      op,
	}
	return op.Verify()
}
