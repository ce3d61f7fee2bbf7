package blockdev

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

// User is somebody who has a block device open.
type User struct {
	What string
	// Lasting users do not go away by themselves within a moment; a process may.
	Lasting bool
}

// PassingError is a block.ErrBusy that may be over in a moment.
type PassingError struct{ Who string }

func (e *PassingError) Error() string { return "in use by " + e.Who }
func (e *PassingError) Unwrap() error { return block.ErrBusy }

// Busy is nil without users, else a block.ErrBusy that names them; a PassingError when none of them is lasting.
func Busy(users []User) error {
	if len(users) == 0 {
		return nil
	}
	who := strings.Join(Names(users), ", ")
	if slices.ContainsFunc(users, func(u User) bool { return u.Lasting }) {
		return fmt.Errorf("%w: %s", block.ErrBusy, who)
	}
	return &PassingError{who}
}

// Names returns what users are, in words.
func Names(users []User) []string {
	var out []string
	for _, u := range users {
		out = append(out, u.What)
	}
	return out
}

// Users lists whoever has the disk or a partition of it open: devices stacked on it, swap, mounts in all mount namespaces that can be seen,
// processes. link is another name that it may have been mounted by; may be empty. It opens nothing, because an exclusive open just to look
// could make a mount fail that happens at the same time.
func (d Disk) Users(link string) []User {
	seen := sight{disk: d, link: link, numbers: d.numbers()}
	all := seen.holders()
	all = append(all, seen.swap()...)
	all = append(all, seen.mounts("/proc/self/mountinfo", "")...)
	return append(all, seen.processes()...)
}

// sight is how a disk shows in other places.
type sight struct {
	disk    Disk
	link    string
	numbers []uint64 // of the disk and its partitions
}

func (s *sight) holders() []User {
	var out []User
	for _, pattern := range []string{s.disk.Sys("holders", "*"), s.disk.Sys(string(s.disk)+"*", "holders", "*")} {
		for _, h := range glob(pattern) {
			out = append(out, User{What: "held by block device " + filepath.Base(h), Lasting: true})
		}
	}
	return out
}

func (s *sight) swap() []User {
	b, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return nil // a kernel without swap
	}
	for line := range bytes.Lines(b) {
		name, _, _ := bytes.Cut(line, []byte(" "))
		if s.named(string(name)) {
			return []User{{What: "used as swap", Lasting: true}}
		}
	}
	return nil
}

// named tells whether a path is the disk, its link, or a partition.
func (s *sight) named(path string) bool {
	if path == s.disk.Node() || (s.link != "" && path == s.link) {
		return true
	}
	part, ok := strings.CutPrefix(path, s.disk.Node()+"p")
	_, err := strconv.Atoi(part)
	return ok && err == nil
}

// mounts lists the mounts of the disk in one mountinfo file. where tells the mount namespace in the words of the result.
func (s *sight) mounts(file, where string) []User {
	var out []User
	for _, m := range ReadMountinfo(file) {
		if s.hasNumber(m.Dev) || s.named(m.Source) { // btrfs has a device number of its own
			out = append(out, User{What: "mounted on " + m.Point + where, Lasting: true})
		}
	}
	return out
}

// hasNumber tells whether "MAJOR:MINOR" is one of the disk.
func (s *sight) hasNumber(text string) bool {
	n, err := parseNumber(text)
	return err == nil && slices.Contains(s.numbers, n)
}

// processes scans /proc for open descriptors, and for mount namespaces other than ours. This process does not count.
func (s *sight) processes() []User {
	own := strconv.Itoa(os.Getpid())
	home, _ := os.Readlink("/proc/self/ns/mnt") // empty: every namespace is looked at
	seen := map[string]bool{home: true}
	var out []User
	for _, dir := range glob("/proc/[0-9]*") {
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
			out = append(out, s.mounts(dir+"/mountinfo", " in the mount namespace of "+describe(dir))...)
		}
		if s.openIn(dir) {
			out = append(out, User{What: "opened by " + describe(dir)})
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

// openIn tells whether the process has the disk open. Only what looks like a device node is looked at closer: a stat of anything else
// could hang on a dead network file system.
func (s *sight) openIn(dir string) bool {
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
		if unix.Stat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && slices.Contains(s.numbers, uint64(st.Rdev)) {
			return true
		}
	}
	return false
}

// MountEntry is one line of a mountinfo file (proc_pid_mountinfo(5)).
type MountEntry struct{ Dev, Point, FSType, Source string }

// ReadMountinfo returns nothing for a process that has ended.
func ReadMountinfo(file string) []MountEntry {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var out []MountEntry
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		if m, ok := parseMount(sc.Text()); ok {
			out = append(out, m)
		}
	}
	return out
}

func parseMount(line string) (MountEntry, bool) {
	head, tail, ok := strings.Cut(line, " - ")
	h, t := strings.Fields(head), strings.Fields(tail)
	if !ok || len(h) < 6 || len(t) < 2 {
		return MountEntry{}, false
	}
	return MountEntry{Dev: h[2], Point: unescape(h[4]), FSType: t[0], Source: unescape(t[1])}, true
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
