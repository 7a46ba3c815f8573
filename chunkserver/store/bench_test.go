package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Times mean nothing on a shared machine. So each benchmark does the same work
// on something plain, in turns with the store, and reports the median ratio of
// neighbouring turns, as x-of-<what it is compared with>: 1 is as fast as
// that, 2 twice as fast; and as low and high what nine of ten turns exceed and
// stay under. "goal" is the least ratio that is aimed at, "limit" the most.
// "make bench" puts them all into one table.

const benchChunks = 16

// full returns options as in production, but for less to begin with.
func full() Options { return Options{SegmentBytes: 32 << 20, ReserveBytes: 1 << 20} }

// compared measures own beside plain: each call does one turn, which takes a
// few milliseconds, of ops operations on n bytes.
type compared struct {
	with       string // names plain
	goal       float64
	ops, bytes int
	plain, own func(turn int) error
}

// run takes b.N turns of each.
func (c compared) run(b *testing.B) {
	b.Helper()
	b.ReportAllocs()
	for _, fn := range []func(int) error{c.plain, c.own} {
		must(b, fn(0)) // once for the caches
	}
	ratios := make([]float64, b.N)
	var total time.Duration
	b.ResetTimer()
	for turn := range b.N {
		plain := elapsed(b, c.plain, turn)
		own := elapsed(b, c.own, turn)
		ratios[turn] = plain.Seconds() / own.Seconds()
		total += own
	}
	b.StopTimer()
	slices.Sort(ratios)
	each := float64(total.Nanoseconds()) / float64(b.N*c.ops)
	b.ReportMetric(each, "ns/op")
	b.ReportMetric(float64(c.bytes)/each*1e3, "MB/s")
	b.ReportMetric(ratios[b.N/2], "x-of-"+c.with)
	b.ReportMetric(ratios[b.N/10], "low")
	b.ReportMetric(ratios[b.N-1-b.N/10], "high")
	if c.goal > 0 {
		b.ReportMetric(c.goal, "goal")
	}
}

func elapsed(b *testing.B, fn func(int) error, turn int) time.Duration {
	start := time.Now()
	if err := fn(turn); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// plainFile makes a file of size bytes, all of them written.
func plainFile(b *testing.B, size int64) osFile {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "plain"))
	must(b, err)
	b.Cleanup(func() { f.Close() })
	block := filled(256, 9)
	for off := int64(0); off < size; off += int64(len(block)) {
		must(b, osFile{f}.WriteAt(off, block))
	}
	must(b, osFile{f}.Sync())
	return osFile{f}
}

// fill writes n chunks of volume at seq.
func fill(b *testing.B, c *client, volume chunk.VolumeID, seq chunk.Seq, n int) {
	b.Helper()
	data := filled(chunk.MaxOp/chunk.BlockSize, 7)
	for index := range uint32(n) {
		for block := 0; block < chunk.Blocks; block += chunk.MaxOp / chunk.BlockSize {
			c.must(b, writeOp(chunk.Ref{Volume: volume, Index: index}, seq, block, data))
		}
	}
	c.Committed(0, c.lsn)
	must(b, c.Checkpoint(context.Background()))
}

func filledClient(b *testing.B) *client {
	b.Helper()
	c := &client{Store: mustOpen(b, b.TempDir(), full())}
	fill(b, c, 1, 1, benchChunks)
	return c
}

// somewhere is the i-th of a sequence of random blocks of volume 1.
func somewhere(i int) (ref chunk.Ref, block int) {
	h := uint64(i)*0x9e3779b97f4a7c15 + 1
	h ^= h >> 31
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 29
	return chunk.Ref{Volume: 1, Index: uint32(h % benchChunks)}, int(h >> 20 % chunk.Blocks)
}

// offset is where the block lies in a plain file that holds all chunks.
func offset(ref chunk.Ref, block int) int64 {
	return int64(ref.Index)*chunk.Size + int64(block)*chunk.BlockSize
}

// times makes a turn of n operations.
func times(n int, fn func(i int) error) func(turn int) error {
	return func(turn int) error {
		for i := turn * n; i < (turn+1)*n; i++ {
			if err := fn(i); err != nil {
				return err
			}
		}
		return nil
	}
}

// writeSync overwrites one block of f durably.
func writeSync(f osFile, data []byte) func(i int) error {
	return func(i int) error {
		if err := f.WriteAt(offset(somewhere(i)), data); err != nil {
			return err
		}
		return f.Sync()
	}
}

// writeAt writes one block of the store durably, in the layer that seq says.
func (c *client) writeAt(volume chunk.VolumeID, seq func(i int) chunk.Seq, data []byte) func(i int) error {
	return func(i int) error {
		ref, block := somewhere(i)
		ref.Volume = volume
		if err := c.do(writeOp(ref, seq(i), block, data)); err != nil {
			return err
		}
		c.Committed(0, c.lsn)
		return nil
	}
}

func always(seq chunk.Seq) func(int) chunk.Seq { return func(int) chunk.Seq { return seq } }

func BenchmarkWrite(b *testing.B) {
	data := filled(1, 7)
	b.Run("4 KiB random, durable, QD1", func(b *testing.B) {
		c, f := filledClient(b), plainFile(b, benchChunks*chunk.Size)
		compared{
			with: "pwrite+fdatasync", goal: 0.8, ops: 32, bytes: chunk.BlockSize,
			plain: times(32, writeSync(f, data)),
			own:   times(32, c.writeAt(1, always(1), data)),
		}.run(b)
	})
	b.Run("4 KiB random, durable, QD32", func(b *testing.B) {
		c := filledClient(b)
		const n = 512
		alone := times(32, c.writeAt(1, always(1), data))
		compared{
			with: "QD1", goal: 10, ops: n, bytes: chunk.BlockSize,
			plain: func(turn int) error { // as long as n would take
				start := time.Now()
				err := alone(turn)
				time.Sleep(time.Since(start) * (n/32 - 1))
				return err
			},
			own: func(turn int) error { return c.writeDeep(turn*n, n, 32, data) },
		}.run(b)
	})
	for _, first := range []struct {
		after  string
		volume chunk.VolumeID
		depth  int // snapshots before
	}{
		{"4 KiB, first to a block after a snapshot", 1, 1},
		{"4 KiB, first to a block after 250 snapshots", 1, 250},
		{"4 KiB, first to a block of a fresh clone", 2, 1},
	} {
		b.Run(first.after, func(b *testing.B) {
			c := filledClient(b)
			fill(b, c, 3, 1, benchChunks)
			for seq := 2; seq <= first.depth; seq++ {
				for index := range uint32(benchChunks) {
					c.must(b, writeOp(chunk.Ref{Volume: 1, Index: index}, chunk.Seq(seq), seq*3, data))
				}
			}
			const n = 32
			// There is a snapshot before a block could be met again.
			next := func(i int) chunk.Seq { return chunk.Seq(first.depth + 1 + i/(benchChunks*chunk.Blocks/4)) }
			compared{
				with: "overwrite", goal: 0.9, ops: n, bytes: chunk.BlockSize,
				plain: times(n, c.writeAt(3, always(1), data)),
				own:   times(n, c.writeAt(first.volume, next, data)),
			}.run(b)
		})
	}
	b.Run("1 MiB sequential, fresh, fdatasync at the end", benchmarkFill)
}

// writeDeep writes n blocks with depth of them under way at a time.
func (c *client) writeDeep(first, n, depth int, data []byte) error {
	slots := make(chan error, depth)
	for range depth {
		slots <- nil
	}
	for i := range n {
		if err := <-slots; err != nil {
			return err
		}
		ref, block := somewhere(first + i)
		c.lsn++
		e := chunk.Entry{LSN: c.lsn, Commit: c.lsn - 1, Op: writeOp(ref, 1, block, data)}
		if err := c.Append(context.Background(), []chunk.Entry{e}, func(err error) { slots <- err }); err != nil {
			return err
		}
	}
	for range depth {
		if err := <-slots; err != nil {
			return err
		}
	}
	return nil
}

// benchmarkFill writes fresh data, 1 MiB at a time, and makes it durable at
// the end of each turn.
func benchmarkFill(b *testing.B) {
	c := &client{Store: mustOpen(b, b.TempDir(), full())}
	f := plainFile(b, 0)
	data := filled(256, 7)
	const n = 64
	compared{
		with: "pwrite", goal: 0.7, ops: n, bytes: len(data),
		plain: func(turn int) error {
			for i := turn * n; i < (turn+1)*n; i++ {
				if err := f.WriteAt(int64(i)*int64(len(data)), data); err != nil {
					return err
				}
			}
			return f.Sync()
		},
		own: func(turn int) error {
			done := make(chan error, n)
			for i := turn * n; i < (turn+1)*n; i++ {
				c.lsn++
				op := writeOp(chunk.Ref{Volume: 1, Index: uint32(i / 16)}, 1, i%16*256, data)
				e := chunk.Entry{LSN: c.lsn, Commit: c.lsn - 1, Op: op}
				if err := c.Append(context.Background(), []chunk.Entry{e}, func(err error) { done <- err }); err != nil {
					return err
				}
			}
			for range n {
				if err := <-done; err != nil {
					return err
				}
			}
			return nil
		},
	}.run(b)
}

// readAt reads one block of the first chunks as view shows them.
func (c *client) readAt(view *chunk.View, chunks uint32, p []byte) func(i int) error {
	return func(i int) error {
		ref, block := somewhere(i)
		ref.Volume = view.Volume()
		ref.Index %= chunks
		return c.ReadAt(view, ref, p, uint32(block*chunk.BlockSize))
	}
}

func BenchmarkRead(b *testing.B) {
	p := make([]byte, chunk.BlockSize)
	const n = 1024
	b.Run("4 KiB random, cached", func(b *testing.B) {
		c, f := filledClient(b), plainFile(b, benchChunks*chunk.Size)
		compared{
			with: "pread", goal: 0.7, ops: n, bytes: len(p),
			plain: times(n, func(i int) error { return f.ReadAt(p, offset(somewhere(i))) }),
			own:   times(n, c.readAt(head(1), benchChunks, p)),
		}.run(b)
	})
	b.Run("4 KiB random, pread and checksum only", func(b *testing.B) {
		f, g := plainFile(b, benchChunks*chunk.Size), plainFile(b, benchChunks*chunk.Size)
		var sum uint32
		compared{
			with: "pread", ops: n, bytes: len(p),
			plain: times(n, func(i int) error { return f.ReadAt(p, offset(somewhere(i))) }),
			own: times(n, func(i int) error {
				err := g.ReadAt(p, offset(somewhere(i)))
				sum ^= chunk.Checksum(p)
				return err
			}),
		}.run(b)
	})
	// At a depth of 1000 the file system shows: a quarter of the blocks lie in
	// 4000 files of one block each, and reading from as many plain files is
	// slower than from one by nearly as much.
	for _, depth := range []int{64, 1000} {
		goal := 0.9
		if depth == 1000 {
			goal = 0
		}
		b.Run(fmt.Sprintf("4 KiB random, %d snapshots deep", depth), func(b *testing.B) {
			const chunks = 4 // as many layers as there may be open files, nearly
			c := filledClient(b)
			fill(b, c, 2, 1, chunks)
			for seq := 2; seq <= depth; seq++ {
				for index := range uint32(chunks) {
					c.must(b, writeOp(chunk.Ref{Volume: 2, Index: index}, chunk.Seq(seq), seq*3, filled(1, 7)))
				}
			}
			compared{
				with: "depth-1", goal: goal, ops: n, bytes: len(p),
				plain: times(n, c.readAt(head(1), chunks, p)),
				own:   times(n, c.readAt(head(2), chunks, p)),
			}.run(b)
		})
	}
	for _, depth := range []int{16, 32} {
		b.Run(fmt.Sprintf("4 KiB random, %d clones deep", depth), func(b *testing.B) {
			c := filledClient(b)
			fill(b, c, 2, 1, benchChunks)
			v := head(2)
			for id := 3; id < 2+depth; id++ {
				parent := chunk.NewView(v.Volume(), v.Lineage().Freeze(1), v.Parent())
				v = chunk.NewView(chunk.VolumeID(id), chunk.NewLineage(), parent)
				for index := range uint32(benchChunks) {
					c.must(b, writeOp(chunk.Ref{Volume: v.Volume(), Index: index}, 1, id*3, filled(1, 7)))
				}
			}
			compared{
				with: "depth-1", goal: 0.9, ops: n, bytes: len(p),
				plain: times(n, c.readAt(head(1), benchChunks, p)),
				own:   times(n, c.readAt(v, benchChunks, p)),
			}.run(b)
		})
	}
	for _, cold := range []bool{false, true} {
		b.Run("1 MiB sequential, "+map[bool]string{false: "cached", true: "from disk"}[cold], func(b *testing.B) {
			benchmarkReadSequential(b, cold)
		})
	}
}

// benchmarkReadSequential reads one chunk per turn.
func benchmarkReadSequential(b *testing.B, cold bool) {
	c, f, view := filledClient(b), plainFile(b, benchChunks*chunk.Size), head(1)
	p := make([]byte, 1<<20)
	compared{
		with: "pread", goal: 0.9, ops: chunk.Size / len(p), bytes: len(p),
		plain: func(turn int) error {
			base := int64(turn%benchChunks) * chunk.Size
			if cold {
				f.Uncache(base, chunk.Size)
			}
			for off := int64(0); off < chunk.Size; off += int64(len(p)) {
				if err := f.ReadAt(p, base+off); err != nil {
					return err
				}
			}
			return nil
		},
		own: func(turn int) error {
			ref := chunk.Ref{Volume: 1, Index: uint32(turn % benchChunks)}
			if cold {
				file, err := c.files.reading(layerID{ref, 1})
				if err != nil {
					return err
				}
				file.Uncache(0, chunk.Size)
				c.files.release(file)
			}
			for off := 0; off < chunk.Size; off += len(p) {
				if err := c.ReadAt(view, ref, p, uint32(off)); err != nil {
					return err
				}
			}
			return nil
		},
	}.run(b)
}

// hollow makes a store in dir whose database knows n chunks of volume 1 with so
// many full layers each, without the blocks.
func hollow(b *testing.B, dir string, n uint32, layers chunk.Seq) {
	b.Helper()
	s := mustOpen(b, dir, full())
	c := s.cut()
	var l layer
	p := &part{data: 1<<64 - 1}
	for i := range parts {
		l.restore(i, p)
	}
	for index := range n {
		for seq := range layers {
			id := layerID{chunk.Ref{Volume: 1, Index: index}, seq + 1}
			c.layers = append(c.layers, savedLayer{id: id, kept: l.kept, sum: l.sum})
			for i := range parts {
				c.parts = append(c.parts, savedPart{id, i, p})
			}
		}
		if len(c.layers) >= 1024 || index == n-1 {
			must(b, s.meta.save(c))
			c.parts, c.layers = c.parts[:0], c.layers[:0]
		}
	}
	must(b, s.Close())
}

// BenchmarkStore measures what must grow neither with the data nor with the
// snapshots. Here the ratio is to stay below a limit.
func BenchmarkStore(b *testing.B) {
	shared := b    // outlives the benchmarks below
	var dir string // of a store with 1 TiB of layers
	b.Run("start with 1 TiB of layers", func(b *testing.B) {
		if dir == "" {
			dir = shared.TempDir()
			hollow(b, dir, 1<<40/chunk.Size, 1)
		}
		b.ResetTimer()
		for range b.N {
			s, err := Open(dir, full())
			must(b, err)
			b.StopTimer()
			must(b, s.Close())
			b.StartTimer()
		}
		b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/5, "x-of-5-seconds")
		b.ReportMetric(1, "limit")
	})
	b.Run("start after kill -9 with 1 GiB of journal", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			dir := b.TempDir()
			leaveJournal(b, dir, 1<<30)
			b.StartTimer()
			s, err := Open(dir, startOptions)
			must(b, err)
			b.StopTimer()
			must(b, s.Close())
			must(b, os.RemoveAll(dir))
			b.StartTimer()
		}
		b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/10, "x-of-10-seconds")
		b.ReportMetric(1, "limit")
	})
	b.Run("memory after reading everywhere in 1 TiB", func(b *testing.B) {
		opts := full()
		opts.CacheBytes = 64 << 20
		s := mustOpen(b, dir, opts)
		empty := heap()
		for i := range b.N {
			_, err := s.Extents(head(1), chunk.Ref{Volume: 1, Index: uint32(i*7919) % (1 << 40 / chunk.Size)}, 0, chunk.Size)
			must(b, err)
		}
		b.ReportMetric(float64(heap()-empty)/float64(opts.CacheBytes), "x-of-cache-budget")
		b.ReportMetric(1.1, "limit")
		runtime.KeepAlive(s)
	})
	b.Run("purge of one of 1000 snapshots of a chunk", func(b *testing.B) {
		const n = 1000
		dir := b.TempDir()
		hollow(b, dir, 1, n)
		c := &client{Store: mustOpen(b, dir, full())}
		var views []*chunk.View
		for seq := chunk.Seq(1); seq <= n; seq++ {
			views = append(views, chunk.NewView(1, chunk.NewLineage().Freeze(seq), nil))
		}
		b.ResetTimer()
		for i := range b.N {
			c.must(b, chunk.Op{Kind: chunk.OpPurge, Ref: ref10, Views: views[1+i%(n/2):], UpTo: n})
		}
		b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/5e-3, "x-of-5-milliseconds")
		b.ReportMetric(1, "limit")
	})
}

// heap returns the number of bytes in use.
func heap() int64 {
	var m runtime.MemStats
	for range 2 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
