package volume

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// The cluster is in memory, so what is measured is the way there and back.
func BenchmarkVolume(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("Write4K/depth=%d", depth), func(b *testing.B) {
			v := newCluster(b, 64*mib, chunk.Layout{}).attach()
			run(b, depth, func(p []byte, off uint64) error { return v.WriteAt(context.Background(), p, off) })
		})
		b.Run(fmt.Sprintf("Read4K/depth=%d", depth), func(b *testing.B) {
			v := newCluster(b, 64*mib, chunk.Layout{}).attach()
			run(b, depth, func(p []byte, off uint64) error { return v.ReadAt(context.Background(), p, off) })
		})
	}
}

func run(b *testing.B, depth int, work func([]byte, uint64) error) {
	b.ReportAllocs()
	b.SetBytes(4096)
	b.SetParallelism(max(depth/2, 1))
	var n atomic.Uint64
	workers := make(chan struct{}, depth)
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, 4096)
		for pb.Next() {
			workers <- struct{}{}
			if err := work(p, n.Add(1)*5*4096%(64*mib)); err != nil {
				b.Error(err)
			}
			<-workers
		}
	})
}

func BenchmarkRangeLock(b *testing.B) {
	for _, held := range []uint64{0, 32, 256} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			l := newRangeLock()
			for i := range held {
				l.lock(context.Background(), 10*i, 10*i+1)
			}
			b.ReportAllocs()
			for b.Loop() {
				c, _ := l.lock(context.Background(), 9, 9)
				l.unlock(c)
			}
		})
	}
}
