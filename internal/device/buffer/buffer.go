// Package buffer has pooled buffers for the data of one request. They come in powers of two, so that a freed one fits the next request of
// about its size. What nobody uses for a while the garbage collector takes, so that an idle front end holds nothing.
package buffer

import (
	"math/bits"
	"sync"

	"mars/internal/block"
)

const (
	// MinSize in bytes is what the smallest buffer takes: the commonest request.
	MinSize  = 1 << minShift
	minShift = 12
	maxShift = 25 // 32 MiB == block.MaxRequest
)

// Buffer is memory for the data of one request.
type Buffer struct {
	Data []byte // the part in use
	mem  []byte // all of it
}

var pools [maxShift - minShift + 1]sync.Pool

// A larger MaxRequest would need another class: this does not compile then.
var _ [1<<maxShift - block.MaxRequest]struct{}

func classOf(n int) int { return max(bits.Len(uint(n-1)), minShift) - minShift }

// Cost is the memory in bytes that a buffer for 1 <= n <= block.MaxRequest bytes takes.
func Cost(n int) int64 { return 1 << (classOf(n) + minShift) }

// New returns a buffer with n bytes of Data, 1 <= n <= block.MaxRequest, with undefined contents.
func New(n int) *Buffer {
	b, ok := pools[classOf(n)].Get().(*Buffer)
	if !ok {
		b = &Buffer{mem: make([]byte, Cost(n))}
	}
	b.Data = b.mem[:n]
	return b
}

// Cost is the memory in bytes that b takes.
func (b *Buffer) Cost() int64 { return int64(len(b.mem)) }

// Free gives the buffer back; it must not be used afterwards.
func (b *Buffer) Free() {
	b.Data = nil
	pools[classOf(len(b.mem))].Put(b)
}
