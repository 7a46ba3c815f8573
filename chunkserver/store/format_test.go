package store

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

func TestForeignDirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "holiday.jpg"), nil, 0o600))
	_, err := Open(dir, small)
	if err == nil || !strings.Contains(err.Error(), "holiday.jpg") {
		t.Fatalf("error %v", err)
	}
	must(t, os.Remove(filepath.Join(dir, "holiday.jpg")))
	mustOpen(t, dir, small)
}

func TestFormatFile(t *testing.T) {
	reseal := func(b []byte) {
		binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b[16:], castagnoli))
	}
	for _, test := range []struct {
		name, want string
		damaged    bool
		change     func(b []byte)
	}{
		{"magic", "not that of a store", false, func(b []byte) { b[0] = 'X' }},
		{"newer", "version 5, this program knows 4", false, func(b []byte) { b[8] = 5 }},
		{"older", "version 1, this program knows 4", false, func(b []byte) { b[8] = 1 }},
		{"flipped bit", "damaged", true, func(b []byte) { b[20] ^= 1 }},
		{"another store's journal", "another store", true, func(b []byte) { b[20] ^= 1; reseal(b) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, mustOpen(t, dir, small).Close())
			name := filepath.Join(dir, formatFile)
			b, err := os.ReadFile(name)
			must(t, err)
			test.change(b)
			must(t, os.WriteFile(name, b, 0o600))
			_, err = Open(dir, small)
			if err == nil || !strings.Contains(err.Error(), test.want) || errors.Is(err, ErrDamaged) != test.damaged {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

// Each file of a store is refused, by its name and with the reason, if it is
// not what this store has written, and so is a file that is no store's.
func TestForeignFilesAreRefused(t *testing.T) {
	segment := segmentName(1)
	for _, test := range []struct {
		name, file, want string
		damaged          bool
		change           func(t *testing.T, name, other string)
	}{
		{"database of another store", metaFile, "belongs to another store", true, takeFrom},
		{"database that is none", metaFile, "invalid database", false, overwrite(0, make([]byte, 16<<10))},
		{"database of another version", metaFile, "version mismatch", false, overwrite(20, []byte{9}, chunk.BlockSize)},
		{"empty database", metaFile, "is empty", true, truncate},
		{"no database", metaFile, "is empty", true, remove},
		{"segment of another store", segment, "belongs to another store", true, takeFrom},
		{"segment that is none", segment, "is not a journal segment", true, overwrite(0, []byte("X"))},
		{"segment of another version", segment, "version 9, this program knows 1", false, overwrite(8, []byte{9, 0, 0, 0, 1})},
		{"segment with a damaged header", segment, "header of", true, overwrite(20, []byte{1, 2, 3})},
		{"empty segment", segment, "0 bytes long", true, truncate},
		{"no segment", segment, "is missing", true, remove},
		{"another file in the journal", journalDir + "/holiday.jpg", "holiday.jpg is not a file of a store", false, overwrite(0, nil)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir, other := t.TempDir(), t.TempDir()
			must(t, mustOpen(t, dir, small).Close())
			must(t, mustOpen(t, other, small).Close())
			test.change(t, filepath.Join(dir, test.file), filepath.Join(other, test.file))
			_, err := Open(dir, small)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), filepath.Base(test.file)) ||
				errors.Is(err, ErrDamaged) != test.damaged {
				t.Errorf("error %v, want %q of %s", err, test.want, test.file)
			}
		})
	}
}

func takeFrom(t *testing.T, name, other string) { must(t, os.Rename(other, name)) }
func truncate(t *testing.T, name, _ string)     { must(t, os.Truncate(name, 0)) }
func remove(t *testing.T, name, _ string)       { must(t, os.Remove(name)) }

// overwrite changes some bytes of a file at off, and again so much further.
func overwrite(off int64, b []byte, further ...int64) func(t *testing.T, name, _ string) {
	return func(t *testing.T, name, _ string) {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		defer f.Close()
		for _, more := range append(further, 0) {
			_, err := f.WriteAt(b, off+more)
			must(t, err)
		}
	}
}

func TestBind(t *testing.T) {
	const one, two = "11111111-2222-4333-8444-555555555555", "91111111-2222-4333-8444-555555555555"
	dir := t.TempDir()
	s := mustOpen(t, dir, small)
	for _, bad := range []string{"", "x", strings.Repeat("g", 36), one + "0"} {
		if s.Bind(bad) == nil {
			t.Errorf("bound to %q", bad)
		}
	}
	for range 2 {
		must(t, s.Bind(one))
		if err := s.Bind(two); err == nil || !strings.Contains(err.Error(), one) {
			t.Errorf("bound to a second cluster: %v", err)
		}
		must(t, s.Close())
		s = mustOpen(t, dir, small)
	}
}

// A crash at any moment while a store is being made leaves a directory in
// which one can be made, or is one.
func TestCreateSurvivesLossOfPower(t *testing.T) {
	for seed := range uint64(60) {
		d := newDisk()
		d.offAt = 1 + int(seed%30)
		id := ""
		for range 10 {
			s, err := Open("", onDisk(d))
			if err == nil {
				if id != "" && s.ID() != id {
					t.Errorf("seed %d: the store has got another id", seed)
				}
				id = s.ID()
				s.Close()
			} else if !d.off {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if d.off {
				d.lose(newRand(seed))
			}
		}
		if id == "" {
			t.Errorf("seed %d: no store was made", seed)
		}
	}
}

// The formats stay as they are until formatVersion changes.
func TestFormatsDoNotChange(t *testing.T) {
	store, cluster := uuid{1, 2, 3}, uuid{4, 5, 6}
	dir := t.TempDir()
	must(t, format{store: store, cluster: cluster, segments: 1 << 20}.write(OSFS(dir)))
	formatBytes, err := os.ReadFile(filepath.Join(dir, formatFile))
	must(t, err)

	must(t, OSFS(dir).Mkdir(journalDir))
	seg, err := makeSegment(OSFS(dir), store, 0x1122, minSegment, "")
	must(t, err)
	defer seg.file.Close()
	segmentBytes := make([]byte, 48)
	must(t, seg.file.ReadAt(segmentBytes, 0))

	recordBytes := make([]byte, recordHeader)
	r := record{
		kind: recordEntry, flags: flagLast, batch: 0x11, copyset: 0x22, chain: 0x33, epoch: 0x44, lsn: 0x55, commit: 0x66,
		payloadLen: 0x77, payloadCRC: 0x88,
	}
	r.put(recordBytes, seg.seed)

	id := layerID{chunk.Ref{Volume: 0x1111, Index: 0x22}, 0x33}
	l := layer{id: id}
	l.setData(65, 0xaabbccdd)
	l.setData(127, 0x11223344)
	l.setZero(64)
	l.stamped(stamp{0x66, 0x55})

	for _, test := range []struct {
		what, want string
		got        []byte
	}{
		{"format", "4c5353544f52450a0400000030237b2c010203000000000000000000000000000405060000000000000000000000000000001000000000000000000000000000", formatBytes},
		{"segment", "4c534a4f55524e4c01000000d0cd6a430102030000000000000000000000000022110000000000000080000000000000", segmentBytes},
		{"record", "4c53523101010000770000008800000011000000000000002200000033000000440000000000000055000000000000006600000000000000000000001b9b83cd", recordBytes},
		{"key of a layer", "0000000000001111000000220000000000000033", layerKey(id)},
		{"layer", "8e367d821c75c0d232edf4f4e18dc84902000000000000005500000000000000" + "66000000", (&savedLayer{id, l.kept, l.sum, l.last}).encode()},
		{"part", "020000000000008001000000000000005500000000000000ddccbbaa44332211", l.parts[1].encode()},
		{"name of a layer", "6c61796572732f303030303030303030303030313131312f30303030303032322e30303030303030303030303030303333", []byte(id.name())},
		{"mix", "2cb4b437", binary.BigEndian.AppendUint32(nil, id.mix(77))},
		{"digest", "8e367d821c75c0d232edf4f4e18dc849", func() []byte { d := l.sum.encode(); return d[:] }()},
	} {
		if got := hex.EncodeToString(test.got); got != test.want {
			t.Errorf("%s:\n%s, was\n%s", test.what, got, test.want)
		}
	}
}
