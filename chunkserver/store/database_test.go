package store

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// database is the file of a disk that bbolt maps and syncs by itself. bbolt
// writes the pages of a transaction, syncs them, writes one of its two meta
// pages, and syncs that. So if power is lost while a transaction is committed,
// any part of its pages is there, or all of them and the meta page.
//
// The disk does not see when a transaction has been committed. It takes the
// last one for under way until the store does something else to the disk: until
// then nothing can depend on it.
type database struct {
	file    *os.File
	settled []byte // content as of the disk's last operation
}

func newDatabase(name string, content []byte) (*database, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	db := &database{file: os.NewFile(uintptr(fd), name)}
	_, err = db.file.Write(content)
	return db, err
}

// open returns the file as another one, for bbolt to close.
func (db *database) open() (*os.File, error) {
	fd, err := unix.Dup(int(db.file.Fd()))
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), db.file.Name()), nil
}

// bbolt's meta pages are the first two. At these offsets they have the number of
// pages in use and the number of the transaction.
const (
	pagesOffset = 56
	txidOffset  = 64
)

// newest returns the larger of the numbers that the meta pages have at off.
func newest(content []byte, off int) uint64 {
	var n uint64
	for ; off < 2*chunk.BlockSize && off+8 <= len(content); off += chunk.BlockSize {
		n = max(n, binary.LittleEndian.Uint64(content[off:]))
	}
	return n
}

func transaction(content []byte) uint64 { return newest(content, txidOffset) }

// metas returns the meta pages; less if there are none yet.
func (db *database) metas() []byte {
	b := make([]byte, 2*chunk.BlockSize)
	n, _ := db.file.ReadAt(b, 0)
	return b[:n]
}

// content returns the pages in use.
func (db *database) content() []byte {
	metas := db.metas()
	content := make([]byte, max(uint64(len(metas)), newest(metas, pagesOffset)*chunk.BlockSize))
	n, _ := db.file.ReadAt(content, 0)
	return content[:n]
}

// settle makes what was committed durable.
func (db *database) settle() {
	if db.settled == nil || transaction(db.metas()) != transaction(db.settled) {
		db.settled = db.content()
	}
}

// seal lets every write to the file fail from now on.
func (db *database) seal() {
	if _, err := unix.FcntlInt(db.file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE); err != nil {
		panic(err)
	}
}

// unsealed returns a copy that can be written.
func (db *database) unsealed() *database {
	free, err := newDatabase(db.file.Name(), db.content())
	if err := errors.Join(err, db.file.Close()); err != nil {
		panic(err)
	}
	return free
}

// lose returns the database as a loss of power leaves it.
func (db *database) lose(rng *rand.Rand) (*database, error) {
	content := db.content()
	// Of several transactions all but the last were durable before that began,
	// and what they have written is not known.
	if transaction(content) == transaction(db.settled)+1 && rng.IntN(2) == 0 {
		old := make([]byte, len(content)) // it had grown before the transaction
		copy(old, db.settled)
		for off := 0; off < len(content); off += sector {
			if off < 2*chunk.BlockSize || rng.IntN(2) == 0 {
				copy(content[off:off+sector], old[off:])
			}
		}
	}
	lost, err := newDatabase(db.file.Name(), content)
	return lost, errors.Join(err, db.file.Close())
}
