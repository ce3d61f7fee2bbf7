// Package blocktest helps to test what works with block devices: a disk in memory with a volatile write cache that a test can make fail,
// stall, vanish and lose power; comparison of devices; and Conform, which checks any implementation of block.Device.
package blocktest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"mars/internal/block"
	"mars/internal/block/sectors"
	"mars/internal/vfs/inject"
)

// ErrGone is what a Disk returns after Crash or Kill: the process that had it open is no more.
var ErrGone = errors.New("process is gone")

// ErrVanished is what a Disk returns after Vanish.
var ErrVanished = errors.New("disk has vanished")

// OpKind is the kind of an operation on a Disk.
type OpKind uint8

// The operations of a Disk.
const (
	OpRead OpKind = iota + 1
	OpWrite
	OpWriteZeroes
	OpDiscard
	OpFlush
)

var kindNames = [...]string{OpRead: "read", OpWrite: "write", OpWriteZeroes: "write zeroes", OpDiscard: "discard", OpFlush: "flush"}

func (k OpKind) String() string { return kindNames[k] }

// Op is one operation on a Disk.
type Op struct {
	Kind   OpKind
	Off, N int64 // bytes
	Flags  block.Flags
}

func (o Op) String() string {
	if o.Kind == OpFlush {
		return "flush"
	}
	return fmt.Sprintf("%s: %d+%d", o.Kind, o.Off, o.N)
}

// Within returns a Fault.Match for the operations of a kind that touch [off, off+n). Kind 0 stands for all but flushes.
func Within(kind OpKind, off, n int64) func(Op) bool {
	return func(o Op) bool {
		if kind == 0 && o.Kind == OpFlush || kind != 0 && kind != o.Kind {
			return false
		}
		return o.Off < off+n && off < o.Off+o.N
	}
}

// Fault makes operations fail, see inject.Fault: Err is for example syscall.EIO or block.ErrNoSpace. A fault with Drop on OpFlush loses what
// was in the write cache, although it can still be read.
type Fault = inject.Fault[Op]

// Disk is a sparse block.Device in memory. Until a flush, or FUA, what was written is in a cache that a power cut may lose, each sector by
// itself. The same operations and the same seed leave the same contents.
type Disk struct {
	mu     sync.Mutex
	gone   bool
	size   int64
	data   *sectors.Store
	plan   inject.Plan[Op]
	before func(Op)
}

var (
	_ block.Device       = (*Disk)(nil)
	_ block.VecWriter    = (*Disk)(nil)
	_ block.NowaitReader = (*Disk)(nil)
)

// NewDisk returns a disk of size bytes, a multiple of block.SectorSize, all zeroes.
func NewDisk(size int64) *Disk {
	if err := block.Check(0, size, size); err != nil {
		panic(err) // a bug of the test
	}
	return &Disk{size: size, data: new(sectors.Store)}
}

// OnOp has before called at the start of every operation, on the goroutine of the operation and without locks: it may block, to stall
// the operation, or use other methods of the Disk. nil ends it.
func (d *Disk) OnOp(before func(Op)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before = before
}

// do runs one operation on checked bounds unless a fault strikes it, with the lock held.
func (d *Disk) do(op Op, run func()) error {
	d.mu.Lock()
	before := d.before
	d.mu.Unlock()
	if before != nil {
		before(op)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.begin(op)
	if err == nil {
		run()
		if op.Flags&block.FUA != 0 {
			d.data.SyncRange(op.Off, op.N)
		}
		return nil
	}
	return fmt.Errorf("%s: %w", op, err)
}

func (d *Disk) begin(op Op) error {
	if d.gone {
		return ErrGone
	}
	if err := block.Check(op.Off, op.N, d.size); err != nil {
		return err
	}
	fault := d.plan.Next(op)
	if fault == nil {
		return nil
	}
	if fault.Drop && op.Kind == OpFlush {
		d.data.Drop()
	}
	return fault.Err
}

// Size implements block.Device.
func (d *Disk) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.size
}

// ReadAt implements block.Device.
func (d *Disk) ReadAt(p []byte, off int64) error {
	return d.do(Op{Kind: OpRead, Off: off, N: int64(len(p))}, func() { d.data.ReadAt(p, off) })
}

// ReadAtNowait implements block.NowaitReader. It counts as OpRead.
func (d *Disk) ReadAtNowait(p []byte, off int64) (bool, error) {
	err := d.ReadAt(p, off)
	return err == nil, err
}

// WriteAt implements block.Device.
func (d *Disk) WriteAt(p []byte, off int64, f block.Flags) error {
	return d.do(Op{OpWrite, off, int64(len(p)), f}, func() { d.data.WriteAt(p, off) })
}

// WriteVecAt implements block.VecWriter. It counts as one OpWrite.
func (d *Disk) WriteVecAt(bufs [][]byte, off int64) error {
	var n int64
	for _, b := range bufs {
		if len(b)%block.SectorSize != 0 {
			return block.ErrAlign
		}
		n += int64(len(b))
	}
	return d.do(Op{Kind: OpWrite, Off: off, N: n}, func() {
		at := off
		for _, b := range bufs {
			d.data.WriteAt(b, at)
			at += int64(len(b))
		}
	})
}

// WriteZeroes implements block.Device. It is always fast.
func (d *Disk) WriteZeroes(off, n int64, f block.Flags) error {
	return d.do(Op{OpWriteZeroes, off, n, f}, func() { d.data.Zero(off, n) })
}

// Discard implements block.Device.
func (d *Disk) Discard(off, n int64, f block.Flags) error {
	return d.do(Op{OpDiscard, off, n, f}, func() { d.data.Zero(off, n) })
}

// Flush implements block.Device.
func (d *Disk) Flush() error { return d.do(Op{Kind: OpFlush}, d.data.Sync) }

// Grow makes the disk size bytes large; it never shrinks.
func (d *Disk) Grow(size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.size = max(d.size, size)
}

// Inject adds a fault. Faults end with Crash and Kill.
func (d *Disk) Inject(f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.plan.Add(f)
}

// FailAt makes the i-th operation from now fail with err; 0 is the next one.
func (d *Disk) FailAt(i int, err error) { d.Inject(Fault{Skip: i, Err: err}) }

// StopAt makes the i-th operation from now and all later ones fail with ErrGone, so that a Crash or Kill after it finds the state between
// two operations.
func (d *Disk) StopAt(i int) { d.Inject(Fault{Skip: i, Err: ErrGone, Sticky: true}) }

// Vanish makes all operations fail from now on, until ClearFaults.
func (d *Disk) Vanish() { d.Inject(Fault{Err: ErrVanished, Sticky: true}) }

// ClearFaults removes all faults.
func (d *Disk) ClearFaults() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.plan.Clear()
}

// Ops is the number of operations so far that had valid bounds; Fired how many of them were made to fail.
func (d *Disk) Ops() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.plan.Seen()
}

// Fired is the number of operations that were made to fail.
func (d *Disk) Fired() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.plan.Fired()
}

// Unflushed is the number of sectors in the write cache.
func (d *Disk) Unflushed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.data.Unsynced()
}

// Corrupt inverts n bytes at off, durably and unnoticed: bit rot. It needs no alignment.
func (d *Disk) Corrupt(off, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.data.Corrupt(off, n)
}

// Crash cuts the power and returns the disk after it: of the sectors in the write cache an arbitrary subset, chosen by rng, is left. d is
// gone, whatever the outcome; Clone it before to try several.
func (d *Disk) Crash(rng *rand.Rand) *Disk { return d.crash(sectors.Random(rng)) }

// CrashLosingAll is a Crash that loses the whole write cache.
func (d *Disk) CrashLosingAll() *Disk { return d.crash(sectors.Lost) }

// CrashKeepingAll is a Crash that by luck loses nothing but what a failed flush has dropped.
func (d *Disk) CrashKeepingAll() *Disk { return d.crash(sectors.Kept) }

func (d *Disk) crash(choose sectors.Choose) *Disk {
	n := d.Kill()
	if !n.gone {
		n.data.Crash(choose)
	}
	return n
}

// Kill is kill -9 of the process: the disk and its write cache stay as they are. d is gone: what still uses it gets ErrGone.
func (d *Disk) Kill() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := &Disk{size: d.size, data: d.data, gone: d.gone}
	d.gone = true
	return n
}

// Clone returns an independent copy with its write cache, but without faults.
func (d *Disk) Clone() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &Disk{size: d.size, data: d.data.Clone()}
}
