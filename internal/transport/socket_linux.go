package transport

import (
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// userTimeout is how long the kernel keeps trying to deliver bytes that nobody acknowledges. It is longer than any liveness window, and
// shorter than the kernel's own patience of a quarter of an hour.
const userTimeout = 30 * time.Second

// setUserTimeout is best effort: it only makes the end of a dead connection known earlier.
func setUserTimeout(c net.Conn) error {
	return control(c, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
}

// setDSCP marks the packets that c sends. A host whose addresses are of one kind only rejects the option of the other kind.
func setDSCP(c net.Conn, dscp int) error {
	return control(c, func(fd int) error {
		err4 := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, dscp<<2)
		err6 := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, dscp<<2)
		if err4 != nil && err6 != nil {
			return fmt.Errorf("set DSCP %d: %w", dscp, errors.Join(err4, err6))
		}
		return nil
	})
}

// control calls f with the descriptor of c; connections that have none (in tests) are left alone.
func control(c net.Conn, f func(fd int) error) error {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	err = raw.Control(func(fd uintptr) { opErr = f(int(fd)) })
	return errors.Join(err, opErr)
}
