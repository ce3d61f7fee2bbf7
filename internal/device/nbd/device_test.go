package nbd

import (
	"slices"
	"sync"

	"mars/internal/block"
)

// memDevice is a Device in memory that does everything at once and remembers what it was asked.
type memDevice struct {
	mu      sync.RWMutex
	data    []byte
	fail    error // every request fails with it
	flushes int
	flags   []block.Flags // of the modifications, in order
}

func newMemDevice(size int) *memDevice { return &memDevice{data: make([]byte, size)} }

func (d *memDevice) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return int64(len(d.data))
}

func (d *memDevice) grow(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.data = append(d.data, make([]byte, n)...)
}

func (d *memDevice) setFailure(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

func (d *memDevice) ReadAt(p []byte, off int64) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.check(off, int64(len(p))); err != nil {
		return err
	}
	copy(p, d.data[off:])
	return nil
}

func (d *memDevice) check(off, n int64) error {
	if d.fail != nil {
		return d.fail
	}
	return block.Check(off, n, int64(len(d.data)))
}

func (d *memDevice) modify(off, n int64, f block.Flags, change func(p []byte)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check(off, n); err != nil {
		return err
	}
	d.flags = append(d.flags, f)
	change(d.data[off : off+n])
	return nil
}

func (d *memDevice) WriteAt(p []byte, off int64, f block.Flags) error {
	return d.modify(off, int64(len(p)), f, func(q []byte) { copy(q, p) })
}

func (d *memDevice) WriteZeroes(off, n int64, f block.Flags) error {
	return d.modify(off, n, f, func(q []byte) { clear(q) })
}

func (d *memDevice) Discard(off, n int64, f block.Flags) error {
	return d.modify(off, n, f, func(q []byte) { clear(q) })
}

func (d *memDevice) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes++
	return d.fail
}

func (d *memDevice) apply(r *block.Request) error {
	switch r.Op {
	case block.OpWrite:
		return d.WriteAt(r.Data, r.Off, r.Flags)
	case block.OpWriteZeroes:
		return d.WriteZeroes(r.Off, r.Len, r.Flags)
	case block.OpDiscard:
		return d.Discard(r.Off, r.Len, r.Flags)
	}
	return d.Flush()
}

// Extents calls a 4 KiB block that is all zeroes a hole.
func (d *memDevice) Extents(off, n int64, limit int) ([]block.Extent, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.check(off, n); err != nil {
		return nil, err
	}
	var out []block.Extent
	for end := off + n; off < end; {
		k := min(4096-off%4096, end-off)
		hole := !slices.ContainsFunc(d.data[off:off+k], func(b byte) bool { return b != 0 })
		if last := len(out) - 1; last >= 0 && out[last].Hole == hole {
			out[last].Len += k
		} else if len(out) == limit {
			break
		} else {
			out = append(out, block.Extent{Len: k, Hole: hole})
		}
		off += k
	}
	return out, nil
}

// batchDevice is a memDevice that takes batches: writes are completed inside Submit, what has to be durable later, from another goroutine.
type batchDevice struct {
	*memDevice
	wg sync.WaitGroup

	mu      sync.Mutex
	batches []int // lengths
}

func newBatchDevice(size int) *batchDevice { return &batchDevice{memDevice: newMemDevice(size)} }

func (d *batchDevice) Submit(reqs []*block.Request) {
	d.mu.Lock()
	d.batches = append(d.batches, len(reqs))
	d.mu.Unlock()
	for _, r := range reqs {
		done, late := r.Done, r.Op == block.OpFlush || r.Flags&block.FUA != 0
		err := d.apply(r)
		if late {
			d.wg.Go(func() { done(err) })
		} else {
			done(err)
		}
	}
}

// nowaitDevice is a batchDevice that has the first half of its data at hand.
type nowaitDevice struct{ *batchDevice }

func (d nowaitDevice) ReadAtNowait(p []byte, off int64) (bool, error) {
	if off+int64(len(p)) > d.Size()/2 {
		clear(p)
		return false, nil
	}
	return true, d.ReadAt(p, off)
}

// plainDevice hides every optional interface of a Device.
type plainDevice struct{ block.Device }

// stuckDevice completes no request of a batch until it is released, and blocks reads until then.
type stuckDevice struct {
	*memDevice
	gate chan struct{}
}

func newStuckDevice(size int) *stuckDevice {
	return &stuckDevice{memDevice: newMemDevice(size), gate: make(chan struct{})}
}

func (d *stuckDevice) ReadAt(p []byte, off int64) error {
	<-d.gate
	return d.memDevice.ReadAt(p, off)
}

func (d *stuckDevice) Submit(reqs []*block.Request) {
	for _, r := range slices.Clone(reqs) {
		go func() { // ends when the device is released
			<-d.gate
			r.Done(d.apply(r))
		}()
	}
}
