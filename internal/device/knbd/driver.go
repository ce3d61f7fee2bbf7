package knbd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mars/internal/device/blockdev"

	"golang.org/x/sys/unix"
)

// What the driver is asked for (include/uapi/linux/nbd-netlink.h).
const (
	familyName    = "nbd"
	familyVersion = 1

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3

	attrIndex       = 1
	attrSize        = 2
	attrBlockSize   = 3
	attrTimeout     = 4
	attrServerFlags = 5
	attrSockets     = 7
	attrDeadTimeout = 8
	attrBackend     = 10

	socketItem = 1 // in attrSockets
	socketFD   = 1 // in a socketItem
)

// What the server can do (include/uapi/linux/nbd.h); a driver ignores what it does not know, as older ones do flagWriteZeroes.
const (
	flagHasFlags    = 1 << 0
	flagFlush       = 1 << 2
	flagFUA         = 1 << 3
	flagTrim        = 1 << 5
	flagWriteZeroes = 1 << 6

	serverFlags = flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes
)

// errNoDriver: the kernel has no nbd driver, or none that can be used.
var errNoDriver = errors.New("no usable nbd driver in the kernel (modprobe nbd?)")

// driver talks to the kernel's nbd driver. Each command is one short conversation over a socket of its own.
type driver struct{ family uint16 }

// findDriver asks the kernel for its nbd driver. One without backend identifiers (before Linux 5.15) is of no use: a device whose owner is
// unknown must not be touched.
func findDriver() (driver, error) {
	ask := message{kind: typeControl, cmd: controlGetFamily, attrs: appendString(nil, controlFamilyName, familyName)}
	answer, err := ask.converse()
	if errors.Is(err, unix.ENOENT) {
		return driver{}, errNoDriver
	}
	if err != nil {
		return driver{}, fmt.Errorf("look for the nbd driver: %w", err)
	}
	id, err1 := findUint(answer.attrs, controlFamilyID)
	attrs, err2 := findUint(answer.attrs, controlMaxAttr)
	if err := errors.Join(err1, err2); err != nil {
		return driver{}, fmt.Errorf("look for the nbd driver: %w", err)
	}
	if attrs < attrBackend {
		return driver{}, fmt.Errorf("%w: it has no backend identifiers (Linux 5.15 or later is needed)", errNoDriver)
	}
	return driver{family: uint16(id)}, nil
}

// settings are a new device.
type settings struct {
	size      int64
	blockSize int
	backend   string
	sock      int // the kernel's end of the connection
}

// connect makes a device at the first free index.
func (d driver) connect(s settings) (index uint32, err error) {
	a := appendUint64(nil, attrSize, uint64(s.size))
	a = appendUint64(a, attrBlockSize, uint64(s.blockSize))
	a = appendUint64(a, attrServerFlags, serverFlags)
	a = appendUint64(a, attrDeadTimeout, uint64(deadTimeout.Seconds()))
	a = appendUint64(a, attrTimeout, 0) // no request is ever given up, see the package comment
	a = appendString(a, attrBackend, s.backend)
	answer, err := d.call(cmdConnect, appendSocket(a, s.sock))
	if err == nil {
		index, err = findUint(answer.attrs, attrIndex)
	}
	if err != nil {
		return 0, fmt.Errorf("connect nbd device: %w", err)
	}
	return index, nil
}

// reconnect gives a device another connection in place of its broken one. The kernel reports success also when none is broken, and closes the
// socket then. It refuses another's device.
func (d driver) reconnect(index uint32, backend string, sock int) error {
	_, err := d.call(cmdReconfigure, appendSocket(ours(index, backend), sock))
	return wrap("reconnect", index, err)
}

// resize waits for the requests in flight. It refuses another's device.
func (d driver) resize(index uint32, backend string, size int64) error {
	_, err := d.call(cmdReconfigure, appendUint64(ours(index, backend), attrSize, uint64(size)))
	return wrap("resize", index, err)
}

// release fails all requests of a device, now and later. It is gone when nobody has it open. Whoever gets its number next finds the request timer
// as it is by default. That must not be set through sysfs here: the kernel would wait for requests in flight that nobody answers any more.
func (d driver) release(index uint32, backend string) error {
	_, _ = d.call(cmdReconfigure, appendUint64(ours(index, backend), attrTimeout, 0)) // fails if somebody has disconnected it
	_, err := d.call(cmdDisconnect, appendUint32(nil, attrIndex, index))
	return wrap("disconnect", index, err)
}

func ours(index uint32, backend string) []byte {
	return appendString(appendUint32(nil, attrIndex, index), attrBackend, backend)
}

func appendSocket(b []byte, fd int) []byte {
	item := appendAttr(nil, attrNested|socketItem, appendUint32(nil, socketFD, uint32(fd)))
	return appendAttr(b, attrNested|attrSockets, item)
}

func wrap(what string, index uint32, err error) error {
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, diskOf(index).Node(), err)
	}
	return nil
}

func (d driver) call(cmd uint8, attrs []byte) (message, error) {
	m := message{kind: d.family, cmd: cmd, attrs: attrs}
	return m.converse()
}

// maxAnswer bounds a datagram of the kernel; the controller's description of a family is the largest.
const maxAnswer = 64 << 10

// converse sends m and returns the answer, which has attributes only if the command has any to give. It blocks the thread, not only the
// goroutine, as long as the kernel works on the command.
func (m *message) converse() (answer message, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return answer, fmt.Errorf("netlink socket: %w", err)
	}
	defer unix.Close(fd)
	m.seq = 1
	if err := unix.Sendto(fd, m.append(nil), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return answer, fmt.Errorf("send to the kernel: %w", err)
	}
	buf := make([]byte, maxAnswer)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return answer, fmt.Errorf("receive from the kernel: %w", err)
		}
		if k, ok := from.(*unix.SockaddrNetlink); !ok || k.Pid != 0 {
			continue // not the kernel's word
		}
		done, err := m.take(&answer, buf[:n])
		if done || err != nil {
			return answer, err
		}
	}
}

// take adds what is in one datagram to the answer; done when that was its end.
func (m *message) take(answer *message, b []byte) (done bool, err error) {
	for len(b) > 0 {
		var got message
		if got, b, err = parseMessage(b); err != nil {
			return false, err
		}
		switch {
		case got.seq != m.seq:
		case got.kind != typeError:
			got.attrs = append([]byte(nil), got.attrs...)
			*answer = got
		case got.errno != 0:
			return true, got.errno
		default:
			return true, nil
		}
	}
	return false, nil
}

// diskOf is the block device of an index.
func diskOf(index uint32) blockdev.Disk { return blockdev.Disk(fmt.Sprintf("nbd%d", index)) }

// find returns the device with the backend identifier. It opens nothing.
func find(backend string) (index uint32, ok bool) {
	for _, file := range backendFiles() {
		b, err := os.ReadFile(file)
		if err != nil || strings.TrimSuffix(string(b), "\n") != backend {
			continue // it has gone, or is another's
		}
		n, err := strconv.ParseUint(strings.TrimPrefix(filepath.Base(filepath.Dir(file)), "nbd"), 10, 32)
		return uint32(n), err == nil
	}
	return 0, false
}

func backendFiles() []string {
	files, err := filepath.Glob("/sys/block/nbd*/backend")
	if err != nil {
		panic(err) // says that the pattern is malformed, and nothing else
	}
	return files
}

// setTimer says how long the driver waits for an answer, to requests to come, before it looks whether they have to be sent again. The kernel waits
// for those in flight, and lets no others in meanwhile.
func setTimer(index uint32, d time.Duration) error {
	if now, err := sysUint(index, "queue", "io_timeout"); err == nil && now == d.Milliseconds() {
		return nil
	}
	ms := strconv.FormatInt(d.Milliseconds(), 10)
	return os.WriteFile(diskOf(index).Sys("queue", "io_timeout"), []byte(ms), 0)
}

// sysUint reads an attribute of the disk.
func sysUint(index uint32, elem ...string) (int64, error) {
	b, err := os.ReadFile(diskOf(index).Sys(elem...))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// hungUp tells whether the other end of a socket has been closed.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	for {
		_, err := unix.Poll(p, 0)
		if err == nil || !errors.Is(err, syscall.EINTR) {
			return err == nil && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0
		}
	}
}
