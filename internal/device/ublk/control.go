package ublk

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"mars/internal/device/blockdev"
	"mars/internal/iouring"

	"golang.org/x/sys/unix"
)

const (
	controlNode = "/dev/ublk-control"
	sysChar     = "/sys/class/ublk-char"
)

// control carries out one command of the control device. buf, which may be nil, is read or filled by the kernel. It may take as long as the
// kernel does: commands that wait for a queue must not be given by the queue's own thread.
func control(op uint32, device uint32, data uint64, buf []byte) error {
	fd, err := unix.Open(controlNode, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", controlNode, err)
	}
	defer unix.Close(fd) // nothing was written
	ring, err := iouring.Open(1, iouring.Shared)
	if err != nil {
		return err
	}
	defer ring.Close() // what matters has been completed
	cmd := ctlCmd{device: device, data: data}
	var pin runtime.Pinner
	defer pin.Unpin()
	if len(buf) > 0 {
		pin.Pin(&buf[0])
		cmd.addr, cmd.len = uint64(uintptr(unsafe.Pointer(&buf[0]))), uint16(len(buf))
	}
	cmd.encode(ring.Next().Command(fd, op, 0))
	for {
		if err := ring.Enter(1); err != nil {
			return err
		}
		if c, ok := ring.Completed(); ok {
			return errnoOf(c.Result)
		}
	}
}

func errnoOf(result int32) error {
	if result < 0 {
		return unix.Errno(-result)
	}
	return nil
}

// number is the number of a ublk device.
type number uint32

func (n number) disk() blockdev.Disk { return blockdev.Disk(fmt.Sprintf("ublkb%d", n)) }
func (n number) char() string        { return fmt.Sprintf("/dev/ublkc%d", n) }

func (n number) command(op uint32, data uint64, buf []byte) error {
	return control(op, uint32(n), data, buf)
}

func (n number) info() (info, error) {
	b := make([]byte, infoSize)
	if err := n.command(ctlGetInfo, 0, b); err != nil {
		return info{}, fmt.Errorf("ask for ublk device %d: %w", n, err)
	}
	return decodeInfo(b), nil
}

func (n number) geometry() (geometry, error) {
	b := make([]byte, paramsSize)
	native.PutUint32(b, paramsSize)
	if err := n.command(ctlGetParams, 0, b); err != nil {
		return geometry{}, fmt.Errorf("ask for the parameters of ublk device %d: %w", n, err)
	}
	return decodeGeometry(b), nil
}

// kernelFeatures returns what the driver can do.
func kernelFeatures() (uint64, error) {
	b := make([]byte, 8)
	err := control(ctlGetFeatures, noDevice, 0, b)
	return native.Uint64(b), err
}

// fits tells whether this version can serve the device.
func (i *info) fits() bool {
	return i.queues == 1 && i.depth == depth && i.maxRequest == maxRequest && i.features&features == features
}

// addDevice makes a device that is not started yet.
func addDevice(cookie uint64, g geometry) (number, error) {
	i := info{queues: 1, depth: depth, maxRequest: maxRequest, device: noDevice, features: features, cookie: cookie}
	b := i.encode()
	if err := control(ctlAdd, noDevice, 0, b); err != nil {
		return 0, fmt.Errorf("add a ublk device: %w", err)
	}
	made := decodeInfo(b)
	n := number(made.device)
	if !made.fits() {
		return 0, errors.Join(fmt.Errorf("ublk device %d is not what was asked for: %+v", n, made), n.remove())
	}
	if err := n.command(ctlSetParams, 0, g.encode()); err != nil {
		return 0, errors.Join(fmt.Errorf("set up ublk device %d: %w", n, err), n.remove())
	}
	return n, nil
}

// stop takes the block device away: what is under way and what comes later fails, openers keep a dead device.
func (n number) stop() error {
	if err := n.command(ctlStop, 0, nil); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("stop ublk device %d: %w", n, err)
	}
	return nil
}

// remove takes a device away, started or not. Its number is free again when the last opener has closed it; remove does not wait for that,
// except on kernels before 6.9.
func (n number) remove() error {
	if err := n.stop(); err != nil {
		return err
	}
	err := n.command(ctlDeleteAsync, 0, nil)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = n.command(ctlDelete, 0, nil)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete ublk device %d: %w", n, err)
	}
	return nil
}

// devices returns all ublk devices that we may ask for, by their cookies.
func devices() (map[uint64]info, error) {
	dirs, err := filepath.Glob(sysChar + "/ublkc[0-9]*")
	if err != nil {
		return nil, err
	}
	all := make(map[uint64]info)
	for _, dir := range dirs {
		n, err := strconv.ParseUint(strings.TrimPrefix(filepath.Base(dir), "ublkc"), 10, 32)
		if err != nil {
			continue
		}
		i, err := number(n).info()
		switch {
		case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM): // gone, or an unprivileged user's
		case err != nil:
			return nil, err
		default:
			all[i.cookie] = i
		}
	}
	return all, nil
}
