package volume

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

func anyLayout(t *rapid.T) chunk.Layout {
	if rapid.Bool().Draw(t, "plain") {
		return chunk.Layout{}
	}
	return chunk.Layout{
		Unit:  uint64(chunk.BlockSize) << rapid.IntRange(0, 12).Draw(t, "unit"),
		Count: rapid.Uint64Range(1, chunk.MaxStripes).Draw(t, "count"),
	}
}

// Every byte of a request is in exactly one piece, at its place, and pieces
// are of the form that each kind of request needs.
func TestSplitCoversEveryByteOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		layout := anyLayout(t)
		off := rapid.Uint64Range(0, 100*chunk.Size).Draw(t, "off")
		end := off + rapid.Uint64Range(0, 5*chunk.MaxOp).Draw(t, "n")
		for name, pieces := range map[string][]piece{
			"read":   slices.Collect(split(layout, off, off, end, chunk.MaxOp)),
			"change": slices.Collect(splitChange(layout, off, end)),
		} {
			at := off
			for _, p := range pieces {
				index, in, run := layout.Locate(at)
				first, n := p.blocks()
				switch {
				case p.at != at-off:
					t.Fatalf("%s: piece %+v begins at %d", name, p, at-off)
				case p.index != index || p.in != in || p.n > run || p.n == 0:
					t.Fatalf("%s: piece %+v where %d, %d, %d is", name, p, index, in, run)
				case !chunk.InChunk(first, n, chunk.MaxOp):
					t.Fatalf("%s: piece %+v has blocks %d+%d", name, p, first, n)
				case name == "change" && !p.whole() && n != chunk.BlockSize:
					t.Fatalf("%s: piece %+v is neither whole nor within a block", name, p)
				}
				at += uint64(p.n)
			}
			if at != end {
				t.Fatalf("%s: pieces end at %d, not %d", name, at, end)
			}
		}
	})
}

// A range to zero is covered by the same bytes of chunks as when it is
// written, in no more pieces than its chunks and its two ends need.
func TestSplitZeroJoinsWhatTouches(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		layout := anyLayout(t)
		off := rapid.Uint64Range(0, 3*chunk.Size).Draw(t, "off")
		end := off + rapid.Uint64Range(0, 3*chunk.Size).Draw(t, "n")
		type place struct{ index, sector uint32 }
		covered := make(map[place]uint32)
		count := 0
		for p := range splitZero(layout, off, end) {
			count++
			if first, n := p.blocks(); !chunk.InChunk(first, n, chunk.Size) || !p.whole() && n != chunk.BlockSize {
				t.Fatalf("piece %+v", p)
			}
			for in := p.in; in < p.in+p.n; {
				n := min(chunk.BlockSize-in%chunk.BlockSize, p.in+p.n-in)
				covered[place{p.index, in / chunk.BlockSize}] += n
				in += n
			}
		}
		chunks := make(map[uint32]bool)
		for p := range split(layout, off, off, end, chunk.BlockSize) {
			at := place{p.index, p.in / chunk.BlockSize}
			chunks[p.index] = true
			if covered[at] != p.n {
				t.Fatalf("block %+v: %d bytes are zeroed, not %d", at, covered[at], p.n)
			}
			delete(covered, at)
		}
		if len(covered) != 0 {
			t.Fatalf("zeroed besides: %v", covered)
		}
		if count > len(chunks)+2 {
			t.Fatalf("%d pieces for %d chunks", count, len(chunks))
		}
	})
}

func TestInner(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ off, end, lo, hi uint64 }{
		{0, 0, 0, 0}, {0, 4096, 0, 4096}, {1, 4096, 4096, 4096}, {1, 4095, 4095, 4095},
		{4095, 8193, 4096, 8192}, {4095, 8191, 4096, 4096}, {0, 4095, 0, 0},
	} {
		if lo, hi := inner(c.off, c.end); lo != c.lo || hi != c.hi {
			t.Errorf("inner(%d, %d) = %d, %d, want %d, %d", c.off, c.end, lo, hi, c.lo, c.hi)
		}
	}
}

func TestEachWorksOnAllButNotOnTooManyAtOnce(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 2, width, 10 * width} {
		var now, most, total atomic.Int32
		err := each(slices.Values(make([]piece, n)), func(piece) error {
			total.Add(1)
			if at := now.Add(1); at > most.Load() {
				most.Store(at)
			}
			defer now.Add(-1)
			return nil
		})
		if err != nil || int(total.Load()) != n || most.Load() > width || now.Load() != 0 {
			t.Errorf("%d pieces: %d done, %d at once, %d still running, %v", n, total.Load(), most.Load(), now.Load(), err)
		}
	}
}

func TestEachStopsAtAnError(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	var total atomic.Int32
	err := each(slices.Values(make([]piece, 1000)), func(piece) error {
		if total.Add(1) == 3 {
			return boom
		}
		return nil
	})
	if err != boom || total.Load() > 3+2*width {
		t.Errorf("%v after %d pieces", err, total.Load())
	}
}
