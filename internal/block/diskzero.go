package block

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"mars/internal/vfs"
)

// Both modes work on files and on block devices. On a block device, PUNCH_HOLE makes the kernel zero the range by unmapping or by a zeroing
// command of the device, or fail; unlike BLKDISCARD, whose result may read as anything. ZERO_RANGE keeps the range mapped, and the kernel
// itself writes zeroes where the device has no command for it.
const (
	punchHole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	zeroRange = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
)

// Discard implements Device: the space is given back where that is possible, and the range reads as zeroes in any case.
func (d *Disk) Discard(off, n int64, f Flags) error {
	return d.WriteZeroes(off, n, f&FUA)
}

// WriteZeroes implements Device.
func (d *Disk) WriteZeroes(off, n int64, f Flags) error {
	return d.modify("write zeroes", request{off, n, f}, func(fd int) error {
		for _, mode := range d.zeroModes(f) {
			err := unix.Fallocate(fd, mode, off, n)
			for errors.Is(err, syscall.EINTR) {
				err = unix.Fallocate(fd, mode, off, n)
			}
			if !unsupported(err) {
				return err
			}
		}
		if f&FastZero != 0 {
			return ErrNotFast
		}
		return writeZeroes(fd, off, n)
	})
}

// zeroModes lists the ways of zeroing that the flags allow, the best first.
func (d *Disk) zeroModes(f Flags) []uint32 {
	var modes []uint32
	if f&NoHole == 0 {
		modes = append(modes, punchHole)
	}
	if !d.isDev || f&FastZero == 0 { // on a block device nobody can tell whether it would be fast
		modes = append(modes, zeroRange)
	}
	return modes
}

// unsupported tells whether fallocate cannot do it at all here. EINVAL is how a block device refuses a range that is not aligned to its
// logical blocks.
func unsupported(err error) bool {
	for _, is := range []error{syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EINVAL, syscall.ENODEV} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

var zeroes [256 << 10]byte

func writeZeroes(fd int, off, n int64) error {
	for n > 0 {
		var batch [][]byte
		size := int64(0)
		for len(batch) < 32 && size < n {
			b := zeroes[:min(int64(len(zeroes)), n-size)]
			batch, size = append(batch, b), size+int64(len(b))
		}
		if _, err := vfs.PwritevAll(fd, batch, off); err != nil {
			return err
		}
		off, n = off+size, n-size
	}
	return nil
}
