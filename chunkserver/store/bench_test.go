package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// The benchmarks do the same work on a plain file in the same run, and report
// the ratio as x-of-file: bigger is better, 1 is as fast as the file system.

const benchChunks = 16

// full returns options as in production, but for less to begin with.
func full() Options { return Options{SegmentBytes: 32 << 20, ReserveBytes: 1 << 20} }

func benchFile(b *testing.B, size int64) *os.File {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "plain"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	block := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(block)) {
		if _, err := f.WriteAt(block, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return f
}

// turn is the number of operations that are done here, then there.
const turn = 64

// versus runs own b.N times, and plain as often, in turns so that both meet
// the same disk.
func versus(b *testing.B, bytes int64, plain, own func(i int)) {
	b.Helper()
	b.SetBytes(bytes)
	var times [2]time.Duration
	b.ResetTimer()
	for done := 0; done < b.N; done += turn {
		n := min(turn, b.N-done)
		for which, fn := range []func(int){plain, own} {
			if which == 0 {
				b.StopTimer()
			}
			start := time.Now()
			for i := range n {
				fn(done + i)
			}
			times[which] += time.Since(start)
			if which == 0 {
				b.StartTimer()
			}
		}
	}
	b.StopTimer()
	b.ReportMetric(times[0].Seconds()/times[1].Seconds(), "x-of-file")
}

// fill writes n chunks of volume at seq, and returns who did.
func fill(b *testing.B, c *client, volume chunk.VolumeID, seq chunk.Seq, n int) {
	b.Helper()
	data := make([]byte, chunk.MaxOp)
	sums := chunk.Checksums(nil, data)
	for index := range n {
		for off := 0; off < chunk.Size; off += len(data) {
			op := chunk.Op{
				Kind: chunk.OpWrite, Ref: chunk.Ref{Volume: volume, Index: uint32(index)}, Token: chunk.Token{Attachment: 1, Seq: seq},
				Off: uint32(off), Len: uint32(len(data)), Data: data, Sums: sums,
			}
			c.must(b, op)
		}
	}
	c.Committed(0, c.lsn)
	if err := c.Checkpoint(context.Background()); err != nil {
		b.Fatal(err)
	}
}

func randomPlace(i int) (ref chunk.Ref, block int) {
	h := uint64(i)*0x9e3779b97f4a7c15 + 1
	h ^= h >> 31
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 29
	return chunk.Ref{Volume: 1, Index: uint32(h % benchChunks)}, int(h >> 20 % chunk.Blocks)
}

func BenchmarkWrite4K(b *testing.B) {
	c := &client{Store: mustOpen(b, b.TempDir(), full())}
	fill(b, c, 1, 1, benchChunks)
	f := benchFile(b, benchChunks*chunk.Size)
	data := filled(1, 7)
	versus(b, chunk.BlockSize,
		func(i int) {
			ref, block := randomPlace(i)
			must(b, writeAt(f, data, int64(ref.Index)*chunk.Size+int64(block)*chunk.BlockSize))
			must(b, fdatasync(f))
		},
		func(i int) {
			ref, block := randomPlace(i)
			c.must(b, writeOp(ref, 1, block, data))
			c.Committed(0, c.lsn)
		})
}

// BenchmarkWrite4KDepth32 reports how many times the throughput with one
// operation at a time is reached with 32, as x-of-depth-1.
func BenchmarkWrite4KDepth32(b *testing.B) {
	s := mustOpen(b, b.TempDir(), full())
	c := &client{Store: s}
	fill(b, c, 1, 1, benchChunks)
	data := filled(1, 7)
	run := func(depth, n int) time.Duration {
		start := time.Now()
		slots := make(chan struct{}, depth)
		var all sync.WaitGroup
		for i := range n {
			slots <- struct{}{}
			ref, block := randomPlace(i)
			c.lsn++
			all.Add(1)
			e := chunk.Entry{LSN: c.lsn, Commit: c.lsn - 1, Op: writeOp(ref, 1, block, data)}
			err := s.Append(context.Background(), []chunk.Entry{e}, func(err error) {
				must(b, err)
				<-slots
				all.Done()
			})
			must(b, err)
		}
		all.Wait()
		return time.Since(start)
	}
	b.SetBytes(chunk.BlockSize)
	alone := run(1, 200).Seconds() / 200
	b.ResetTimer()
	each := run(32, b.N).Seconds() / float64(b.N)
	b.StopTimer()
	b.ReportMetric(alone/each, "x-of-depth-1")
}

func BenchmarkRead4K(b *testing.B) {
	for _, depth := range []int{1, 64} {
		b.Run(fmt.Sprintf("snapshots=%d", depth), func(b *testing.B) {
			c := &client{Store: mustOpen(b, b.TempDir(), full())}
			fill(b, c, 1, 1, benchChunks)
			for seq := 2; seq <= depth; seq++ {
				for index := range uint32(benchChunks) {
					c.must(b, writeOp(chunk.Ref{Volume: 1, Index: index}, chunk.Seq(seq), seq*7, filled(1, byte(seq))))
				}
			}
			benchRead(b, c, head(1))
		})
	}
	for _, depth := range []int{1, 16} {
		b.Run(fmt.Sprintf("clones=%d", depth), func(b *testing.B) {
			c := &client{Store: mustOpen(b, b.TempDir(), full())}
			fill(b, c, 1, 1, benchChunks)
			v := head(1)
			for id := 2; id <= depth; id++ {
				parent := chunk.NewView(v.Volume(), v.Lineage().Freeze(1), v.Parent())
				v = chunk.NewView(chunk.VolumeID(id), chunk.NewLineage(), parent)
				for index := range uint32(benchChunks) {
					c.must(b, writeOp(chunk.Ref{Volume: v.Volume(), Index: index}, 1, id*7, filled(1, byte(id))))
				}
			}
			benchRead(b, c, v)
		})
	}
}

func benchRead(b *testing.B, c *client, view *chunk.View) {
	f := benchFile(b, benchChunks*chunk.Size)
	p := make([]byte, chunk.BlockSize)
	for index := range uint32(benchChunks) {
		c.mustRead(b, view, index, 0, chunk.Blocks)
	}
	versus(b, chunk.BlockSize,
		func(i int) {
			ref, block := randomPlace(i)
			must(b, readAt(f, p, int64(ref.Index)*chunk.Size+int64(block)*chunk.BlockSize))
		},
		func(i int) {
			ref, block := randomPlace(i)
			ref.Volume = view.Volume()
			must(b, c.ReadAt(view, ref, p, uint32(block*chunk.BlockSize)))
		})
}

// BenchmarkFill writes fresh data, 1 MiB at a time, four at once, and makes
// it durable at the end.
func BenchmarkFill(b *testing.B) {
	c := &client{Store: mustOpen(b, b.TempDir(), full())}
	f := benchFile(b, 0)
	data := filled(256, 7)
	sums := chunk.Checksums(nil, data)
	const perRound = 64
	versus(b, perRound*int64(len(data)),
		func(i int) {
			for j := range perRound {
				must(b, writeAt(f, data, int64(i*perRound+j)*int64(len(data))))
			}
			must(b, fdatasync(f))
		},
		func(i int) {
			done := make(chan error, perRound)
			for j := range perRound {
				c.lsn++
				at := (i*perRound + j) * len(data)
				op := chunk.Op{
					Kind: chunk.OpWrite, Ref: chunk.Ref{Volume: 1, Index: uint32(at / chunk.Size)}, Token: chunk.Token{Attachment: 1, Seq: 1},
					Off: uint32(at % chunk.Size), Len: uint32(len(data)), Data: data, Sums: sums,
				}
				e := chunk.Entry{LSN: c.lsn, Commit: c.lsn - 1, Op: op}
				must(b, c.Append(context.Background(), []chunk.Entry{e}, func(err error) { done <- err }))
			}
			for range perRound {
				must(b, <-done)
			}
		})
}

// BenchmarkRead1M reads one MiB after the other. From memory, computing the
// checksums takes about as long as copying.
func BenchmarkRead1M(b *testing.B) {
	for _, cold := range []bool{false, true} {
		b.Run(map[bool]string{false: "from memory", true: "from disk"}[cold], func(b *testing.B) {
			c := &client{Store: mustOpen(b, b.TempDir(), full())}
			fill(b, c, 1, 1, benchChunks)
			f := benchFile(b, benchChunks*chunk.Size)
			p := make([]byte, 1<<20)
			versus(b, int64(len(p)),
				func(i int) {
					if cold && i%turn == 0 {
						osFile{f}.Uncache(0, benchChunks*chunk.Size)
					}
					must(b, readAt(f, p, int64(i%(benchChunks*16))<<20))
				},
				func(i int) {
					ref := chunk.Ref{Volume: 1, Index: uint32(i / 16 % benchChunks)}
					if cold && i%turn == 0 {
						for index := range uint32(benchChunks) {
							file, err := c.files.reading(layerID{chunk.Ref{Volume: 1, Index: index}, 1})
							must(b, err)
							file.Uncache(0, chunk.Size)
							c.files.release(file)
						}
					}
					must(b, c.ReadAt(head(1), ref, p, uint32(i%16)<<20))
				})
		})
	}
}

// BenchmarkFirstWrite writes each block for the first time after a snapshot,
// and in a fresh clone; the plain file is overwritten.
func BenchmarkFirstWrite(b *testing.B) {
	for name, volume := range map[string]chunk.VolumeID{"after a snapshot": 1, "in a clone": 2} {
		b.Run(name, func(b *testing.B) {
			c := &client{Store: mustOpen(b, b.TempDir(), full())}
			fill(b, c, 1, 1, benchChunks)
			f := benchFile(b, benchChunks*chunk.Size)
			data := filled(1, 7)
			versus(b, chunk.BlockSize,
				func(i int) {
					ref, block := randomPlace(i)
					must(b, writeAt(f, data, int64(ref.Index)*chunk.Size+int64(block)*chunk.BlockSize))
					must(b, fdatasync(f))
				},
				func(i int) {
					ref, block := randomPlace(i)
					ref.Volume = volume
					c.must(b, writeOp(ref, chunk.Seq(2+i/100000), block, data))
					c.Committed(0, c.lsn)
				})
		})
	}
}

func writeAt(f *os.File, p []byte, off int64) error { return osFile{f}.WriteAt(off, p) }
func readAt(f *os.File, p []byte, off int64) error  { return osFile{f}.ReadAt(p, off) }
func fdatasync(f *os.File) error                    { return osFile{f}.Sync() }

// BenchmarkOpen opens a store with 64 GiB of layers after a clean stop.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s := mustOpen(b, dir, full())
	full64 := savedPart{part: part{data: 1<<64 - 1}}
	for index := uint32(0); index < 64<<30/chunk.Size; {
		c := s.cut()
		for range 256 {
			full64.id = layerID{chunk.Ref{Volume: 1, Index: index}, 1}
			for full64.index = range parts {
				c.parts = append(c.parts, full64)
			}
			index++
		}
		must(b, s.meta.save(c))
	}
	must(b, s.Close())
	b.ResetTimer()
	for range b.N {
		s, err := Open(dir, full())
		must(b, err)
		b.StopTimer()
		must(b, s.Close())
		b.StartTimer()
	}
}
