// Package block defines what a block device is to this project, so that parts compose: a volume is a Device over a disk and a log,
// a front end serves a Device, a full sync copies one Device to another, a test wraps a Device to fail, stall or lose writes.
//
// The contract is that of a disk with a volatile write cache (Linux Documentation/block/writeback_cache_control.rst):
// a completed write is visible to every later read; it survives power loss once a Flush that was started after it has completed, or at
// once if it carried FUA. Offsets and lengths are bytes and multiples of SectorSize; anything else is ErrAlign.
// All methods may be called concurrently; overlapping concurrent requests have no defined order among themselves.
package block

import (
	"errors"
	"fmt"
)

// SectorSize is the granularity of offsets and lengths in bytes.
const SectorSize = 512

// MaxRequest is the largest payload in bytes of one write or read request that front ends pass down.
const MaxRequest = 32 << 20

// Errors that callers branch on. Implementations wrap them with what and where.
var (
	ErrAlign    = errors.New("offset or length is not a multiple of 512 bytes")
	ErrRange    = errors.New("range is beyond the end of the device")
	ErrNoSpace  = errors.New("no space left")
	ErrReadOnly = errors.New("device is read-only")
	ErrClosed   = errors.New("device is closed")
	ErrNotFast  = errors.New("zeroing would not be faster than writing zeroes")
	ErrBusy     = errors.New("device is in use")
)

// Flags modify one request.
type Flags uint8

const (
	// FUA: the request is durable before it completes.
	FUA Flags = 1 << iota
	// NoHole: WriteZeroes must leave the range allocated.
	NoHole
	// FastZero: WriteZeroes fails with ErrNotFast at once if it would have to write the zeroes out.
	FastZero
)

// Device is a random access block device. Slices passed in belong to the caller again when the method returns.
type Device interface {
	// Size in bytes; may grow while the device is open, never shrinks.
	Size() int64
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64, f Flags) error
	// WriteZeroes makes the range read as zeroes.
	WriteZeroes(off, n int64, f Flags) error
	// Discard tells that the contents are no longer needed. On every Device here a discarded range reads as zeroes, on every
	// replica alike, else replicas could differ after a discard.
	Discard(off, n int64, f Flags) error
	// Flush makes every write that completed before the call durable.
	Flush() error
}

// Op is the kind of a Request.
type Op uint8

// The operations of a Request.
const (
	OpWrite Op = iota + 1
	OpWriteZeroes
	OpDiscard
	OpFlush
)

// Request is one asynchronous modification, see Submitter.
type Request struct {
	Op    Op
	Flags Flags
	Off   int64
	Len   int64  // bytes; for OpWrite it equals len(Data)
	Data  []byte // OpWrite only; owned by the device until Done is called
	// Done is called exactly once, from any goroutine, possibly before Submit returns. It must not block and must not call the Device.
	Done func(error)
}

// Submitter is implemented by devices that can take several modifications in one go (one log write for many requests).
// Requests of one call take effect in the order of the slice. Submit may block to slow the caller down when buffers are full, and it may
// do the work on the caller's goroutine; it never waits for durability (FUA, OpFlush): these complete later through Done.
type Submitter interface {
	Submit(reqs []*Request)
}

// NowaitReader is implemented by devices that can tell cheaply whether a read can be served without waiting for a disk.
type NowaitReader interface {
	// ReadAtNowait fills p and returns true, or returns false when the read would have to wait (p is then undefined).
	ReadAtNowait(p []byte, off int64) (bool, error)
}

// Extent is a run of blocks of equal allocation state.
type Extent struct {
	Len  int64
	Hole bool // not allocated; reads as zeroes
}

// ExtentMapper is implemented by devices that know where they have holes. The extents returned cover a prefix of [off, off+n) that is not
// empty, in order; at most max of them.
type ExtentMapper interface {
	Extents(off, n int64, max int) ([]Extent, error)
}

// VecWriter is implemented by devices that can write several buffers that lie one after the other on the device in one go. The sum of the
// lengths counts as the length of the request; each buffer's length is a multiple of SectorSize. Otherwise it is as WriteAt without flags.
type VecWriter interface {
	WriteVecAt(bufs [][]byte, off int64) error
}

// Check returns nil when [off, off+n) is aligned and inside a device of the given size.
func Check(off, n, size int64) error {
	if off%SectorSize != 0 || n%SectorSize != 0 {
		return fmt.Errorf("request at %d of %d bytes: %w", off, n, ErrAlign)
	}
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("request at %d of %d bytes on a device of %d bytes: %w", off, n, size, ErrRange)
	}
	return nil
}

// WritebackStarter is implemented by devices whose Flush has less to wait for when it was told before what will have to be on the medium.
type WritebackStarter interface {
	StartWriteback(off, n int64)
}

// StartWriteback hints that what was written to the range should be on its way to the medium. It guarantees nothing.
func StartWriteback(d Device, off, n int64) {
	if w, ok := d.(WritebackStarter); ok && n > 0 {
		w.StartWriteback(off, n)
	}
}

// IsHole reports whether d knows that the whole range is not allocated, and so reads as zeroes.
func IsHole(d Device, off, n int64) bool {
	m, ok := d.(ExtentMapper)
	if !ok {
		return false
	}
	list, err := m.Extents(off, n, 1)
	return err == nil && len(list) > 0 && list[0].Hole && list[0].Len >= n
}
