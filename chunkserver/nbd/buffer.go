package nbd

import (
	"math/bits"
	"sync"
)

// Buffers come in powers of two between these.
const (
	minBufferBits = 12
	maxBufferBits = 25 // maxPayload
)

// buffer is memory for the data of one request, which owns it.
type buffer struct {
	bytes []byte // all of it; its length is a power of two
}

var bufferPools [maxBufferBits - minBufferBits + 1]sync.Pool

// bufferClass returns which pool has the buffers for n bytes, and their size.
func bufferClass(n int) (class, size int) {
	class = max(bits.Len(uint(n-1)), minBufferBits) - minBufferBits
	return class, 1 << (class + minBufferBits)
}

// takeBuffer returns a buffer of at least n bytes, 0 < n <= maxPayload. They
// hold what an earlier request left there.
func takeBuffer(n int) *buffer {
	class, size := bufferClass(n)
	if b, ok := bufferPools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{make([]byte, size)}
}

// free gives the buffer up to whoever takes one next.
func (b *buffer) free() {
	class, _ := bufferClass(len(b.bytes))
	bufferPools[class].Put(b)
}
