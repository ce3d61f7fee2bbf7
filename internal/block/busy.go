package block

import (
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// busyError says that the block device at path is in use, and by what as far as the system tells.
func busyError(path string) error {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return fmt.Errorf("disk %s: %w", path, ErrBusy)
	}
	dev := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	users := deviceUsers(os.DirFS("/"), dev)
	if len(users) == 0 {
		users = []string{"another process that has it open exclusively"}
	}
	return fmt.Errorf("disk %s: %w: %s", path, ErrBusy, strings.Join(users, ", "))
}

// deviceUsers describes what uses the block device MAJOR:MINOR or one of its partitions: mounts, swap, devices built on it. root is the
// root directory with sysfs and procfs mounted. It is best effort: what cannot be read is left out.
func deviceUsers(root fs.FS, dev string) []string {
	var users []string
	for _, id := range append([]string{dev}, partitions(root, dev)...) {
		name := deviceName(root, id)
		for _, dir := range mounts(root, id, name) {
			users = append(users, fmt.Sprintf("%s is mounted on %s", name, dir))
		}
		for _, holder := range names(root, "sys/dev/block/"+id+"/holders") {
			users = append(users, fmt.Sprintf("%s is used by %s", name, holder))
		}
		if isSwap(root, name) {
			users = append(users, name+" is swap")
		}
	}
	return users
}

// partitions returns the device numbers of the partitions of dev.
func partitions(root fs.FS, dev string) []string {
	var parts []string
	base := "sys/dev/block/" + dev + "/"
	for _, name := range names(root, base[:len(base)-1]) {
		if text(root, base+name+"/partition") != "" {
			parts = append(parts, text(root, base+name+"/dev"))
		}
	}
	return parts
}

// deviceName is the usual path of the device node, or the device number.
func deviceName(root fs.FS, dev string) string {
	for line := range strings.Lines(text(root, "sys/dev/block/"+dev+"/uevent")) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			return "/dev/" + name
		}
	}
	return "device " + dev
}

// mounts returns the mount points of the device. Some file systems show a number of their own, then the source tells.
func mounts(root fs.FS, dev, name string) []string {
	var dirs []string
	for line := range strings.Lines(text(root, "proc/self/mountinfo")) {
		w := strings.Fields(line)
		if len(w) < 10 {
			continue
		}
		if _, after, ok := strings.Cut(line, " - "); w[2] == dev || ok && strings.Contains(after, " "+name+" ") {
			dirs = append(dirs, w[4])
		}
	}
	return dirs
}

func isSwap(root fs.FS, name string) bool {
	for line := range strings.Lines(text(root, "proc/swaps")) {
		if w := strings.Fields(line); len(w) > 0 && w[0] == name {
			return true
		}
	}
	return false
}

func names(root fs.FS, dir string) []string {
	entries, err := fs.ReadDir(root, dir)
	if err != nil {
		return nil
	}
	list := make([]string, len(entries))
	for i, e := range entries {
		list[i] = e.Name()
	}
	return list
}

func text(root fs.FS, name string) string {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
