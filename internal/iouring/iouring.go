// Package iouring is the least of Linux's io_uring that a driver with commands of its own needs: one ring with entries of 128 bytes, opened,
// filled, entered and emptied. Source: io_uring(7), io_uring_setup(2), io_uring_enter(2) and include/uapi/linux/io_uring.h.
//
// What it guarantees: entries are taken by the kernel in the order of Next; a completion is seen after everything the kernel wrote before it;
// no completion is lost as long as there are never more commands under way than the ring has entries. It allocates nothing after Open.
// What it leaves to the caller: a Ring is used by one goroutine at a time, and memory that a command names stays alive and in place until
// the command is completed.
package iouring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sizes in bytes and places of the kernel's interface.
const (
	entrySize      = 128
	completionSize = 16
	paramsSize     = 120

	mapRings   = 0
	mapEntries = 0x10000000

	setupSQE128       = 1 << 10
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13
	featSingleMmap    = 1 << 0
	enterGetEvents    = 1 << 0

	opRead       = 22
	opURingCmd   = 46
	maxOpEntries = 4096
)

// Kind says how a ring is used.
type Kind uint32

const (
	// Shared rings may be used by any thread, by one at a time.
	Shared Kind = 0
	// Pinned rings are opened, used and closed by one thread. The kernel does its part of the work when that thread enters the ring, and
	// never interrupts it. Needs Linux 6.1.
	Pinned Kind = setupSingleIssuer | setupDeferTaskrun
)

// Ring is an open io_uring.
type Ring struct {
	fd      int
	rings   []byte // both queues' heads and tails, and the completions
	entries []byte

	sqHead, sqTail *uint32
	cqHead, cqTail *uint32
	sqMask, cqMask uint32
	cqes           []byte

	tail uint32 // of the entries that Next has given out
}

// Open makes a ring with room for at least n commands under way.
func Open(n int, kind Kind) (*Ring, error) {
	if n < 1 || n > maxOpEntries {
		return nil, fmt.Errorf("io_uring of %d entries: 1 to %d are possible", n, maxOpEntries)
	}
	// Aligned for the kernel's 64 bit fields.
	var words [paramsSize / 8]uint64
	params := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), paramsSize)
	put := binary.NativeEndian
	put.PutUint32(params[8:], setupSQE128|uint32(kind))
	fd, _, no := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(n), uintptr(unsafe.Pointer(&params[0])), 0)
	if no != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", no)
	}
	r := &Ring{fd: int(fd)}
	if err := r.mmap(params); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// layout is where things are in the mapped memory: struct io_uring_params.
type layout struct {
	sqEntries, cqEntries, features           uint32
	sqHead, sqTail, sqMask, sqArray          uint32
	cqHead, cqTail, cqMask, completionsBegin uint32
}

func parseLayout(p []byte) layout {
	at := func(i int) uint32 { return binary.NativeEndian.Uint32(p[i:]) }
	const sq, cq = 40, 80
	return layout{
		sqEntries: at(0), cqEntries: at(4), features: at(20),
		sqHead: at(sq), sqTail: at(sq + 4), sqMask: at(sq + 8), sqArray: at(sq + 24),
		cqHead: at(cq), cqTail: at(cq + 4), cqMask: at(cq + 8), completionsBegin: at(cq + 20),
	}
}

func (r *Ring) mmap(params []byte) error {
	l := parseLayout(params)
	if l.features&featSingleMmap == 0 {
		return errors.New("io_uring: Linux 5.4 or later is needed")
	}
	var err error
	size := max(l.sqArray+4*l.sqEntries, l.completionsBegin+completionSize*l.cqEntries)
	if r.rings, err = mapAt(r.fd, mapRings, int(size)); err != nil {
		return err
	}
	if r.entries, err = mapAt(r.fd, mapEntries, int(l.sqEntries)*entrySize); err != nil {
		return err
	}
	r.sqHead, r.sqTail, r.sqMask = r.word(l.sqHead), r.word(l.sqTail), *r.word(l.sqMask)
	r.cqHead, r.cqTail, r.cqMask = r.word(l.cqHead), r.word(l.cqTail), *r.word(l.cqMask)
	r.cqes = r.rings[l.completionsBegin:][:completionSize*l.cqEntries]
	for i := range l.sqEntries { // entry i is always at place i
		*r.word(l.sqArray + 4*i) = i
	}
	return nil
}

func mapAt(fd int, off int64, size int) ([]byte, error) {
	m, err := unix.Mmap(fd, off, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map io_uring: %w", err)
	}
	return m, nil
}

func (r *Ring) word(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }

// Entry is one command on its way to the kernel: struct io_uring_sqe with its 80 bytes for the driver.
type Entry []byte

// PayloadSize is how many bytes a command of a driver may carry.
const PayloadSize = 80

// Next returns a cleared entry, which the next Enter submits; nil when the ring is full.
func (r *Ring) Next() Entry {
	if r.tail-atomic.LoadUint32(r.sqHead) > r.sqMask {
		return nil
	}
	e := r.entries[int(r.tail&r.sqMask)*entrySize:][:entrySize:entrySize]
	clear(e)
	r.tail++
	return e
}

// Command makes e a command for the driver of fd and returns its payload, to be filled in.
func (e Entry) Command(fd int, op uint32, id uint64) []byte {
	e[0] = opURingCmd
	binary.NativeEndian.PutUint32(e[4:], uint32(int32(fd)))
	binary.NativeEndian.PutUint32(e[8:], op)
	binary.NativeEndian.PutUint64(e[32:], id)
	return e[48:]
}

// Read makes e a read of the whole buffer from fd, at its current position.
func (e Entry) Read(fd int, buf []byte, id uint64) {
	e[0] = opRead
	binary.NativeEndian.PutUint32(e[4:], uint32(int32(fd)))
	binary.NativeEndian.PutUint64(e[8:], ^uint64(0))
	binary.NativeEndian.PutUint64(e[16:], uint64(uintptr(unsafe.Pointer(&buf[0]))))
	binary.NativeEndian.PutUint32(e[24:], uint32(len(buf)))
	binary.NativeEndian.PutUint64(e[32:], id)
}

// Enter submits what Next has given out and waits for at least so many completions. It may return earlier, with none.
func (r *Ring) Enter(wait int) error {
	atomic.StoreUint32(r.sqTail, r.tail)
	submit := r.tail - atomic.LoadUint32(r.sqHead)
	_, _, no := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(submit), uintptr(wait), enterGetEvents, 0, 0)
	if no != 0 && no != unix.EINTR && no != unix.EAGAIN && no != unix.EBUSY {
		return fmt.Errorf("io_uring_enter: %w", no)
	}
	return nil
}

// Completion is the end of a command.
type Completion struct {
	ID     uint64 // as given to the command
	Result int32  // negative: an errno
}

// Completed takes the oldest completion out of the ring; false when there is none now.
func (r *Ring) Completed() (Completion, bool) {
	head := *r.cqHead // only we move it
	if head == atomic.LoadUint32(r.cqTail) {
		return Completion{}, false
	}
	c := r.cqes[int(head&r.cqMask)*completionSize:][:completionSize]
	out := Completion{ID: binary.NativeEndian.Uint64(c), Result: int32(binary.NativeEndian.Uint32(c[8:]))}
	atomic.StoreUint32(r.cqHead, head+1)
	return out, true
}

// Close gives the ring back. The kernel cancels what is under way, in its own time.
func (r *Ring) Close() error {
	var errs []error
	for _, m := range [][]byte{r.rings, r.entries} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	r.rings, r.entries = nil, nil
	return errors.Join(append(errs, unix.Close(r.fd))...)
}
