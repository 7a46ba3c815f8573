package volume

import (
	"iter"
	"slices"
	"sync"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// width bounds the pieces of one request that are under way at once.
const width = 8

// piece is a part of a request that lies in one chunk, without a gap.
type piece struct {
	index uint32 // of the chunk
	in, n uint32 // bytes into the chunk and length
	at    uint64 // bytes into the request
}

// whole reports whether the piece is made of whole blocks.
func (p piece) whole() bool { return p.in%chunk.BlockSize == 0 && p.n%chunk.BlockSize == 0 }

// blocks returns the smallest run of whole blocks that holds the piece.
func (p piece) blocks() (off, n uint32) {
	off = p.in - p.in%chunk.BlockSize
	end := p.in + p.n
	return off, (end+chunk.BlockSize-1)/chunk.BlockSize*chunk.BlockSize - off
}

// split cuts the bytes from off to end of a volume into pieces, none of which
// touches more blocks than limit bytes hold. A piece's place in the request
// counts from start.
func split(l chunk.Layout, start, off, end uint64, limit uint32) iter.Seq[piece] {
	return func(yield func(piece) bool) {
		for off < end {
			index, in, run := l.Locate(off)
			n := min(uint64(run), uint64(limit-in%chunk.BlockSize), end-off)
			if !yield(piece{index, in, uint32(n), off - start}) {
				return
			}
			off += n
		}
	}
}

// inner returns the whole blocks within off to end: from lo to hi, which are
// equal if there are none.
func inner(off, end uint64) (lo, hi uint64) {
	lo = (off + chunk.BlockSize - 1) / chunk.BlockSize * chunk.BlockSize
	hi = end / chunk.BlockSize * chunk.BlockSize
	if lo >= hi {
		return min(lo, end), min(lo, end)
	}
	return lo, hi
}

// splitChange is split for a change: each piece is either made of whole
// blocks or lies within one.
func splitChange(l chunk.Layout, off, end uint64) iter.Seq[piece] {
	lo, hi := inner(off, end)
	return concat(
		split(l, off, off, lo, chunk.BlockSize),
		split(l, off, lo, hi, chunk.MaxOp),
		split(l, off, hi, end, chunk.BlockSize))
}

// splitZero is splitChange without a limit for whole blocks, and with pieces
// joined where they touch: stripes are dealt out to chunks in turn, but what
// a chunk gets of a range lies in it side by side.
func splitZero(l chunk.Layout, off, end uint64) iter.Seq[piece] {
	lo, hi := inner(off, end)
	return concat(
		split(l, off, off, lo, chunk.BlockSize),
		join(split(l, off, lo, hi, chunk.Size)),
		split(l, off, hi, end, chunk.BlockSize))
}

func concat(seqs ...iter.Seq[piece]) iter.Seq[piece] {
	return func(yield func(piece) bool) {
		for _, seq := range seqs {
			for p := range seq {
				if !yield(p) {
					return
				}
			}
		}
	}
}

// join unites the pieces of a chunk that follow each other in it. What place
// in the request a piece had is lost.
func join(seq iter.Seq[piece]) iter.Seq[piece] {
	return func(yield func(piece) bool) {
		var open []piece // at most one of a chunk
		for p := range seq {
			i := slices.IndexFunc(open, func(o piece) bool { return o.index == p.index })
			switch {
			case i >= 0 && open[i].in+open[i].n == p.in:
				open[i].n += p.n
				continue
			case i >= 0:
				if !yield(open[i]) {
					return
				}
				open[i] = p
			case len(open) == chunk.MaxStripes:
				if !yield(open[0]) {
					return
				}
				open = append(open[1:], p)
			default:
				open = append(open, p)
			}
		}
		for _, p := range open {
			if !yield(p) {
				return
			}
		}
	}
}

// each works on pieces, on up to width at once, and waits for all that it has
// begun. After an error it begins no more; it returns the first.
func each(pieces iter.Seq[piece], work func(piece) error) error {
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		failure error
		slots   = make(chan struct{}, width-1)
		latest  piece // not begun yet: the last one is worked on here
		any     bool
	)
	note := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if failure == nil {
			failure = err
		}
	}
	failed := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return failure != nil
	}
	for p := range pieces {
		if any {
			slots <- struct{}{}
			if failed() {
				break
			}
			begun := latest
			wg.Go(func() {
				defer func() { <-slots }()
				note(work(begun))
			})
		}
		latest, any = p, true
	}
	if any && !failed() {
		note(work(latest))
	}
	wg.Wait()
	return failure
}
