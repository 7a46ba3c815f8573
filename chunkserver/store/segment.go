package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// A segment is one file of the journal. Its first block is the header,
// little-endian, the rest of it zero:
//
//	 0 8   magic "LSJOURNL"
//	 8 u32 version, 1
//	12 u32 CRC32C of bytes 16 to 47
//	16 16  store UUID
//	32 u64 number of the segment
//	40 u64 length of the file
//
// Records follow from the second block on. The file has its full length, all
// blocks allocated and written, before it gets the name under which it is
// used: syncing a record then changes no metadata of the file system. A
// segment that is not needed any more is not deleted but renamed, and becomes
// a later one.
type segment struct {
	number uint64
	file   File
	seed   uint32 // of the checksums of its records
}

const (
	journalDir     = "journal"
	segmentSuffix  = ".seg"
	freeSuffix     = ".free"
	segmentMagic   = "LSJOURNL"
	segmentVersion = 1
	segmentHeader  = chunk.BlockSize // its length, padding included
)

func segmentName(number uint64) string {
	return fmt.Sprintf("%s/%016x%s", journalDir, number, segmentSuffix)
}

// parseSegmentName returns the number of the segment whose file is called
// name within the journal's directory.
func parseSegmentName(name string) (number uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 16, 64)
	return number, err == nil
}

// segmentSeed is where the checksums of a segment's records start from.
func segmentSeed(store uuid, number uint64) uint32 {
	return crc32.Checksum(binary.LittleEndian.AppendUint64(store[:], number), castagnoli)
}

// makeSegment makes a segment of length bytes, out of the file called recycle
// if that is not empty. When it returns, the segment is durable under its name.
func makeSegment(fs FS, store uuid, number uint64, length int64, recycle string) (*segment, error) {
	name := recycle
	if name == "" {
		name = strings.TrimSuffix(segmentName(number), segmentSuffix) + freeSuffix
	}
	file, err := openSegmentFile(fs, name, length, recycle == "")
	if err != nil {
		return nil, fmt.Errorf("make journal segment: %w", err)
	}
	header := make([]byte, segmentHeader)
	le := binary.LittleEndian
	copy(header, segmentMagic)
	le.PutUint32(header[8:], segmentVersion)
	copy(header[16:], store[:])
	le.PutUint64(header[32:], number)
	le.PutUint64(header[40:], uint64(length))
	le.PutUint32(header[12:], crc32.Checksum(header[16:48], castagnoli))
	err = file.WriteAt(0, header)
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = fs.Rename(name, segmentName(number))
	}
	if err == nil {
		err = fs.SyncDir(journalDir)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("make journal segment: %w", err)
	}
	return &segment{number: number, file: file, seed: segmentSeed(store, number)}, nil
}

// segmentRun is how much of a new segment is written at once. Linux keeps in
// one piece of its cache what was written at once, and ext4 takes time in
// proportion to the piece when a block of it is written again: some 13 µs in
// pieces of 1 MiB, 5 µs in those of 64 KiB.
const segmentRun = 64 << 10

// openSegmentFile opens a file of length bytes, all of them written.
func openSegmentFile(fs FS, name string, length int64, create bool) (File, error) {
	if !create {
		return fs.Open(name)
	}
	file, err := fs.Create(name)
	if err != nil {
		return nil, err
	}
	zeros := make([]byte, min(length, segmentRun))
	for off := int64(0); off < length; off += int64(len(zeros)) {
		if err := file.WriteAt(off, zeros[:min(int64(len(zeros)), length-off)]); err != nil {
			file.Close()
			return nil, err
		}
	}
	return file, nil
}

// openSegment opens an existing segment and reads all of it.
func openSegment(fs FS, store uuid, number uint64) (*segment, []byte, error) {
	name := segmentName(number)
	file, err := fs.Open(name)
	if err != nil {
		return nil, nil, fmt.Errorf("open journal segment: %w", err)
	}
	content, err := readSegment(file, name, store, number)
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return &segment{number: number, file: file, seed: segmentSeed(store, number)}, content, nil
}

func readSegment(file File, name string, store uuid, number uint64) ([]byte, error) {
	// What a crash of the process has left in memory only must be durable
	// before anything is concluded from it.
	if err := file.Sync(); err != nil {
		return nil, fmt.Errorf("sync journal segment: %w", err)
	}
	size, err := file.Size()
	if err != nil {
		return nil, fmt.Errorf("read journal segment: %w", err)
	}
	if size < minSegment || size > maxSegment {
		return nil, fmt.Errorf("%w: %s is %d bytes long", ErrDamaged, name, size)
	}
	content := make([]byte, size)
	if err := file.ReadAt(content, 0); err != nil {
		return nil, fmt.Errorf("read journal segment: %w", err)
	}
	le := binary.LittleEndian
	switch {
	case string(content[:8]) != segmentMagic:
		return nil, fmt.Errorf("%w: %s is not a journal segment", ErrDamaged, name)
	case le.Uint32(content[8:]) != segmentVersion:
		return nil, fmt.Errorf("%s has version %d, this program knows %d", name, le.Uint32(content[8:]), segmentVersion)
	case le.Uint32(content[12:]) != crc32.Checksum(content[16:48], castagnoli):
		return nil, fmt.Errorf("%w: header of %s", ErrDamaged, name)
	case uuid(content[16:32]) != store || le.Uint64(content[32:]) != number || le.Uint64(content[40:]) != uint64(size):
		return nil, fmt.Errorf("%w: %s belongs to another store or place", ErrDamaged, name)
	}
	return content, nil
}
