package store

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

var (
	errPowerLoss = errors.New("the power is off")
	errFault     = errors.New("injected fault")
)

const sector = 512

// disk is a file system in memory that can lose its power: of what was not
// synced then, any part survives, sector by sector, and of the operations on
// a directory that were not synced, any number of the first.
type disk struct {
	mu       sync.Mutex
	dirs     map[string]*directory
	database *database // nil if there is none
	locked   bool
	pages    int64 // allocated
	capacity int64 // in pages; 0: no limit

	ops     int                   // that changed or synced something
	offAt   int                   // op at which the power goes off; 0: never
	off     bool                  // it has gone
	failing string                // op and name of what fails, see fail
	counts  map[string]int        // of operations, by kind and top directory: "sync journal"
	before  func(op, name string) // called without locks before an operation; may be nil
}

type directory struct {
	names   map[string]*inode // nil for a subdirectory
	durable map[string]*inode
	pending []func(map[string]*inode)
}

type inode struct {
	disk    *disk
	pages   map[int64]*[chunk.BlockSize]byte
	durable map[int64]*[chunk.BlockSize]byte
	size    int64
	synced  int64 // durable size
	pending []change
}

// change is a write, or a punch if data is nil.
type change struct {
	off  int64
	n    int64
	data []byte
}

func newDisk() *disk {
	d := &disk{dirs: make(map[string]*directory), counts: make(map[string]int)}
	d.dirs["."] = newDirectory()
	return d
}

func newDirectory() *directory {
	return &directory{names: make(map[string]*inode), durable: make(map[string]*inode)}
}

// fault counts an operation, and tells whether it fails. mu must be held.
func (d *disk) fault(op, name string) error {
	d.ops++
	top, _, _ := strings.Cut(name, "/")
	d.counts[op+" "+top]++
	if d.off || d.offAt > 0 && d.ops >= d.offAt {
		d.off = true
		return errPowerLoss
	}
	if d.failing != "" && strings.HasPrefix(op+" "+name, d.failing) {
		return errFault
	}
	if d.database != nil {
		d.database.settle()
	}
	return nil
}

// lose takes the power away and brings it back: what was not durable is lost,
// as rng says.
func (d *disk) lose(rng *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	seen := make(map[*inode]bool)
	for _, name := range sortedKeys(d.dirs) {
		dir := d.dirs[name]
		for _, apply := range dir.pending[:rng.IntN(len(dir.pending)+1)] {
			apply(dir.durable)
		}
		dir.pending = nil
		dir.names = make(map[string]*inode)
		for _, name := range sortedKeys(dir.durable) {
			node := dir.durable[name]
			dir.names[name] = node
			if node != nil && !seen[node] {
				seen[node] = true
				node.lose(rng)
			}
		}
	}
	for name := range d.dirs {
		if _, ok := d.dirs[path.Dir(name)].names[path.Base(name)]; name != "." && !ok {
			delete(d.dirs, name)
		}
	}
	if d.database != nil {
		var err error
		if d.database, err = d.database.lose(rng); err != nil {
			panic(err)
		}
	}
	d.pages = 0
	for node := range seen {
		d.pages += int64(len(node.pages))
	}
	d.off, d.offAt, d.locked, d.failing = false, 0, false, ""
}

// killed ends the process that used the disk, with everything that it has
// written, synced or not.
func (d *disk) killed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off, d.offAt, d.locked, d.failing = false, 0, false, ""
}

// fail lets the operations on names fail whose kind and name begin like that:
// "sync journal". Of the database only all writes can: "write meta.db".
func (d *disk) fail(failing string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if failing == "write "+metaFile {
		d.database.seal()
	} else {
		d.failing = failing
	}
}

// heal lets nothing fail any more.
func (d *disk) heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failing, d.database = "", d.database.unsealed()
}

func (f *inode) lose(rng *rand.Rand) {
	mode := rng.IntN(4)
	for _, c := range f.pending {
		switch {
		case mode == 0 || mode == 1 && rng.IntN(2) == 0:
			continue
		case mode == 2 && c.data != nil:
			for off := int64(0); off < c.n; off += sector {
				if rng.IntN(2) == 0 {
					end := min(off+sector, c.n)
					change{c.off + off, end - off, c.data[off:end]}.apply(f.durable, &f.synced)
				}
			}
		default:
			c.apply(f.durable, &f.synced)
		}
	}
	f.pending = nil
	f.size = f.synced
	f.pages = clonePages(f.durable)
}

func clonePages(pages map[int64]*[chunk.BlockSize]byte) map[int64]*[chunk.BlockSize]byte {
	clone := make(map[int64]*[chunk.BlockSize]byte, len(pages))
	for n, p := range pages {
		page := *p
		clone[n] = &page
	}
	return clone
}

func (c change) apply(pages map[int64]*[chunk.BlockSize]byte, size *int64) {
	if c.data == nil {
		for off := c.off; off < c.off+c.n; off += chunk.BlockSize {
			delete(pages, off/chunk.BlockSize)
		}
		return
	}
	for off, rest := c.off, c.data; len(rest) > 0; {
		n, in := off/chunk.BlockSize, off%chunk.BlockSize
		page := pages[n]
		if page == nil {
			page = new([chunk.BlockSize]byte)
			pages[n] = page
		}
		copied := copy(page[in:], rest)
		off, rest = off+int64(copied), rest[copied:]
	}
	*size = max(*size, c.off+c.n)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// enter makes name be node in its directory; nil removes it.
func (d *disk) enter(name string, node *inode, remove bool) {
	dir := d.dirs[path.Dir(name)]
	base := path.Base(name)
	apply := func(names map[string]*inode) {
		if remove {
			delete(names, base)
		} else {
			names[base] = node
		}
	}
	apply(dir.names)
	dir.pending = append(dir.pending, apply)
}

func (d *disk) Open(name string) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return nil, errPowerLoss
	}
	node, err := d.find(name)
	if err != nil {
		return nil, err
	}
	return &diskFile{node, name}, nil
}

func (d *disk) find(name string) (*inode, error) {
	dir := d.dirs[path.Dir(name)]
	if dir == nil || dir.names[path.Base(name)] == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return dir.names[path.Base(name)], nil
}

func (d *disk) Create(name string) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fault("create", name); err != nil {
		return nil, err
	}
	if d.dirs[path.Dir(name)] == nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrNotExist}
	}
	node := &inode{disk: d, pages: make(map[int64]*[chunk.BlockSize]byte), durable: make(map[int64]*[chunk.BlockSize]byte)}
	d.enter(name, node, false)
	return &diskFile{node, name}, nil
}

func (d *disk) Mkdir(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fault("mkdir", name); err != nil {
		return err
	}
	if d.dirs[name] == nil {
		d.dirs[name] = newDirectory()
		d.enter(name, nil, false)
	}
	return nil
}

func (d *disk) Rename(oldname, newname string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fault("rename", oldname); err != nil {
		return err
	}
	node, err := d.find(oldname)
	if err != nil {
		return err
	}
	dir := d.dirs[path.Dir(oldname)]
	apply := func(names map[string]*inode) {
		delete(names, path.Base(oldname))
		names[path.Base(newname)] = node
	}
	apply(dir.names)
	dir.pending = append(dir.pending, apply)
	return nil
}

func (d *disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fault("remove", name); err != nil {
		return err
	}
	if name == metaFile {
		d.database = nil
		return nil
	}
	if dir := d.dirs[name]; dir != nil {
		if len(dir.names) > 0 {
			return fmt.Errorf("remove %s: not empty", name)
		}
		// Its removals are durable with it, or before.
		dir.durable, dir.pending = make(map[string]*inode), nil
		delete(d.dirs, name)
		d.enter(name, nil, true)
		return nil
	}
	node, err := d.find(name)
	if err != nil {
		return err
	}
	d.pages -= int64(len(node.pages))
	d.enter(name, nil, true)
	return nil
}

func (d *disk) List(dir string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return nil, errPowerLoss
	}
	if d.dirs[dir] == nil {
		return nil, nil
	}
	return sortedKeys(d.dirs[dir].names), nil
}

func (d *disk) SyncDir(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fault("syncdir", name); err != nil {
		return err
	}
	dir := d.dirs[name]
	if dir == nil {
		return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	for _, apply := range dir.pending {
		apply(dir.durable)
	}
	dir.pending = nil
	return nil
}

func (d *disk) Lock(name string) (func() error, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locked {
		return nil, errors.New("in use")
	}
	d.locked = true
	return func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.locked = false
		return nil
	}, nil
}

func (d *disk) Free() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.capacity == 0 {
		return 1 << 40, nil
	}
	return uint64(max(0, d.capacity-d.pages) * chunk.BlockSize), nil
}

func (d *disk) Database(name string) (*os.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return nil, errPowerLoss
	}
	if d.database == nil {
		db, err := newDatabase(name, nil)
		if err != nil {
			return nil, err
		}
		d.database = db
	}
	return d.database.open()
}

type diskFile struct {
	node *inode
	name string
}

func (f *diskFile) ReadAt(p []byte, off int64) error {
	d := f.node.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return errPowerLoss
	}
	f.node.read(p, off)
	return nil
}

func (f *inode) read(p []byte, off int64) {
	for len(p) > 0 {
		n, in := off/chunk.BlockSize, off%chunk.BlockSize
		var copied int
		if page := f.pages[n]; page != nil {
			copied = copy(p, page[in:])
		} else {
			copied = min(len(p), int(chunk.BlockSize-in))
			clear(p[:copied])
		}
		off, p = off+int64(copied), p[copied:]
	}
}

func (f *diskFile) WriteAt(off int64, buffers ...[]byte) error {
	d := f.node.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.fault("write", f.name)
	if err != nil && !errors.Is(err, errPowerLoss) {
		return err
	}
	if err == errPowerLoss && d.ops > d.offAt {
		return err // only what goes on at the moment may leave traces
	}
	return errors.Join(err, f.node.write(off, slices.Concat(buffers...)))
}

func (f *inode) write(off int64, data []byte) error {
	before := len(f.pages)
	c := change{off, int64(len(data)), data}
	c.apply(f.pages, &f.size)
	f.pending = append(f.pending, c)
	f.disk.pages += int64(len(f.pages) - before)
	if f.disk.capacity > 0 && f.disk.pages > f.disk.capacity {
		return fmt.Errorf("write: %w", unix.ENOSPC)
	}
	return nil
}

func (f *diskFile) CopyTo(dst File, off, n int64) error {
	p := make([]byte, n)
	if err := f.ReadAt(p, off); err != nil {
		return err
	}
	return dst.WriteAt(off, p)
}

func (f *diskFile) Punch(off, n int64) error {
	d := f.node.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fault("punch", f.name); err != nil {
		return err
	}
	before := len(f.node.pages)
	c := change{off: off, n: n}
	c.apply(f.node.pages, &f.node.size)
	f.node.pending = append(f.node.pending, c)
	d.pages += int64(len(f.node.pages) - before)
	return nil
}

func (f *diskFile) Sync() error {
	d := f.node.disk
	if d.before != nil {
		d.before("sync", f.name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fault("sync", f.name); err != nil {
		return err
	}
	for _, c := range f.node.pending {
		c.apply(f.node.durable, &f.node.synced)
	}
	f.node.pending = nil
	return nil
}

func (f *diskFile) Uncache(off, n int64) {}

func (f *diskFile) Size() (int64, error) {
	d := f.node.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	return f.node.size, nil
}

func (f *diskFile) Close() error { return nil }

// corrupt flips a byte of a file, durably.
func (d *disk) corrupt(name string, off int64) {
	b := d.peek(name, off, 1)
	d.poke(name, off, []byte{^b[0]})
}

// peek returns n bytes of a file.
func (d *disk) peek(name string, off int64, n int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	node, err := d.find(name)
	if err != nil {
		panic(err)
	}
	p := make([]byte, n)
	node.read(p, off)
	return p
}

// poke changes a file behind the back of whoever uses it, durably.
func (d *disk) poke(name string, off int64, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	node, err := d.find(name)
	if err != nil {
		panic(err)
	}
	c := change{off, int64(len(data)), data}
	c.apply(node.pages, &node.size)
	c.apply(node.durable, &node.synced)
}

// lost reports whether the power has gone.
func (d *disk) lost() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.off
}

// cutAfter makes the power go n operations from now; never if n is 0.
func (d *disk) cutAfter(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.offAt = 0
	if n > 0 {
		d.offAt = d.ops + n
	}
}

// kill ends the store s like kill -9 would.
func (d *disk) kill(s *Store) {
	d.mu.Lock()
	d.off = true
	d.mu.Unlock()
	s.Close()
	d.killed()
}
