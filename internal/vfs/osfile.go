package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// iovMax is the kernel's limit of buffers per vectored system call (UIO_MAXIOV).
const iovMax = 1024

type osFile struct {
	*os.File                 // ReadAt, WriteAt, Truncate, Sync, Close
	conn     syscall.RawConn // the descriptor, held open during a call even when another goroutine closes the file
}

func openOS(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return &osFile{File: f, conn: conn}, nil
}

func (f *osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f *osFile) SyncData() error {
	return f.call("fdatasync", unix.Fdatasync)
}

func (f *osFile) Allocate(off, n int64) error {
	return f.call("fallocate", func(fd int) error { return unix.Fallocate(fd, 0, off, n) })
}

func (f *osFile) WritevAt(bufs [][]byte, off int64) (n int, err error) {
	err = f.call("pwritev", func(fd int) error {
		n, err = PwritevAll(fd, bufs, off)
		return err
	})
	return n, err
}

// call runs a system call on the descriptor and says in its error which file it was.
func (f *osFile) call(op string, do func(fd int) error) error {
	var err error
	ctlErr := f.conn.Control(func(fd uintptr) {
		err = retryEINTR(func() error { return do(int(fd)) })
	})
	if ctlErr != nil {
		err = ctlErr
	}
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: f.Name(), Err: err}
}

// PwritevAll writes all of bufs one after the other at off of the open file fd, in as few system calls as the kernel allows. It returns how
// many bytes were written before an error. bufs is not modified.
func PwritevAll(fd int, bufs [][]byte, off int64) (int, error) {
	total := 0
	for c := newCursor(bufs); c.left > 0; {
		n, err := unix.Pwritev(fd, c.batch(), off+int64(total))
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return total, err
		case n == 0:
			return total, io.ErrShortWrite
		}
		total += n
		c.advance(n)
	}
	return total, nil
}

// cursor is a position in a list of buffers.
type cursor struct {
	bufs [][]byte
	skip int // bytes of bufs[0] that are done
	left int // bytes after the position
}

func newCursor(bufs [][]byte) cursor {
	c := cursor{bufs: bufs}
	for _, b := range bufs {
		c.left += len(b)
	}
	return c
}

// batch returns the buffers from the position on, as many as one system call takes.
func (c *cursor) batch() [][]byte {
	if c.skip == 0 && len(c.bufs) <= iovMax {
		return c.bufs
	}
	batch := make([][]byte, 0, min(len(c.bufs), iovMax))
	skip := c.skip
	for _, b := range c.bufs {
		if len(batch) == cap(batch) {
			break
		}
		if skip < len(b) { // an empty one would not bring us forward
			batch = append(batch, b[skip:])
		}
		skip = 0
	}
	return batch
}

func (c *cursor) advance(n int) {
	c.left -= n
	for len(c.bufs) > 0 && n >= len(c.bufs[0])-c.skip {
		n -= len(c.bufs[0]) - c.skip
		c.bufs, c.skip = c.bufs[1:], 0
	}
	c.skip += n
}
