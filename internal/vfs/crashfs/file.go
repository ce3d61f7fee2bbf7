package crashfs

import (
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"mars/internal/block/sectors"
	"mars/internal/vfs"
)

// blockSize is the unit of space in bytes.
const blockSize = 4096

// maxSizes bounds how many un-synced sizes of a file are remembered.
const maxSizes = 16

// inode is a file, with or without a name, or a directory.
type inode struct {
	dir         bool
	durableName string // its name after a power cut that loses all it may; empty if none
	unlinked    bool
	opens       int

	data     sectors.Store
	size     int64
	sizes    []int64 // that a power cut may bring back, the durable one first; empty when size is durable
	sizeLost bool    // a failed sync dropped the size: it is taken for durable but is not
	blocks   spans   // allocated space
	bad      []badRange
}

type badRange struct {
	off, end int64
	err      error
}

func (ino *inode) setSize(n int64) {
	if n == ino.size {
		return
	}
	switch {
	case ino.sizeLost: // the dropped size never reaches the medium
		ino.sizeLost = false
	case len(ino.sizes) == maxSizes:
		ino.sizes = append(ino.sizes[:1], append(ino.sizes[2:], ino.size)...)
	default:
		ino.sizes = append(ino.sizes, ino.size)
	}
	ino.size = n
}

func (ino *inode) sync() {
	ino.data.Sync()
	if !ino.sizeLost {
		ino.sizes = ino.sizes[:0]
	}
}

// drop is a sync that fails, as inject.Fault describes.
func (ino *inode) drop() {
	ino.data.Drop()
	if len(ino.sizes) > 0 {
		ino.sizes, ino.sizeLost = ino.sizes[:1], true
	}
}

// handle is an open file.
type handle struct {
	fs     *FS
	ino    *inode
	name   string // when it was opened
	closed bool
}

var _ vfs.File = (*handle)(nil)

func (h *handle) do(op Op, run func() error) error {
	op.Name, op.ino = h.name, h.ino
	return h.fs.do(op, func() error {
		if h.closed {
			return fs.ErrClosed
		}
		if op.Off < 0 || op.N < 0 || op.Off > maxFile-op.N {
			return syscall.EINVAL
		}
		return run()
	})
}

func (h *handle) ReadAt(p []byte, off int64) (n int, err error) {
	eof := false
	err = h.do(Op{Kind: OpRead, Off: off, N: int64(len(p))}, func() error {
		n = int(max(min(int64(len(p)), h.ino.size-off), 0))
		eof = n < len(p)
		if err := h.ino.readError(off, int64(n)); err != nil {
			n = 0
			return err
		}
		h.ino.data.ReadAt(p[:n], off)
		return nil
	})
	if err == nil && eof {
		err = io.EOF // bare, as io.ReaderAt wants it
	}
	return n, err
}

func (ino *inode) readError(off, n int64) error {
	for _, b := range ino.bad {
		if off < b.end && b.off < off+n {
			return b.err
		}
	}
	return nil
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	return h.WritevAt([][]byte{p}, off)
}

func (h *handle) WritevAt(bufs [][]byte, off int64) (n int, err error) {
	size := 0
	for _, b := range bufs {
		size += len(b)
	}
	err = h.do(Op{Kind: OpWrite, Off: off, N: int64(size)}, func() error {
		fits := h.fs.reserve(h.ino, off, int64(size))
		n = h.ino.write(bufs, off, int(fits))
		if n < size {
			return syscall.ENOSPC
		}
		return nil
	})
	return n, err
}

// write writes the first n bytes of bufs.
func (ino *inode) write(bufs [][]byte, off int64, n int) int {
	done := 0
	for _, b := range bufs {
		b = b[:min(len(b), n-done)]
		ino.data.WriteAt(b, off+int64(done))
		done += len(b)
	}
	if done > 0 {
		ino.setSize(max(ino.size, off+int64(done)))
	}
	return done
}

func (h *handle) Truncate(size int64) error {
	return h.do(Op{Kind: OpTruncate, Off: size}, func() error {
		h.fs.resize(h.ino, size)
		return nil
	})
}

func (h *handle) Allocate(off, n int64) error {
	return h.do(Op{Kind: OpAllocate, Off: off, N: n}, func() error {
		if n == 0 {
			return syscall.EINVAL
		}
		if h.fs.reserve(h.ino, off, n) < n {
			return syscall.ENOSPC
		}
		h.ino.setSize(max(h.ino.size, off+n))
		return nil
	})
}

func (h *handle) Sync() error     { return h.sync(OpSync) }
func (h *handle) SyncData() error { return h.sync(OpSyncData) }

func (h *handle) sync(kind OpKind) error {
	return h.do(Op{Kind: kind}, func() error {
		h.ino.sync()
		return nil
	})
}

func (h *handle) Size() (n int64, err error) {
	err = h.do(Op{Kind: OpSize}, func() error {
		n = h.ino.size
		return nil
	})
	return n, err
}

// Close implements vfs.File. When a fault makes it fail the file is closed nevertheless, as on Linux.
func (h *handle) Close() error {
	err := h.do(Op{Kind: OpClose}, func() error { return nil })
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if !h.closed && !h.fs.gone {
		h.closed = true
		h.ino.opens--
		h.fs.release(h.ino)
	}
	return err
}

// resize sets the size of a file. Truncating gives its space back.
func (f *FS) resize(ino *inode, size int64) {
	if size < ino.size {
		ino.data.Zero(size, ino.size-size)
		f.used -= ino.blocks.cut(roundUp(size))
	}
	ino.setSize(size)
}

// reserve allocates the blocks of the range and returns how many bytes from off on have some: less than n when the quota is used up.
func (f *FS) reserve(ino *inode, off, n int64) int64 {
	first, end := off/blockSize*blockSize, roundUp(off+n)
	if missing := end - first - ino.blocks.covered(first, end); f.used+missing <= f.quota {
		f.used += missing
		ino.blocks.add(first, end)
		return n
	}
	pos := first
	for ; pos < end; pos += blockSize {
		if ino.blocks.covered(pos, pos+blockSize) == 0 {
			if f.used+blockSize > f.quota {
				break
			}
			f.used += blockSize
			ino.blocks.add(pos, pos+blockSize)
		}
	}
	return max(min(pos-off, n), 0)
}

// release gives the space of a file back that has neither a name nor a user. It keeps its blocks: a power cut may bring it back.
func (f *FS) release(ino *inode) {
	if ino.unlinked && ino.opens == 0 {
		f.used -= ino.blocks.covered(0, maxFile)
	}
}

func roundUp(n int64) int64 { return (n + blockSize - 1) / blockSize * blockSize }

// spans is a set of byte ranges, sorted, disjoint and not adjacent.
type spans []span

type span struct{ off, end int64 }

// covered is the number of bytes of [off, end) in the set.
func (s spans) covered(off, end int64) (n int64) {
	for _, x := range s {
		n += max(min(end, x.end)-max(off, x.off), 0)
	}
	return n
}

func (s *spans) add(off, end int64) {
	if off == end {
		return
	}
	if last := len(*s) - 1; last >= 0 && (*s)[last].off <= off && end <= (*s)[last].end {
		return // the common case: a write into preallocated space
	}
	merged := make(spans, 0, len(*s)+1)
	at := 0
	for _, x := range *s {
		switch {
		case x.end < off:
			merged = append(merged, x)
			at = len(merged)
		case x.off > end:
			merged = append(merged, x)
		default:
			off, end = min(off, x.off), max(end, x.end)
		}
	}
	merged = append(merged, span{})
	copy(merged[at+1:], merged[at:])
	merged[at] = span{off, end}
	*s = merged
}

// cut removes everything from pos on and returns how many bytes that were.
func (s *spans) cut(pos int64) (n int64) {
	kept := (*s)[:0]
	for _, x := range *s {
		n += max(x.end-max(pos, x.off), 0)
		if x.off < pos {
			kept = append(kept, span{x.off, min(x.end, pos)})
		}
	}
	*s = kept
	return n
}

func (o Op) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", o, err)
}
