package loop

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"mars/internal/block"

	"golang.org/x/sys/unix"
)

// user is somebody who has a loop device open.
type user struct {
	what string
	// lasting users do not go away by themselves within a moment; a process may.
	lasting bool
}

// passingError is a block.ErrBusy that may be over in a moment.
type passingError struct{ who string }

func (e *passingError) Error() string { return "in use by " + e.who }
func (e *passingError) Unwrap() error { return block.ErrBusy }

// busyError is nil without users.
func busyError(users []user) error {
	if len(users) == 0 {
		return nil
	}
	who := strings.Join(names(users), ", ")
	if slices.ContainsFunc(users, func(u user) bool { return u.lasting }) {
		return fmt.Errorf("%w: %s", block.ErrBusy, who)
	}
	return &passingError{who}
}

func names(users []user) []string {
	var out []string
	for _, u := range users {
		out = append(out, u.what)
	}
	return out
}

// Users names whoever has the loop device open: mounts, in all mount namespaces that can be seen, devices stacked on it, swap, processes.
// It opens nothing, because an exclusive open just to look could make a mount fail that happens at the same time.
func (f *FrontEnd) Users() []string {
	return names(f.users())
}

// users is empty when the loop device is not ours (any more): its users are somebody else's.
func (f *FrontEnd) users() []user {
	if f.loop.backing() != f.place.file() {
		return nil
	}
	return f.loop.users(f.cfg.Link)
}

func (l loopDev) users(link string) []user {
	all := l.holders()
	all = append(all, l.swap()...)
	all = append(all, l.mounts("/proc/self/mountinfo", link, "")...)
	return append(all, l.processes(link)...)
}

func (l loopDev) holders() []user {
	entries, err := os.ReadDir(l.sys("holders"))
	if err != nil {
		return nil // a device without holders, on kernels that make the directory late
	}
	var out []user
	for _, e := range entries {
		out = append(out, user{what: "held by block device " + e.Name(), lasting: true})
	}
	return out
}

func (l loopDev) swap() []user {
	b, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return nil // a kernel without swap
	}
	for line := range bytes.Lines(b) {
		if name, _, _ := bytes.Cut(line, []byte(" ")); string(name) == l.node() {
			return []user{{what: "used as swap", lasting: true}}
		}
	}
	return nil
}

// mounts lists the mounts of the loop device in one mountinfo file. where tells the mount namespace in the words of the result.
func (l loopDev) mounts(file, link, where string) []user {
	var out []user
	for _, m := range readMountinfo(file) {
		ours := m.dev == fmt.Sprintf("%d:%d", loopMajor, int(l)) ||
			m.source == l.node() || (link != "" && m.source == link) // btrfs has a device number of its own
		if ours {
			out = append(out, user{what: "mounted on " + m.point + where, lasting: true})
		}
	}
	return out
}

// processes scans /proc for open descriptors, and for mount namespaces other than ours. This process does not count.
func (l loopDev) processes(link string) []user {
	pids, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil // cannot happen: the pattern is well-formed
	}
	own := strconv.Itoa(os.Getpid())
	home, _ := os.Readlink("/proc/self/ns/mnt") // empty: every namespace is looked at
	seen := map[string]bool{home: true}
	var out []user
	for _, dir := range pids {
		pid := filepath.Base(dir)
		if pid == own {
			continue
		}
		ns, err := os.Readlink(dir + "/ns/mnt")
		if err != nil {
			continue // it has ended
		}
		if !seen[ns] {
			seen[ns] = true
			out = append(out, l.mounts(dir+"/mountinfo", link, " in the mount namespace of "+describe(dir))...)
		}
		if l.openIn(dir) {
			out = append(out, user{what: "opened by " + describe(dir)})
		}
	}
	return out
}

// describe names a process: pid 4711 (mkfs.ext4).
func describe(dir string) string {
	comm, err := os.ReadFile(dir + "/comm")
	if err != nil {
		comm = []byte("ended")
	}
	return fmt.Sprintf("pid %s (%s)", filepath.Base(dir), bytes.TrimSpace(comm))
}

// openIn tells whether the process has the loop device open. Only what looks like a device node is looked at closer: a stat of anything else
// could hang on a dead network file system.
func (l loopDev) openIn(dir string) bool {
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return false // it has ended
	}
	for _, e := range fds {
		fd := dir + "/fd/" + e.Name()
		target, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(target, "/dev/") || strings.HasPrefix(target, "/dev/pts/") || target == "/dev/null" {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && uint64(st.Rdev) == unix.Mkdev(loopMajor, uint32(l)) {
			return true
		}
	}
	return false
}

// mountEntry is one line of a mountinfo file (proc_pid_mountinfo(5)).
type mountEntry struct{ dev, point, fstype, source string }

// readMountinfo returns nothing for a process that has ended.
func readMountinfo(file string) []mountEntry {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var out []mountEntry
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		if m, ok := parseMount(sc.Text()); ok {
			out = append(out, m)
		}
	}
	return out
}

func parseMount(line string) (mountEntry, bool) {
	head, tail, ok := strings.Cut(line, " - ")
	h, t := strings.Fields(head), strings.Fields(tail)
	if !ok || len(h) < 6 || len(t) < 2 {
		return mountEntry{}, false
	}
	return mountEntry{dev: h[2], point: unescape(h[4]), fstype: t[0], source: unescape(t[1])}, true
}

// unescape undoes the octal escapes (\040 for a blank) of mountinfo.
func unescape(s string) string {
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}
