// Package blockdev is what front ends that make kernel block devices have in common: who uses such a device, its node in /dev, the stable link
// to it, and waiting for the kernel. It only looks and names; it knows nothing about who made a device or why.
package blockdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const sysBlock = "/sys/block"

// Disk is a kernel block device by its name in sysfs: "loop3".
type Disk string

// Node is its node in /dev.
func (d Disk) Node() string { return "/dev/" + string(d) }

// Sys is a path below its directory in sysfs.
func (d Disk) Sys(elem ...string) string {
	return filepath.Join(append([]string{sysBlock, string(d)}, elem...)...)
}

// Number is the device number of the disk.
func (d Disk) Number() (uint64, error) { return readNumber(d.Sys("dev")) }

// numbers returns the device numbers of the disk and its partitions; nothing when it does not exist.
func (d Disk) numbers() []uint64 {
	var out []uint64
	for _, file := range append(glob(d.Sys(string(d)+"*", "dev")), d.Sys("dev")) {
		if n, err := readNumber(file); err == nil { // else it has gone
			out = append(out, n)
		}
	}
	return out
}

func readNumber(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return parseNumber(strings.TrimSpace(string(b)))
}

// parseNumber parses MAJOR:MINOR.
func parseNumber(text string) (uint64, error) {
	major, minor, _ := strings.Cut(text, ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return 0, fmt.Errorf("device number %q: %w", text, err)
	}
	return unix.Mkdev(uint32(a), uint32(b)), nil
}

// glob is filepath.Glob for patterns that are well-formed.
func glob(pattern string) []string {
	names, err := filepath.Glob(pattern)
	if err != nil {
		panic(err) // says that the pattern is malformed, and nothing else
	}
	return names
}

// EnsureNode makes a device node where no udev does it (containers), and makes sure that it is the right one.
func EnsureNode(node string, number uint64) error {
	var st unix.Stat_t
	err := unix.Stat(node, &st)
	if errors.Is(err, unix.ENOENT) {
		if err := unix.Mknod(node, unix.S_IFBLK|0o660, int(number)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make node %s: %w", node, err)
		}
		err = unix.Stat(node, &st)
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || uint64(st.Rdev) != number {
		return fmt.Errorf("%s is not block device %d:%d", node, unix.Major(number), unix.Minor(number))
	}
	return nil
}

const pollInterval = 5 * time.Millisecond

// Pause waits for one poll interval, or fails when ctx ends.
func Pause(ctx context.Context) error {
	t := time.NewTimer(pollInterval)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Poll calls step until it says it is done or fails. The kernel has no notification for the states that we wait for.
func Poll(ctx context.Context, what string, step func() (done bool, err error)) error {
	for {
		done, err := step()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if done {
			return nil
		}
		if err := Pause(ctx); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}
