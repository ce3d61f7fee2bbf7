package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"mars/internal/block"
	"mars/internal/device/blockdev"

	"golang.org/x/sys/unix"
)

const (
	loopControl = "/dev/loop-control"
	loopMajor   = 7
	sysBlock    = "/sys/block"
	// attachTries bounds the races for a free loop device that one attachLoop may lose.
	attachTries = 128
)

// errForeign: the loop device is not bound to our file (any more).
var errForeign = errors.New("loop device is not bound to this resource")

// loopDev is the number of a loop device.
type loopDev int

const noLoop loopDev = -1

func (l loopDev) disk() blockdev.Disk { return blockdev.Disk(fmt.Sprintf("loop%d", int(l))) }

func (l loopDev) node() string {
	if l == noLoop {
		return ""
	}
	return l.disk().Node()
}

func (l loopDev) sys(elem ...string) string {
	return l.disk().Sys(elem...)
}

// backing is the path of the file that the loop device is bound to; empty when it is not bound. Read from sysfs, so that neither the loop
// device nor a dead file system is touched.
func (l loopDev) backing() string {
	b, err := os.ReadFile(l.sys("loop", "backing_file"))
	if err != nil {
		return "" // the file exists only while the device is bound
	}
	// A dead FUSE file system makes the kernel forget the name, and say so.
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), " (deleted)")
}

// attachLoop binds a free loop device to file.
func attachLoop(file string, cfg Config) (loopDev, error) {
	backing, err := unix.Open(file, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return noLoop, fmt.Errorf("open %s: %w", file, err)
	}
	defer unix.Close(backing) // the loop device has its own reference
	conf := unix.LoopConfig{Fd: uint32(backing), Size: uint32(cfg.BlockSize)}
	conf.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	copy(conf.Info.File_name[:len(conf.Info.File_name)-1], "mars:"+cfg.Name)
	for range attachTries {
		l, err := freeLoop()
		if err != nil {
			return noLoop, err
		}
		if err = l.configure(&conf); err == nil {
			return l, nil
		}
		// EBUSY: somebody else was faster. ENXIO: the device was removed, or is being detached.
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) {
			return noLoop, err
		}
	}
	return noLoop, fmt.Errorf("no free loop device in %d tries: %w", attachTries, block.ErrBusy)
}

func freeLoop() (loopDev, error) {
	fd, err := unix.Open(loopControl, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return noLoop, fmt.Errorf("open %s: %w", loopControl, err)
	}
	defer unix.Close(fd)
	n, err := unix.IoctlRetInt(fd, unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return noLoop, fmt.Errorf("find a free loop device: %w", err)
	}
	return loopDev(n), nil
}

func (l loopDev) configure(conf *unix.LoopConfig) error {
	if err := blockdev.EnsureNode(l.node(), unix.Mkdev(loopMajor, uint32(l))); err != nil {
		return err
	}
	fd, err := unix.Open(l.node(), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", l.node(), err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlLoopConfigure(fd, conf); err != nil {
		return fmt.Errorf("configure %s (Linux 5.8 or later is needed): %w", l.node(), err)
	}
	return nil
}

// verifyLoop makes sure that the kernel did what it was asked for: it turns direct IO off silently when it finds a reason.
func verifyLoop(l loopDev, size int64) error {
	fd, err := unix.Open(l.node(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", l.node(), err)
	}
	d := &boundLoop{loopDev: l, fd: fd}
	defer d.close()
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return fmt.Errorf("status of %s: %w", l.node(), err)
	}
	if info.Flags&unix.LO_FLAGS_DIRECT_IO == 0 {
		return fmt.Errorf("%s: the kernel refused direct IO", l.node())
	}
	return d.checkSize(size)
}

// waitDetached waits until the kernel has given up the loop device's reference to file.
func (l loopDev) waitDetached(ctx context.Context, file string) error {
	return blockdev.Poll(ctx, "wait for "+l.node()+" to be detached", func() (bool, error) {
		return l.backing() != file, nil
	})
}

// forceDetach gives the loop device up, users or not. With users it goes when the last of them closes it.
func (l loopDev) forceDetach(file string) error {
	if l == noLoop {
		return nil
	}
	d, err := l.openBound(file, 0)
	if errors.Is(err, errForeign) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.close()
	return d.clear()
}

// boundLoop is an open loop device that is bound to our file, and stays so until it is closed: the kernel does not release a loop device
// that somebody has open.
type boundLoop struct {
	loopDev
	fd int
}

// openBound opens the node and makes sure that the device is ours. Opened for reading only, because udev probes after every close of a writer.
func (l loopDev) openBound(file string, flags int) (*boundLoop, error) {
	if l.backing() != file {
		return nil, fmt.Errorf("%s: %w", l.node(), errForeign)
	}
	fd, err := unix.Open(l.node(), unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, &blockdev.PassingError{Who: "an exclusive opener (perhaps a mount in another mount namespace)"}
	case errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("%s: %w", l.node(), errForeign)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", l.node(), err)
	}
	d := &boundLoop{loopDev: l, fd: fd}
	if l.backing() != file {
		d.close()
		return nil, fmt.Errorf("%s: %w", l.node(), errForeign)
	}
	return d, nil
}

// close drops the descriptor. It was opened for reading, there is nothing to lose.
func (d *boundLoop) close() { _ = unix.Close(d.fd) }

func (d *boundLoop) setCapacity() error {
	if err := unix.IoctlSetInt(d.fd, unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("set capacity of %s: %w", d.node(), err)
	}
	return nil
}

func (d *boundLoop) checkSize(want int64) error {
	got, err := unix.Seek(d.fd, 0, unix.SEEK_END)
	if err != nil {
		return fmt.Errorf("size of %s: %w", d.node(), err)
	}
	if got < want { // more is possible: the Device may have grown since
		return fmt.Errorf("%s has %d bytes, its device %d", d.node(), got, want)
	}
	return nil
}

func (d *boundLoop) clear() error {
	if err := unix.IoctlSetInt(d.fd, unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w", d.node(), err)
	}
	return nil
}

// detach gives the loop device up if d is its only opener. The kernel decides that atomically: LOOP_CLR_FD either shuts new openers out,
// or, when there are others, only marks the device to be released on the last close. That mark is taken back here, which cannot be too late,
// because d itself is open.
func (d *boundLoop) detach() error {
	if err := d.clear(); err != nil {
		return err
	}
	info, err := unix.IoctlLoopGetStatus64(d.fd)
	if errors.Is(err, unix.ENXIO) {
		return nil // no longer bound
	}
	if err != nil {
		return fmt.Errorf("status of %s: %w", d.node(), err)
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(d.fd, info); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("keep %s: %w", d.node(), err)
	}
	return &blockdev.PassingError{Who: "an opener that is not visible from here"}
}

// statSize makes the kernel ask for the file's size and checks it.
func statSize(file string, want int64) error {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return fmt.Errorf("size of %s: %w", file, err)
	}
	if st.Size < want {
		return fmt.Errorf("size of %s: the kernel sees %d bytes of %d", file, st.Size, want)
	}
	return nil
}

// detachDeadline is a context for clean-up that nobody asked to bound.
func detachDeadline() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.Background(), detachTimeout,
		fmt.Errorf("not done after %v", detachTimeout.Round(time.Second)))
}
