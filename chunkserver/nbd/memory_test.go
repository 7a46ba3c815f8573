package nbd

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// shelf is an Exports of memory devices. It checks what the package promises
// to a device: nothing out of bounds, no change of what is read-only, no call
// after or during Close, one Close per Open.
type shelf struct {
	tb      testing.TB
	devices map[string]*memory
	openErr error
	opened  atomic.Int64
	closed  atomic.Int64
}

func newShelf(tb testing.TB, devices map[string]*memory) *shelf {
	s := &shelf{tb: tb, devices: devices}
	tb.Cleanup(func() {
		if o, c := s.opened.Load(), s.closed.Load(); o != c {
			tb.Errorf("%d devices were opened, %d closed", o, c)
		}
	})
	return s
}

func (s *shelf) List(context.Context) ([]string, error) {
	if s.openErr != nil {
		return nil, s.openErr
	}
	var names []string
	for name := range s.devices {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func (s *shelf) find(name string) (*memory, error) {
	if s.openErr != nil {
		return nil, s.openErr
	}
	if m := s.devices[name]; m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrUnknownExport, name)
}

func (s *shelf) Stat(_ context.Context, name string) (Info, error) {
	m, err := s.find(name)
	if err != nil {
		return Info{}, err
	}
	return m.info, nil
}

func (s *shelf) Open(_ context.Context, name string) (Device, error) {
	m, err := s.find(name)
	if err != nil {
		return nil, err
	}
	s.opened.Add(1)
	return &handle{memory: m, shelf: s}, nil
}

const memoryBlock = 4096

// memory is a device in memory that knows which of its blocks were written.
type memory struct {
	info Info
	// on, if set, is called before every operation, and its error returned.
	on func(ctx context.Context, op string, off, n int64) error

	mu      sync.RWMutex
	data    []byte
	used    []bool // by block
	flushes int
}

func newMemory(size int64) *memory {
	return &memory{
		info: Info{Size: size, Description: "memory"},
		data: make([]byte, size),
		used: make([]bool, (size+memoryBlock-1)/memoryBlock),
	}
}

// handle is an open memory.
type handle struct {
	*memory
	shelf  *shelf
	calls  atomic.Int64
	closed atomic.Bool
}

func (h *handle) begin(ctx context.Context, op string, off, n int64, writes bool) (end func(), err error) {
	h.calls.Add(1)
	tb := h.shelf.tb
	if h.closed.Load() {
		tb.Errorf("%s after Close", op)
	}
	if op != "flush" && (off < 0 || n <= 0 || off > h.info.Size-n) {
		tb.Errorf("%s of %d bytes at %d of %d", op, n, off, h.info.Size)
	}
	if writes && h.info.ReadOnly {
		tb.Errorf("%s on a read-only device", op)
	}
	if h.on != nil {
		err = h.on(ctx, op, off, n)
	}
	return func() { h.calls.Add(-1) }, err
}

func (h *handle) Info() Info { return h.info }

func (h *handle) ReadAt(ctx context.Context, p []byte, off int64) error {
	end, err := h.begin(ctx, "read", off, int64(len(p)), false)
	defer end()
	if err != nil {
		return err
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	copy(p, h.data[off:])
	return nil
}

func (h *handle) WriteAt(ctx context.Context, p []byte, off int64) error {
	end, err := h.begin(ctx, "write", off, int64(len(p)), true)
	defer end()
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	copy(h.data[off:], p)
	h.use(off, int64(len(p)))
	return nil
}

func (m *memory) use(off, n int64) {
	for b := off / memoryBlock; b*memoryBlock < off+n; b++ {
		m.used[b] = true
	}
}

func (h *handle) Flush(ctx context.Context) error {
	end, err := h.begin(ctx, "flush", 0, 0, false)
	defer end()
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.flushes++
	return nil
}

func (h *handle) Discard(ctx context.Context, off, n int64) error {
	end, err := h.begin(ctx, "discard", off, n, true)
	defer end()
	if err != nil {
		return err
	}
	h.zero(off, n, true)
	return nil
}

func (h *handle) Zero(ctx context.Context, off, n int64, punch bool) error {
	op := "zero"
	if punch {
		op = "punch"
	}
	end, err := h.begin(ctx, op, off, n, true)
	defer end()
	if err != nil {
		return err
	}
	h.zero(off, n, punch)
	return nil
}

func (m *memory) zero(off, n int64, punch bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	if !punch {
		m.use(off, n)
		return
	}
	for b := (off + memoryBlock - 1) / memoryBlock; (b+1)*memoryBlock <= off+n; b++ {
		m.used[b] = false
	}
}

func (h *handle) Extents(ctx context.Context, off, n int64) ([]Extent, error) {
	end, err := h.begin(ctx, "extents", off, n, false)
	defer end()
	if err != nil {
		return nil, err
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	var extents []Extent // one per block: merging is the server's work
	for off, last := off, off+n; off < last; {
		next := min((off/memoryBlock+1)*memoryBlock, last)
		hole := !h.used[off/memoryBlock]
		extents = append(extents, Extent{Length: next - off, Hole: hole, Zero: hole})
		off = next
	}
	return extents, nil
}

func (h *handle) Close() error {
	if h.closed.Swap(true) {
		h.shelf.tb.Error("second Close")
	}
	if n := h.calls.Load(); n != 0 {
		h.shelf.tb.Errorf("Close during %d calls", n)
	}
	h.shelf.closed.Add(1)
	return nil
}
