package block

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"mars/internal/vfs"
)

// DiskOptions modify OpenDisk. The zero value is the normal case.
type DiskOptions struct {
	// ReadOnly: every modification fails with ErrReadOnly. The disk is still opened exclusively.
	ReadOnly bool
}

// Disk is a member's local backing store: a block device (an LV, a partition) or a regular file. It is a Device, NowaitReader, ExtentMapper
// and VecWriter.
//
// IO goes through the page cache; Flush is fdatasync, and FUA costs a Flush. When a Flush fails the kernel may have dropped the data it
// could not write, and a second one would report success without them; so a failed Flush is final: it and every later modification and
// Flush return that first error. Reads go on. OpenDisk drops what the page cache holds, so that a disk that is opened again after such a
// failure shows what is on the medium, and not what never got there.
type Disk struct {
	path  string
	file  *os.File
	conn  syscall.RawConn // the descriptor, held open during a call even when another goroutine closes the Disk
	opts  DiskOptions
	isDev bool
	unit  int64 // logical block size in bytes
	size  atomic.Int64

	// flushing admits one fdatasync at a time: the kernel reports a write-back error to one of two concurrent callers only, and the
	// other one must not take the silence for success. It is the one lock here that is held across IO.
	flushing sync.Mutex
	failed   atomic.Pointer[error] // set once, by the first failed Flush
}

// OpenDisk opens the backing store at path for this process alone. A block device that is mounted or otherwise claimed and a file that
// another process has locked are refused with ErrBusy and, as far as it can be found out, the name of the user. OpenDisk never creates or
// resizes anything; when path does not exist the error (fs.ErrNotExist) says how to create it.
func OpenDisk(path string, opts DiskOptions) (*Disk, error) {
	if err := checkKind(path); err != nil {
		return nil, err
	}
	flag := os.O_RDWR
	if opts.ReadOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag|os.O_EXCL, 0) // O_EXCL claims a block device; for a file it has no effect
	if errors.Is(err, syscall.EBUSY) {
		return nil, busyError(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	d := &Disk{path: path, file: f, opts: opts, unit: SectorSize}
	if err := d.claim(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := d.dropCache(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

// dropCache writes what is dirty, which stays in the cache otherwise, and drops the rest.
func (d *Disk) dropCache() error {
	if d.opts.ReadOnly {
		return nil
	}
	if err := d.Flush(); err != nil {
		return err
	}
	return d.call("drop cache", func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) })
}

func checkKind(path string) error {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("disk %s: %w; create it first, for example with: %s", path, fs.ErrNotExist, createHint(path))
	}
	if err != nil {
		return fmt.Errorf("open disk: %w", err)
	}
	if !st.Mode().IsRegular() && !isBlockDevice(st.Mode()) {
		return fmt.Errorf("disk %s: neither a block device nor a regular file (%s)", path, st.Mode())
	}
	return nil
}

func createHint(path string) string {
	if strings.HasPrefix(path, "/dev/") {
		return "lvcreate -L 10G -n NAME VOLUMEGROUP"
	}
	return "truncate -s 10G " + path
}

func isBlockDevice(m fs.FileMode) bool {
	return m&fs.ModeDevice != 0 && m&fs.ModeCharDevice == 0
}

// claim makes sure that nobody else uses the open disk and learns its size and properties.
func (d *Disk) claim() (err error) {
	st, err := d.file.Stat()
	if err != nil {
		return err
	}
	if d.conn, err = d.file.SyscallConn(); err != nil {
		return fmt.Errorf("disk %s: %w", d.path, err)
	}
	if d.isDev = isBlockDevice(st.Mode()); d.isDev {
		err = d.probeDevice()
	} else {
		err = d.lockFile()
	}
	if err != nil {
		return err
	}
	size, err := d.currentSize()
	if err != nil {
		return err
	}
	if size == 0 {
		return fmt.Errorf("disk %s: empty, give it a size first, for example with: %s", d.path, createHint(d.path))
	}
	d.size.Store(size)
	return nil
}

func (d *Disk) lockFile() error {
	err := vfs.Flock(d.file)
	if errors.Is(err, vfs.ErrLocked) {
		return fmt.Errorf("disk %s: %w: %w", d.path, ErrBusy, err)
	}
	return err
}

func (d *Disk) probeDevice() error {
	return d.call("probe", func(fd int) error {
		unit, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
		if err != nil {
			return err
		}
		d.unit = int64(unit)
		ro, err := unix.IoctlGetInt(fd, unix.BLKROGET)
		if err == nil && ro != 0 && !d.opts.ReadOnly {
			return ErrReadOnly
		}
		return err
	})
}

// currentSize asks the kernel. Seeking to the end gives the size of files and block devices alike.
func (d *Disk) currentSize() (size int64, err error) {
	err = d.call("size", func(fd int) error {
		size, err = unix.Seek(fd, 0, unix.SEEK_END)
		return err
	})
	return size / SectorSize * SectorSize, err
}

// Path is the name under which the disk was opened.
func (d *Disk) Path() string { return d.path }

// LogicalBlockSize in bytes: smaller or unaligned writes are possible, but cost a read. 512 for files.
func (d *Disk) LogicalBlockSize() int64 { return d.unit }

// Size implements Device. It is rounded down to SectorSize and changes only in Rescan.
func (d *Disk) Size() int64 { return d.size.Load() }

// Rescan looks whether the disk has grown and returns its size in bytes. A disk that has become smaller has lost contents, which a later write
// behind the new end would hide: like a failed Flush that is final, and its Size stays.
func (d *Disk) Rescan() (int64, error) {
	now, err := d.currentSize()
	if err != nil {
		return d.Size(), err
	}
	for {
		old := d.Size()
		if now < old {
			err := fmt.Errorf("disk %s: shrunk from %d to %d bytes while in use: %w", d.path, old, now, ErrRange)
			d.failed.CompareAndSwap(nil, &err)
			return old, err
		}
		if d.size.CompareAndSwap(old, now) {
			return now, nil
		}
	}
}

// Close gives the disk free for others. It does not flush. Requests that come later fail with ErrClosed; the caller lets its own end first.
func (d *Disk) Close() error {
	if err := d.file.Close(); err != nil {
		return d.wrap("close", err)
	}
	return nil
}

// control runs system calls on the descriptor.
func (d *Disk) control(do func(fd int) error) error {
	var err error
	if d.conn.Control(func(fd uintptr) { err = do(int(fd)) }) != nil {
		return ErrClosed // the only reason for which Control fails
	}
	return err
}

// call is control that says in the error what failed.
func (d *Disk) call(op string, do func(fd int) error) error { return d.wrap(op, d.control(do)) }

// wrap adds the disk and the operation to err and translates to the errors of this package.
func (d *Disk) wrap(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrClosed):
		err = ErrClosed
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return fmt.Errorf("disk %s: %s: %w", d.path, op, err)
}
