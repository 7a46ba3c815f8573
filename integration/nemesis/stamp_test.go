package nemesis

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"testing"
)

const sectorSize = 4096

// A stamp fills a sector, so that a reader knows who wrote it, where and when.
// Of a sector that was never written, all is zero.
//
//	0        8        16       24       32                 4092   4096
//	| magic  | volume | sector | op     | op, repeated ... | crc  |
type stamp struct {
	volume, sector uint64
	op             uint64 // counts the writes of a volume from 1
}

const stampMagic = 0x53_54_41_4d_50_45_44_21

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (s stamp) fill(p []byte) {
	binary.BigEndian.PutUint64(p, stampMagic)
	binary.BigEndian.PutUint64(p[8:], s.volume)
	binary.BigEndian.PutUint64(p[16:], s.sector)
	for at := 24; at+8 <= sectorSize; at += 8 {
		binary.BigEndian.PutUint64(p[at:], s.op)
	}
	binary.BigEndian.PutUint32(p[sectorSize-4:], crc32.Checksum(p[:sectorSize-4], castagnoli))
}

var errTorn = errors.New("no stamp, or not all of one")

// readStamp returns the op that wrote a sector, 0 if none did. It is an error
// if that was no write to this very sector.
func readStamp(p []byte, volume, sector uint64) (op uint64, err error) {
	if bytes.Equal(p, make([]byte, sectorSize)) {
		return 0, nil
	}
	if binary.BigEndian.Uint64(p) != stampMagic ||
		binary.BigEndian.Uint32(p[sectorSize-4:]) != crc32.Checksum(p[:sectorSize-4], castagnoli) {
		return 0, fmt.Errorf("sector %d: %w: % x...", sector, errTorn, p[:32])
	}
	s := stamp{binary.BigEndian.Uint64(p[8:]), binary.BigEndian.Uint64(p[16:]), binary.BigEndian.Uint64(p[24:])}
	if s.volume != volume || s.sector != sector {
		return 0, fmt.Errorf("sector %d of volume %d holds what was written to %+v", sector, volume, s)
	}
	return s.op, nil
}

func TestStamps(t *testing.T) {
	a, b := make([]byte, sectorSize), make([]byte, sectorSize)
	stamp{1, 2, 3}.fill(a)
	stamp{1, 2, 4}.fill(b)
	if op, err := readStamp(a, 1, 2); op != 3 || err != nil {
		t.Errorf("op %d, %v", op, err)
	}
	if op, err := readStamp(make([]byte, sectorSize), 1, 2); op != 0 || err != nil {
		t.Errorf("an empty sector: op %d, %v", op, err)
	}
	if _, err := readStamp(a, 1, 3); err == nil {
		t.Error("another sector's stamp is taken")
	}
	if _, err := readStamp(a, 2, 2); err == nil {
		t.Error("another volume's stamp is taken")
	}
	for _, at := range []int{512, 2048, 4095} {
		if _, err := readStamp(append(a[:at:at], b[at:]...), 1, 2); !errors.Is(err, errTorn) {
			t.Errorf("torn at %d: %v", at, err)
		}
		if _, err := readStamp(append(a[:at:at], make([]byte, sectorSize-at)...), 1, 2); !errors.Is(err, errTorn) {
			t.Errorf("cut off at %d: %v", at, err)
		}
	}
}
