package store

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strings"
)

// The file "format" says whose directory it is. It is 64 bytes long,
// little-endian, and only ever replaced as a whole:
//
//	 0 8   magic "LSSTORE\n"
//	 8 u32 version of everything in the directory, 4
//	12 u32 CRC32C of bytes 16 to 63
//	16 16  store UUID
//	32 16  cluster UUID, or zeros
//	48 u64 length of a journal segment
//	56 u64 0
type format struct {
	store    uuid
	cluster  uuid
	segments int64
}

const (
	formatFile    = "format"
	formatMagic   = "LSSTORE\n"
	formatVersion = 4
	formatLen     = 64
)

type uuid [16]byte

func newUUID() uuid {
	var u uuid
	rand.Read(u[:])
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80 // version 4, variant 1
	return u
}

func (u uuid) String() string {
	s := hex.EncodeToString(u[:])
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}

func parseUUID(s string) (uuid, error) {
	var u uuid
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, fmt.Errorf("%q is not a UUID", s)
	}
	if n, err := hex.Decode(u[:], []byte(strings.ReplaceAll(s, "-", ""))); err != nil || n != len(u) {
		return u, fmt.Errorf("%q is not a UUID", s)
	}
	return u, nil
}

// readFormat reads the format file of fs. It reports false if the directory
// is as good as empty, so that a store may be made in it.
func readFormat(fs FS) (f format, found bool, err error) {
	names, err := fs.List(".")
	if err != nil {
		return format{}, false, fmt.Errorf("list store: %w", err)
	}
	var foreign string
	for _, name := range names {
		switch name {
		case formatFile:
			found = true
		case formatFile + tmpSuffix, lockFile, "lost+found":
		case journalDir, layerDir, metaFile:
			// Of a store that was being made: the format file comes last.
		default:
			foreign = name
		}
	}
	if !found {
		if foreign != "" {
			return format{}, false, fmt.Errorf("not a store, and not empty: it holds %q", foreign)
		}
		return format{}, false, nil
	}
	// A process that was killed may have left names that are not durable.
	if err := fs.SyncDir("."); err != nil {
		return format{}, false, fmt.Errorf("sync store: %w", err)
	}
	f, err = parseFormat(fs)
	return f, true, err
}

func parseFormat(fs FS) (format, error) {
	file, err := fs.Open(formatFile)
	if err != nil {
		return format{}, fmt.Errorf("open format: %w", err)
	}
	defer file.Close()
	b := make([]byte, formatLen)
	if err := file.ReadAt(b, 0); err != nil {
		return format{}, fmt.Errorf("read format: %w", err)
	}
	le := binary.LittleEndian
	switch {
	case string(b[:8]) != formatMagic:
		return format{}, fmt.Errorf("file %q is not that of a store", formatFile)
	case le.Uint32(b[8:]) != formatVersion:
		return format{}, fmt.Errorf("store has version %d, this program knows %d", le.Uint32(b[8:]), formatVersion)
	case le.Uint32(b[12:]) != crc32.Checksum(b[16:], castagnoli):
		return format{}, fmt.Errorf("%w: file %q", ErrDamaged, formatFile)
	}
	return format{store: uuid(b[16:32]), cluster: uuid(b[32:48]), segments: int64(le.Uint64(b[48:]))}, nil
}

// write makes f what the directory says of itself, durably.
func (f format) write(fs FS) error {
	b := make([]byte, formatLen)
	le := binary.LittleEndian
	copy(b, formatMagic)
	le.PutUint32(b[8:], formatVersion)
	copy(b[16:], f.store[:])
	copy(b[32:], f.cluster[:])
	le.PutUint64(b[48:], uint64(f.segments))
	le.PutUint32(b[12:], crc32.Checksum(b[16:], castagnoli))
	return replaceFile(fs, formatFile, b)
}

const tmpSuffix = ".tmp"

// replaceFile gives the file called name, in the top directory, a new
// content: after a crash it has the old or the new one.
func replaceFile(fs FS, name string, content []byte) error {
	file, err := fs.Create(name + tmpSuffix)
	if err != nil {
		return fmt.Errorf("replace %s: %w", name, err)
	}
	err = file.WriteAt(0, content)
	if err == nil {
		err = file.Sync()
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = fs.Rename(name+tmpSuffix, name)
	}
	if err == nil {
		err = fs.SyncDir(".")
	}
	if err != nil {
		return fmt.Errorf("replace %s: %w", name, err)
	}
	return nil
}
