package nbd

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"unicode"
)

// peerName names the process or the host at the other end, for operators: "pid 4711 (qemu-img)" or "192.0.2.7:54321".
func peerName(nc net.Conn) string {
	if u, ok := nc.(*net.UnixConn); ok {
		return unixPeerName(u)
	}
	return nc.RemoteAddr().String()
}

// maxSubject bounds in bytes what is shown of the name in a certificate.
const maxSubject = 64

// peer names the other end; with the name in its certificate if it has shown one: "192.0.2.7:54321 (host7)".
func (c *conn) peer() string {
	name := peerName(c.raw)
	over, ok := c.nc.(*tls.Conn)
	if !ok {
		return name
	}
	chain := over.ConnectionState().PeerCertificates
	if len(chain) == 0 || chain[0].Subject.CommonName == "" {
		return name
	}
	subject := chain[0].Subject.CommonName
	return fmt.Sprintf("%s (%s)", name, printable(subject[:min(len(subject), maxSubject)]))
}

func unixPeerName(u *net.UnixConn) string {
	cred, err := peerCredentials(u)
	if err != nil {
		return "unknown process"
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cred.Pid))
	if err != nil { // it is in another pid namespace, or has ended already
		return fmt.Sprintf("pid %d", cred.Pid)
	}
	return fmt.Sprintf("pid %d (%s)", cred.Pid, printable(string(comm)))
}

func peerCredentials(u *net.UnixConn) (cred *syscall.Ucred, err error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if ctlErr != nil {
		return nil, ctlErr
	}
	return cred, err
}

// printable: a process chooses its name itself, and may try to play tricks with terminals and logs.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.TrimSuffix(s, "\n"))
}
