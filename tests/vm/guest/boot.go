package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// boot leaves the machine with everything mounted, the network up and the file system tree that programs expect.
func boot() error {
	for _, step := range []func() error{kernelTrees, loadModules, root, enterRoot, links, network} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

type mount struct{ what, where, kind, data string }

func (m mount) do() error {
	if err := os.MkdirAll(m.where, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.what, m.where, m.kind, 0, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.what, m.where, err)
	}
	return nil
}

func mountAll(list ...mount) error {
	for _, m := range list {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

func kernelTrees() error {
	return mountAll(mount{"proc", "/proc", "proc", ""}, mount{"sys", "/sys", "sysfs", ""}, mount{"dev", "/dev", "devtmpfs", ""})
}

// param returns what the kernel's command line says after "mars.NAME=".
func param(name string) string {
	line, _ := os.ReadFile("/proc/cmdline")
	for word := range strings.FieldsSeq(string(line)) {
		if v, ok := strings.CutPrefix(word, "mars."+name+"="); ok {
			return v
		}
	}
	return ""
}

// loadModules loads what is needed to find the root file system, in the order in which the initramfs has it.
func loadModules() error {
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(order)) {
		if err := loadModule(filepath.Join("/modules", name)); err != nil {
			return err
		}
	}
	return nil
}

const compressed = 4 // MODULE_INIT_COMPRESSED_FILE

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(path, ".ko") {
		flags = compressed
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

// root mounts the root file system, which all machines share and nobody may change, under a layer in memory.
func root() error {
	dev, err := diskOf("root")
	if err != nil {
		return err
	}
	if err := os.MkdirAll("/lower", 0o755); err != nil {
		return err
	}
	if err := unix.Mount(dev, "/lower", "ext4", unix.MS_RDONLY, "noload"); err != nil {
		return fmt.Errorf("mount %s: %w", dev, err)
	}
	if err := mountAll(mount{"layer", "/layer", "tmpfs", "mode=755"}); err != nil {
		return err
	}
	for _, dir := range []string{"/layer/upper", "/layer/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return mountAll(mount{"root", "/new", "overlay", "lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work"})
}

// diskOf finds a disk by the serial number that the lab has given it.
func diskOf(serial string) (string, error) {
	files, err := filepath.Glob("/sys/block/vd*/serial")
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && string(bytes.TrimSpace(b)) == serial {
			return "/dev/" + filepath.Base(filepath.Dir(f)), nil
		}
	}
	return "", fmt.Errorf("no disk %q among %q", serial, files)
}

// enterRoot makes /new the root. The initramfs stays below /host, for its programs.
func enterRoot() error {
	for _, dir := range []string{"/proc", "/sys", "/dev", "/host"} {
		to := "/new" + dir
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		flags := uintptr(unix.MS_MOVE)
		if dir == "/host" {
			flags = unix.MS_BIND
		}
		if err := unix.Mount(dir, to, "", flags, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	if err := os.Chdir("/new"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := errors.Join(unix.Chroot("."), os.Chdir("/")); err != nil {
		return err
	}
	return mountAll(mount{"pts", "/dev/pts", "devpts", ""}, mount{"shm", "/dev/shm", "tmpfs", ""}, mount{"tmp", "/tmp", "tmpfs", ""},
		mount{"run", "/run", "tmpfs", "mode=755"}, mount{"debug", "/sys/kernel/debug", "debugfs", ""})
}

// links gives every disk of the lab a name, /dev/lab/NAME, and the standard streams theirs.
func links() error {
	files, err := filepath.Glob("/sys/block/vd*/serial")
	if err != nil {
		return err
	}
	to := map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2"}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && len(b) > 0 {
			to["/dev/lab/"+string(bytes.TrimSpace(b))] = "/dev/" + filepath.Base(filepath.Dir(f))
		}
	}
	for from, target := range to {
		if err := errors.Join(os.MkdirAll(filepath.Dir(from), 0o755), os.Symlink(target, from)); err != nil {
			return err
		}
	}
	return nil
}

// network gives node I of N the name nI and the address 10.77.0.I.
func network() error {
	nodes, err := strconv.Atoi(param("nodes"))
	if err != nil {
		return err
	}
	hosts := "127.0.0.1 localhost\n"
	for i := 1; i <= nodes; i++ {
		hosts += fmt.Sprintf("10.77.0.%d n%d\n", i, i)
	}
	if err := errors.Join(os.WriteFile("/etc/hosts", []byte(hosts), 0o644), unix.Sethostname([]byte("n"+param("node")))); err != nil {
		return err
	}
	for _, args := range []string{"link set lo up", "addr add 10.77.0." + param("node") + "/24 dev eth0", "link set eth0 up"} {
		cmd := exec.Command("/usr/sbin/ip", strings.Fields(args)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	return nil
}

// environ is the environment of the agent and of all that it runs.
func environ() []string {
	return []string{
		"PATH=/host/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=dumb", "LC_ALL=C", "DM_DISABLE_UDEV=1",
		"NODE=" + param("node"), "NODES=" + param("nodes"),
	}
}
