package nbd

import (
	"math/bits"
	"sync"

	"mars/internal/block"
)

// Payload buffers come in powers of two, so that a freed one fits the next request of about its size.
const (
	minPayloadShift = 12 // 4 KiB: the commonest request
	maxPayloadShift = 25 // 32 MiB == block.MaxRequest
)

// payload is a pooled buffer with the data of one request or reply.
type payload struct {
	data []byte // the part in use
	mem  []byte // all of it
}

var payloads [maxPayloadShift - minPayloadShift + 1]sync.Pool

// A larger MaxRequest would need another class: this does not compile then.
var _ [1<<maxPayloadShift - block.MaxRequest]struct{}

func classOf(n int) int { return max(bits.Len(uint(n-1)), minPayloadShift) - minPayloadShift }

// payloadCost is the memory in bytes that a payload of 1 <= n <= block.MaxRequest bytes takes.
func payloadCost(n int) int64 { return 1 << (classOf(n) + minPayloadShift) }

// newPayload returns a buffer of n bytes, 1 <= n <= block.MaxRequest, with undefined contents.
func newPayload(n int) *payload {
	p, ok := payloads[classOf(n)].Get().(*payload)
	if !ok {
		p = &payload{mem: make([]byte, payloadCost(n))}
	}
	p.data = p.mem[:n]
	return p
}

// free gives the buffer back; it must not be used afterwards.
func (p *payload) free() {
	p.data = nil
	payloads[classOf(len(p.mem))].Put(p)
}
