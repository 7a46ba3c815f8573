package wire

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

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
//	Reset   u64 round | u64 LSN | u64 epoch of the entry there
//	Copy    u64 round | u64 LSN | the copy, as in chunk.ParseCopy
//	Tokens  u64 round | (u64 volume, u64 attachment, u64 sequence number) of each, ascending
const (
	messageLen = 16
	probeLen   = 12
	memberLen  = 16
	statusLen  = 32
	entryLen   = 24
	lsnLen     = 8
	roundLen   = 8
	copyLen    = 16
	resetLen   = 24
	tokenLen   = 24
)

// AppendMessage appends the encoding of m without its MessageData, which
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
	case replica.Reset:
		b = binary.LittleEndian.AppendUint64(b, m.Round)
		b = binary.LittleEndian.AppendUint64(b, uint64(m.LSN))
		b = binary.LittleEndian.AppendUint64(b, uint64(m.LastEpoch))
	case replica.Copy:
		b = binary.LittleEndian.AppendUint64(b, m.Round)
		b = binary.LittleEndian.AppendUint64(b, uint64(m.LSN))
		b = m.Copy.AppendHeader(b)
	case replica.Tokens:
		b = binary.LittleEndian.AppendUint64(b, m.Round)
		for _, volume := range slices.Sorted(maps.Keys(m.Tokens)) {
			token := m.Tokens[volume]
			b = binary.LittleEndian.AppendUint64(b, uint64(volume))
			b = binary.LittleEndian.AppendUint64(b, token.Attachment)
			b = binary.LittleEndian.AppendUint64(b, uint64(token.Seq))
		}
	}
	return b
}

// MessageData is the last part of the encoding of m: the data of its entry, or
// the content of its copy.
func MessageData(m *replica.Message) []byte {
	if m.Kind == replica.Copy {
		return m.Copy.Content
	}
	return m.Entry.Op.Data
}

// ParseMessage decodes a message. The data of its entry or copy aliases b and
// has been compared with its checksums.
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
	case replica.Reset:
		if ok = len(body) == resetLen; ok {
			m.Round = binary.LittleEndian.Uint64(body)
			m.LSN = parseLSN(body[8:])
			m.LastEpoch = chunk.Epoch(binary.LittleEndian.Uint64(body[16:]))
		}
	case replica.Copy:
		if ok = len(body) >= copyLen; ok {
			err = parseCopy(&m, body)
		}
	case replica.Tokens:
		ok = parseTokens(&m, body)
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

func parseCopy(m *replica.Message, b []byte) error {
	c, err := chunk.ParseCopy(b[copyLen:])
	if err != nil {
		return err
	}
	m.Round, m.LSN, m.Copy = binary.LittleEndian.Uint64(b), parseLSN(b[8:]), &c
	return c.Verify()
}

func parseTokens(m *replica.Message, b []byte) bool {
	if len(b) < roundLen || (len(b)-roundLen)%tokenLen != 0 {
		return false
	}
	m.Round = binary.LittleEndian.Uint64(b)
	m.Tokens = make(map[chunk.VolumeID]chunk.Token)
	last := chunk.VolumeID(0)
	for b = b[roundLen:]; len(b) > 0; b = b[tokenLen:] {
		volume := chunk.VolumeID(binary.LittleEndian.Uint64(b))
		if volume <= last {
			return false
		}
		m.Tokens[volume] = chunk.Token{
			Attachment: binary.LittleEndian.Uint64(b[8:]),
			Seq:        chunk.Seq(binary.LittleEndian.Uint64(b[16:])),
		}
		last = volume
	}
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
