package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// A record is one entry of the journal, or one word about a copyset.
// Little-endian:
//
//	 0 u32 magic "LSR1"
//	 4 u8  kind
//	 5 u8  flags
//	 6 u16 0
//	 8 u32 length of the payload
//	12 u32 CRC32C of the payload
//	16 u64 batch
//	24 u32 copyset; 0 for recordMark
//	28 u32 chain: the header checksum of the record before; 0 in the very first
//	32 u64 epoch, for recordEntry, recordPromise and recordReset, else 0
//	40 u64 LSN, for recordEntry and recordReset, else 0
//	48 u64 commit, for recordEntry, else 0
//	56 u32 0
//	60 u32 header checksum: CRC32C of store UUID, segment number and bytes 0 to 59
//	64     payload, then zeros up to a multiple of 8; empty unless its kind says what it is
//
// A record has the version of its segment. The store and the segment are part
// of the checksum, so that what an earlier use of a segment's file has left
// never passes for a record of this one; the chain does the same for what an
// earlier, torn write to this place has left.
//
// Records that are written and synced together are a batch. Batches are
// numbered from 1 on, begin on a block of their own, and are followed by
// zeros to the end of the block, so that writing one never touches a block
// that holds a durable one.
type record struct {
	kind    recordKind
	flags   recordFlags
	batch   uint64
	copyset chunk.CopysetID
	chain   uint32
	epoch   chunk.Epoch
	lsn     chunk.LSN
	commit  chunk.LSN

	payloadLen uint32
	payloadCRC uint32
}

type recordKind uint8

const (
	// recordEntry: the payload is an operation, as chunk.ParseOp reads it.
	recordEntry recordKind = 1
	// recordPromise: the copyset refuses epochs below the record's.
	recordPromise recordKind = 2
	// recordReset: the copyset's history goes on behind the record's LSN. The
	// payload has its tokens, ascending by volume: u64 volume, u64 attachment,
	// u64 sequence number of each.
	recordReset recordKind = 3
	// recordMark ends what the last run left: written whenever a store is
	// opened, it makes the end of the journal the end of a batch.
	recordMark recordKind = 4
	// recordTrust: what is here of the copyset is what its history says.
	recordTrust recordKind = 5
	// recordCopy: a part of a layer is to be as the payload says, which is as
	// chunk.ParseCopy reads it.
	recordCopy recordKind = 6
	// recordDrop: the copyset is no longer here.
	recordDrop recordKind = 7
)

type recordFlags uint8

const (
	// flagLast is on the last record of a batch.
	flagLast recordFlags = 1 << 0
	// flagKept is on a copy of an earlier entry, which was applied at its
	// first place: it keeps the entry for those who may need it to be sent
	// again, so that the segment of the original can be freed.
	flagKept recordFlags = 1 << 1

	knownFlags = flagLast | flagKept
)

const (
	recordMagic  = "LSR1"
	recordHeader = 64
	recordAlign  = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// size is the number of bytes from the beginning of r to the next record.
func (r *record) size() int64 { return align(recordHeader+int64(r.payloadLen), recordAlign) }

// put encodes the header of r into b and returns its checksum.
func (r *record) put(b []byte, seed uint32) uint32 {
	le := binary.LittleEndian
	copy(b, recordMagic)
	b[4], b[5] = byte(r.kind), byte(r.flags)
	le.PutUint16(b[6:], 0)
	le.PutUint32(b[8:], r.payloadLen)
	le.PutUint32(b[12:], r.payloadCRC)
	le.PutUint64(b[16:], r.batch)
	le.PutUint32(b[24:], uint32(r.copyset))
	le.PutUint32(b[28:], r.chain)
	le.PutUint64(b[32:], uint64(r.epoch))
	le.PutUint64(b[40:], uint64(r.lsn))
	le.PutUint64(b[48:], uint64(r.commit))
	le.PutUint32(b[56:], 0)
	sum := crc32.Update(seed, castagnoli, b[:60])
	le.PutUint32(b[60:], sum)
	return sum
}

// parseRecord decodes the header at the front of b and returns its checksum.
// It reports false for anything that is not a header of the segment of seed.
func parseRecord(b []byte, seed uint32) (r record, sum uint32, ok bool) {
	if len(b) < recordHeader || string(b[:4]) != recordMagic {
		return record{}, 0, false
	}
	le := binary.LittleEndian
	sum = le.Uint32(b[60:])
	if crc32.Update(seed, castagnoli, b[:60]) != sum {
		return record{}, 0, false
	}
	return record{
		kind:       recordKind(b[4]),
		flags:      recordFlags(b[5]),
		payloadLen: le.Uint32(b[8:]),
		payloadCRC: le.Uint32(b[12:]),
		batch:      le.Uint64(b[16:]),
		copyset:    chunk.CopysetID(le.Uint32(b[24:])),
		chain:      le.Uint32(b[28:]),
		epoch:      chunk.Epoch(le.Uint64(b[32:])),
		lsn:        chunk.LSN(le.Uint64(b[40:])),
		commit:     chunk.LSN(le.Uint64(b[48:])),
	}, sum, true
}

// entry puts the entry together that r and its payload hold.
func (r *record) entry(payload []byte) (chunk.Entry, error) {
	op, err := chunk.ParseOp(payload)
	if err != nil {
		// The checksums hold, so this is not damage: a newer version has
		// written it, or an older one wrongly.
		return chunk.Entry{}, fmt.Errorf("entry %d of copyset %d can't be read by this version: %v", r.lsn, r.copyset, err)
	}
	return chunk.Entry{Copyset: r.copyset, Epoch: r.epoch, LSN: r.lsn, Commit: r.commit, Op: op}, nil
}

// body returns what the payload of r says.
func (r *record) body(payload []byte) (body, error) {
	switch {
	case r.kind == recordEntry && r.flags&flagKept == 0:
		e, err := r.entry(payload)
		return body{op: &e.Op}, err
	case r.kind == recordReset:
		tokens, ok := parseTokens(payload)
		if !ok {
			return body{}, fmt.Errorf("tokens of copyset %d can't be read by this version", r.copyset)
		}
		return body{tokens: tokens}, nil
	case r.kind == recordCopy:
		c, err := chunk.ParseCopy(payload)
		if err != nil {
			return body{}, fmt.Errorf("copy for copyset %d can't be read by this version: %v", r.copyset, err)
		}
		return body{copied: &c}, nil
	}
	return body{}, nil
}

const tokenLen = 24

func appendTokens(b []byte, tokens map[chunk.VolumeID]chunk.Token) []byte {
	le := binary.LittleEndian
	for _, volume := range slices.Sorted(maps.Keys(tokens)) {
		b = le.AppendUint64(b, uint64(volume))
		b = le.AppendUint64(b, tokens[volume].Attachment)
		b = le.AppendUint64(b, uint64(tokens[volume].Seq))
	}
	return b
}

func parseTokens(b []byte) (map[chunk.VolumeID]chunk.Token, bool) {
	le := binary.LittleEndian
	tokens := make(map[chunk.VolumeID]chunk.Token, len(b)/tokenLen)
	for ; len(b) >= tokenLen; b = b[tokenLen:] {
		tokens[chunk.VolumeID(le.Uint64(b))] = chunk.Token{Attachment: le.Uint64(b[8:]), Seq: chunk.Seq(le.Uint64(b[16:]))}
	}
	return tokens, len(b) == 0
}

// align rounds n up to a multiple of to.
func align(n, to int64) int64 { return (n + to - 1) / to * to }

// holds reports whether payload is that of r.
func (r *record) holds(payload []byte) bool {
	return crc32.Checksum(payload, castagnoli) == r.payloadCRC
}
