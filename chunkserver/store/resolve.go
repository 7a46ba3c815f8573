package store

import (
	"math"
	"math/bits"
	"slices"
	"sync/atomic"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// A resolution tells for each block of a chunk in a view which layer it comes
// from, and its checksum. It is built once, by walking down the layers and the
// view's parents, and then kept right by whoever changes a layer: reading costs
// the same however deep the view is. The shard's mu guards it.
type resolution struct {
	key     resolutionKey
	view    *chunk.View
	columns []*column            // of the view and its parents, downwards
	layers  []*layer             // those that blocks come from, and some that they came from
	at      [chunk.Blocks]uint16 // 0: zeros; else index into layers, plus 1
	sums    [chunk.Blocks]uint32 // as the layer has them: looking there would wait for memory a second time
	used    atomic.Bool          // since it was last considered for dropping
}

type resolutionKey struct {
	view  string // chunk.View.Key
	index uint32
}

const resolutionSize = (2+4)*chunk.Blocks + 512 // bytes, nearly

// resolution returns the resolution of a chunk in a view. mu must be held for
// writing.
func (s *shard) resolution(view *chunk.View, index uint32) (*resolution, error) {
	key := resolutionKey{view.Key(), index}
	if r := s.resolutions[key]; r != nil {
		r.used.Store(true)
		return r, nil
	}
	r := &resolution{key: key, view: view}
	unresolved := allBlocks()
	for v := view; v != nil; v = v.Parent() {
		c, err := s.column(chunk.Ref{Volume: v.Volume(), Index: index})
		if err != nil {
			return nil, err
		}
		r.columns = append(r.columns, c)
		r.descend(c, v.Lineage(), unresolved)
	}
	for _, c := range r.columns {
		c.dependents[r] = struct{}{}
	}
	r.used.Store(true)
	s.resolutions[key] = r
	s.grow(resolutionSize)
	s.trim()
	return r, nil
}

// descend resolves what the layers of c have of the blocks in unresolved, and
// takes that out of it.
func (r *resolution) descend(c *column, lineage chunk.Lineage, unresolved *blockSet) {
	eachSeen(c, lineage, func(l *layer) {
		var number uint16
		l.each(func(i int, p *part) {
			for m := p.data & unresolved[i]; m != 0; m &= m - 1 {
				if number == 0 {
					number, _ = r.number(l)
				}
				in := bits.TrailingZeros64(m)
				r.at[i*partBlocks+in], r.sums[i*partBlocks+in] = number, p.sums[in]
			}
			unresolved[i] &^= p.has()
		})
	})
}

// eachSeen calls fn for the layers of c that the lineage sees, youngest first.
func eachSeen(c *column, lineage chunk.Lineage, fn func(*layer)) {
	for _, r := range slices.Backward(lineage) {
		i, found := c.find(r.To)
		if !found {
			i--
		}
		for ; i >= 0 && c.layers[i].id.seq >= r.From; i-- {
			fn(c.layers[i])
		}
	}
}

// number returns what stands for l in r.at. It reports false when the numbers
// have run out.
func (r *resolution) number(l *layer) (uint16, bool) {
	for i := len(r.layers) - 1; i >= 0; i-- {
		if r.layers[i] == l {
			return uint16(i + 1), true
		}
	}
	if len(r.layers) == math.MaxUint16 {
		return 0, false
	}
	r.layers = append(r.layers, l)
	return uint16(len(r.layers)), true
}

// update resolves n blocks anew after layer l of c has changed there. It
// reports false if r can't be kept.
func (r *resolution) update(c *column, l *layer, first, n int) bool {
	for i, v := 0, r.view; v != nil; i, v = i+1, v.Parent() {
		if r.columns[i] != c || !v.Lineage().Sees(l.id.seq) {
			continue
		}
		for b := first; b < first+n; b++ {
			if !r.resolve(b) {
				return false
			}
		}
		return true
	}
	return true
}

// resolve looks for one block from the top.
func (r *resolution) resolve(block int) bool {
	r.at[block] = 0
	for i, v := 0, r.view; v != nil; i, v = i+1, v.Parent() {
		c := r.columns[i]
		for j := len(c.layers) - 1; j >= 0; j-- {
			l := c.layers[j]
			data, zero, sum := l.state(block)
			if !data && !zero || !v.Lineage().Sees(l.id.seq) {
				continue
			}
			if zero {
				return true
			}
			number, ok := r.number(l)
			r.at[block], r.sums[block] = number, sum
			return ok
		}
	}
	return true
}

// source returns the layer that a block comes from; nil for zeros.
func (r *resolution) source(block int) *layer {
	if at := r.at[block]; at != 0 {
		return r.layers[at-1]
	}
	return nil
}
