package wire

import (
	"context"
	"fmt"
	"sync"
	"testing"
)

// BenchmarkEcho sends 4 KiB there and back, with so many calls under way.
func BenchmarkEcho(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			client, _ := pair(b, silent(), echo())
			b.ReportAllocs()
			b.SetBytes(4096)
			work := make(chan struct{})
			var wg sync.WaitGroup
			for range depth {
				wg.Go(func() {
					head, data := make([]byte, 64), make([]byte, 4096)
					for range work {
						if _, err := client.Call(context.Background(), KindRead, head, data); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for b.Loop() {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
		})
	}
}
