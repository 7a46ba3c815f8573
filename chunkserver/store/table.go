package store

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// table is the metadata in memory: columns, loaded on demand, and the
// resolutions built from them. All that a view of a chunk reaches through has
// the same chunk index, so the table is cut into shards by index, and nothing
// ever needs two of them.
type table struct {
	limit  int64        // of bytes, for what could be dropped
	bytes  atomic.Int64 // Invariant: sum of those of the shards
	shards [shards]shard
}

const shards = 64

type shard struct {
	table *table
	load  func(chunk.Ref) ([]*layer, error) // from the database

	// io is held while files of layers are changed together with their
	// metadata. Readers don't take it, but for a second look at a block
	// whose checksum does not match. Before mu.
	io sync.Mutex

	mu          sync.RWMutex
	columns     map[chunk.Ref]*column
	resolutions map[resolutionKey]*resolution
	dirty       map[*column]struct{} // Invariant: columns with layers that are dirty
	bytes       int64                // Invariant: sum of the sizes of columns and resolutions
}

// A column is all layers of one chunk of a volume.
type column struct {
	ref    chunk.Ref
	layers []*layer // ascending by seq; some may be empty until the next checkpoint
	// Invariant: all resolutions that depend on this column, so that
	// whoever changes it keeps them right.
	dependents map[*resolution]struct{}
	saving     bool        // the database does not have it yet
	used       atomic.Bool // since it was last considered for dropping
	size       int64       // as counted in shard.bytes
}

// Estimates of what things take in memory, in bytes.
const (
	columnSize = 256
	layerSize  = 640
	partSize   = 288
)

func newTable(limit int64, load func(chunk.Ref) ([]*layer, error)) *table {
	t := &table{limit: limit}
	for i := range t.shards {
		s := &t.shards[i]
		s.table, s.load = t, load
		s.columns = make(map[chunk.Ref]*column)
		s.resolutions = make(map[resolutionKey]*resolution)
		s.dirty = make(map[*column]struct{})
	}
	return t
}

func (t *table) shard(index uint32) *shard { return &t.shards[index%shards] }

// column returns the column of ref, loaded if need be. mu must be held for
// writing.
func (s *shard) column(ref chunk.Ref) (*column, error) {
	if c := s.columns[ref]; c != nil {
		c.used.Store(true)
		return c, nil
	}
	layers, err := s.load(ref)
	if err != nil {
		return nil, err
	}
	c := &column{ref: ref, layers: layers, dependents: make(map[*resolution]struct{})}
	c.used.Store(true)
	s.columns[ref] = c
	s.count(c, columnSize)
	for _, l := range layers {
		s.measure(c, l)
	}
	return c, nil
}

// layer returns the layer of seq, or nil.
func (c *column) layer(seq chunk.Seq) *layer {
	if i, ok := c.find(seq); ok {
		return c.layers[i]
	}
	return nil
}

// makeLayer returns the layer of seq, which is added if there is none.
func (c *column) makeLayer(seq chunk.Seq) *layer {
	i, ok := c.find(seq)
	if !ok {
		c.layers = slices.Insert(c.layers, i, &layer{id: layerID{c.ref, seq}})
	}
	return c.layers[i]
}

func (c *column) find(seq chunk.Seq) (int, bool) {
	if n := len(c.layers); n > 0 && c.layers[n-1].id.seq == seq {
		return n - 1, true // as nearly always
	}
	return slices.BinarySearchFunc(c.layers, seq, func(l *layer, seq chunk.Seq) int {
		switch {
		case l.id.seq < seq:
			return -1
		case l.id.seq > seq:
			return 1
		}
		return 0
	})
}

// holdsLayers reports whether any block of the chunk is there.
func (c *column) holdsLayers() bool {
	return slices.ContainsFunc(c.layers, func(l *layer) bool { return !l.empty() })
}

// touched keeps the resolutions right after n blocks of layer l have changed.
// mu must be held for writing.
func (s *shard) touched(c *column, l *layer, first, n int) {
	for r := range c.dependents {
		if !r.update(c, l, first, n) {
			s.drop(r)
		}
	}
	s.changed(c, l)
}

// changed notes that layer l of c is to be saved. mu must be held for writing.
func (s *shard) changed(c *column, l *layer) {
	if l.dirty != 0 {
		s.dirty[c] = struct{}{}
	}
	s.measure(c, l)
}

// measure counts anew what layer l of c takes. mu must be held for writing.
func (s *shard) measure(c *column, l *layer) {
	size := int64(layerSize + bits.OnesCount64(l.kept)*partSize)
	s.count(c, size-l.size)
	l.size = size
}

// count notes that c has grown by n bytes. mu must be held for writing.
func (s *shard) count(c *column, n int64) {
	c.size += n
	s.grow(n)
}

func (s *shard) grow(n int64) {
	s.bytes += n
	s.table.bytes.Add(n)
}

// forgetEmpty takes the layers without blocks out of c. mu must be held for
// writing.
func (s *shard) forgetEmpty(c *column) {
	c.layers = slices.DeleteFunc(c.layers, func(l *layer) bool {
		if !l.empty() {
			return false
		}
		s.count(c, -l.size)
		return true
	})
}

// trim drops what was not used lately while the table is over its limit, and
// this shard has more than its share. mu must be held for writing. What the
// database lacks stays.
func (s *shard) trim() {
	t := s.table
	if t.bytes.Load() <= t.limit {
		return
	}
	over := func() bool {
		// Leave some room, so that this is not done for each new column.
		return t.bytes.Load() > t.limit-t.limit/8 && s.bytes > t.limit/shards
	}
	for range 2 {
		for _, r := range s.resolutions {
			if !over() {
				return
			}
			if !r.used.Swap(false) {
				s.drop(r)
			}
		}
		for ref, c := range s.columns {
			if !over() {
				return
			}
			_, dirty := s.dirty[c]
			if len(c.dependents) == 0 && !dirty && !c.saving && !c.used.Swap(false) {
				delete(s.columns, ref)
				s.grow(-c.size)
			}
		}
	}
}

// drop forgets a resolution. mu must be held for writing.
func (s *shard) drop(r *resolution) {
	if s.resolutions[r.key] != r {
		return
	}
	delete(s.resolutions, r.key)
	s.grow(-resolutionSize)
	for _, c := range r.columns {
		delete(c.dependents, r)
	}
}

// dropDependents forgets all resolutions that depend on c. mu must be held
// for writing.
func (s *shard) dropDependents(c *column) {
	for r := range c.dependents {
		s.drop(r)
	}
}
