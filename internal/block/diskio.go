package block

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"golang.org/x/sys/unix"

	"mars/internal/vfs"
)

// ReadAt implements Device.
func (d *Disk) ReadAt(p []byte, off int64) error {
	if err := Check(off, int64(len(p)), d.Size()); err != nil {
		return d.wrap("read", err)
	}
	if len(p) == 0 {
		return nil
	}
	_, err := d.file.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // somebody truncated the file
	}
	return d.wrapAt("read", off, err)
}

// ReadAtNowait implements NowaitReader: true when the page cache holds all of the range.
func (d *Disk) ReadAtNowait(p []byte, off int64) (bool, error) {
	if err := Check(off, int64(len(p)), d.Size()); err != nil {
		return false, d.wrap("read", err)
	}
	if len(p) == 0 {
		return true, nil
	}
	n := 0
	err := d.call("read", func(fd int) (err error) {
		n, err = unix.Preadv2(fd, [][]byte{p}, off, unix.RWF_NOWAIT)
		return err
	})
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.EOPNOTSUPP) {
		return false, nil
	}
	return n == len(p), err
}

// WriteAt implements Device.
func (d *Disk) WriteAt(p []byte, off int64, f Flags) error {
	return d.modify("write", request{off, int64(len(p)), f}, func(fd int) error {
		_, err := vfs.PwritevAll(fd, [][]byte{p}, off)
		return err
	})
}

// WriteVecAt implements VecWriter.
func (d *Disk) WriteVecAt(bufs [][]byte, off int64) error {
	var n int64
	for _, b := range bufs {
		if len(b)%SectorSize != 0 {
			return d.wrapAt("write", off, ErrAlign)
		}
		n += int64(len(b))
	}
	return d.modify("write", request{off: off, n: n}, func(fd int) error {
		_, err := vfs.PwritevAll(fd, bufs, off)
		return err
	})
}

// request is where a modification applies, and how.
type request struct {
	off, n int64
	flags  Flags
}

// modify does what all modifications have in common: checks before, the Flush of FUA after.
func (d *Disk) modify(op string, r request, do func(fd int) error) error {
	if err := Check(r.off, r.n, d.Size()); err != nil {
		return d.wrap(op, err)
	}
	if err := d.writable(); err != nil {
		return err
	}
	if r.n > 0 {
		if err := d.control(do); err != nil {
			return d.wrapAt(op, r.off, err)
		}
	}
	if r.flags&FUA != 0 {
		return d.Flush()
	}
	return nil
}

func (d *Disk) writable() error {
	if d.opts.ReadOnly {
		return d.wrap("write", ErrReadOnly)
	}
	return d.failure()
}

// failure is the error of the first failed Flush, if there was one.
func (d *Disk) failure() error {
	if err := d.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Flush implements Device. See Disk for what a failure means.
func (d *Disk) Flush() error {
	d.flushing.Lock()
	defer d.flushing.Unlock()
	if err := d.failure(); err != nil {
		return err
	}
	err := d.call("flush", fdatasync)
	if err != nil && !errors.Is(err, ErrClosed) {
		d.failed.Store(&err)
	}
	if err == nil {
		_, err = d.Rescan()
	}
	return err
}

func fdatasync(fd int) error {
	for {
		if err := unix.Fdatasync(fd); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// StartWriteback implements WritebackStarter.
func (d *Disk) StartWriteback(off, n int64) {
	_ = d.call("start write-back", func(fd int) error { // an error of the medium shows up in Flush
		return unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
	})
}

// Extents implements ExtentMapper. A block device does not know its holes and is one extent.
func (d *Disk) Extents(off, n int64, maxExtents int) (list []Extent, err error) {
	if err := Check(off, n, d.Size()); err != nil {
		return nil, d.wrap("extents", err)
	}
	if d.isDev && n > 0 {
		return []Extent{{Len: n}}, nil
	}
	end := off + n
	for off < end && len(list) < max(maxExtents, 1) {
		next, err := d.extentAt(off, end)
		if err != nil {
			return nil, err
		}
		if next.Len > 0 { // else a hole was punched meanwhile: look again
			list = append(list, next)
			off += next.Len
		}
	}
	return list, nil
}

// extentAt finds the extent that begins at off, up to end. File systems have their own granularity: where a boundary is not on a sector's,
// the sector counts as data.
func (d *Disk) extentAt(off, end int64) (e Extent, err error) {
	err = d.call("extents", func(fd int) error {
		data, err := seekOr(fd, off, unix.SEEK_DATA, end)
		if err != nil {
			return err
		}
		if data = data / SectorSize * SectorSize; data > off {
			e = Extent{Len: min(data, end) - off, Hole: true}
			return nil
		}
		hole, err := seekOr(fd, off, unix.SEEK_HOLE, end)
		hole = (hole + SectorSize - 1) / SectorSize * SectorSize
		e = Extent{Len: min(hole, end) - off}
		return err
	})
	return e, err
}

// seekOr is lseek that returns none when there is no such place in the rest of the file.
func seekOr(fd int, off int64, whence int, none int64) (int64, error) {
	pos, err := unix.Seek(fd, off, whence)
	if errors.Is(err, syscall.ENXIO) {
		return none, nil
	}
	return pos, err
}

func (d *Disk) wrapAt(op string, off int64, err error) error {
	if err == nil {
		return nil
	}
	return d.wrap(fmt.Sprintf("%s at %d", op, off), err)
}
