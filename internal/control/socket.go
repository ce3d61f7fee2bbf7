package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// SocketName is the name of the control socket in the daemon's DIR.
const SocketName = "marsd.sock"

// maxSunPath is what fits into a sockaddr_un, without its NUL.
const maxSunPath = 107

// reachable returns a name for the socket at path that fits into a socket address: long paths go through a descriptor of their directory.
// done releases it.
func reachable(path string) (short string, done func(), err error) {
	if len(path) <= maxSunPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	short = filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), filepath.Base(path))
	return short, func() { dir.Close() }, nil
}

// listen makes the socket at path, for the daemon's user only. A socket that a dead daemon left there is replaced: the caller holds the lock
// on DIR, so that it cannot be a living one's. Anything else in its place is left alone and reported.
func listen(path string) (*net.UnixListener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	short, done, err := reachable(path)
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make control socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // it would use the short name, which may be void by then; Serve removes the socket
	// Until here the umask decides about the mode. That is no hole: every connection's uid is checked, too.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("make control socket: %w", err), l.Close())
	}
	return l, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make control socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("make control socket: %s exists and is not a socket: move it away", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove stale control socket: %w", err)
	}
	return nil
}

// caller is the process at the other end of a connection, as the kernel vouches for it.
type caller struct {
	uid uint32
	pid int32
}

func peerOf(conn net.Conn) (caller, error) {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return caller{}, fmt.Errorf("control connection is a %T, not a Unix socket", conn)
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return caller{}, err
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return caller{}, fmt.Errorf("ask who is calling: %w", err)
	}
	return caller{uid: cred.Uid, pid: cred.Pid}, nil
}

// limited is a listener that stops accepting while too many of its connections are open; further callers wait in the backlog.
type limited struct {
	*net.UnixListener
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newLimited(l *net.UnixListener, conns int) *limited {
	return &limited{UnixListener: l, slots: make(chan struct{}, conns), closed: make(chan struct{})}
}

// Accept returns the next connection; its Close frees the slot.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &slotConn{UnixConn: conn, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close ends Accept, also one that waits for a slot.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.UnixListener.Close()
}

type slotConn struct {
	*net.UnixConn
	free func()
}

// Close closes the connection and lets the next caller in.
func (c *slotConn) Close() error {
	defer c.free()
	return c.UnixConn.Close()
}
