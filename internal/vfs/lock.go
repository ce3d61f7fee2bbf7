package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrLocked: another process, or another part of this one, holds the lock.
var ErrLocked = errors.New("locked")

// Lock takes the lock file name for this process, creating it if need be, until the Closer is closed or the process ends, however it ends.
// It does not wait: when the lock is taken the error is ErrLocked and names the file and, if that can be found out, the holder.
// The file stays when the lock is released and holds the process id of its last owner.
func Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockAndSign(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func lockAndSign(f *os.File) error {
	if err := Flock(f); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// Flock takes an exclusive flock on f without waiting. It ends when f is closed. The error is ErrLocked when it is taken and then names the
// file and, if that can be found out, the holder.
func Flock(f *os.File) error {
	err := retryEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err == nil {
		return nil
	}
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if who := holder(f); who != "" {
		return fmt.Errorf("%s is %w by %s", f.Name(), ErrLocked, who)
	}
	return fmt.Errorf("%s is %w by another process", f.Name(), ErrLocked)
}

// holder describes the process that holds the flock of f: as the kernel knows it, else (a process of another namespace, an exotic file
// system) as the file itself says. Empty if unknown.
func holder(f *os.File) string {
	pid := kernelHolder(f)
	if pid <= 0 {
		pid = signedHolder(f)
	}
	if pid <= 0 {
		return ""
	}
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
		return fmt.Sprintf("process %d (%s)", pid, bytes.TrimSpace(comm))
	}
	return fmt.Sprintf("process %d", pid)
}

func kernelHolder(f *os.File) int {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	table, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	id := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	return holderIn(string(table), id)
}

// holderIn finds the owner of a flock in the text of /proc/locks, 0 if there is none. Lines are like
//
//	1: FLOCK  ADVISORY  WRITE 4711 fd:01:1234 0 EOF
func holderIn(table, id string) int {
	for line := range strings.Lines(table) {
		w := strings.Fields(line)
		if len(w) >= 6 && w[1] == "FLOCK" && w[5] == id {
			pid, err := strconv.Atoi(w[4])
			if err == nil {
				return pid
			}
		}
	}
	return 0
}

func signedHolder(f *os.File) int {
	var buf [32]byte
	n, _ := f.ReadAt(buf[:], 0) // best effort: io.EOF is the normal end
	pid, err := strconv.Atoi(string(bytes.TrimSpace(buf[:n])))
	if err != nil {
		return 0
	}
	return pid
}
