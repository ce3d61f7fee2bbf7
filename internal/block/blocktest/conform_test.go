package blocktest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mars/internal/block"
)

func TestMemoryDiskConforms(t *testing.T) {
	t.Parallel()
	Conform(t, NewDisk(8<<20))
}

func TestDiskOnFileConforms(t *testing.T) {
	t.Parallel()
	Conform(t, openDisk(t, image(t, t.TempDir())))
}

// A tmpfs cannot do all that other file systems can, so the ways around are taken.
func TestDiskOnTmpfsConforms(t *testing.T) {
	t.Parallel()
	const shm = "/dev/shm"
	if _, err := os.Stat(shm); err != nil {
		needs(t, err.Error())
	}
	dir, err := os.MkdirTemp(shm, "mars-conform-")
	if err != nil {
		needs(t, err.Error())
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	Conform(t, openDisk(t, image(t, dir)))
}

func TestDiskOnBlockDeviceConforms(t *testing.T) {
	t.Parallel()
	loop := loopDevice(t, image(t, t.TempDir()))
	d := openDisk(t, loop)
	if _, err := block.OpenDisk(loop, block.DiskOptions{}); !errors.Is(err, block.ErrBusy) || !strings.Contains(err.Error(), loop) {
		t.Fatalf("opened twice: error %v", err)
	}
	Conform(t, d)
}

// Its logical blocks are larger than the sectors of a Device: zeroing part of a block has to take another way.
func TestDiskOnBlockDeviceWithLargeBlocksConforms(t *testing.T) {
	t.Parallel()
	d := openDisk(t, loopDevice(t, image(t, t.TempDir()), "-b", "4096"))
	if d.LogicalBlockSize() != 4096 {
		t.Fatalf("logical block size %d", d.LogicalBlockSize())
	}
	Conform(t, d)
}

// The backing file of the loop device cannot grow, so what the page cache took cannot be written.
func TestFailedFlushIsFinal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "mars-test", dir).CombinedOutput(); err != nil {
		needs(t, "mount: "+err.Error()+" "+string(out))
	}
	t.Cleanup(func() { run(t, "umount", "-l", dir) })
	d := openDisk(t, loopDevice(t, image(t, dir)))
	must(t)(d.WriteAt(pattern(512, 1), 0, 0))
	must(t)(d.Flush())
	must(t)(d.WriteAt(pattern(4<<20, 2), 0, 0))
	first := d.Flush()
	if first == nil {
		t.Fatal("flush of more than there is room for succeeded")
	}
	t.Log(first)
	for _, err := range []error{d.Flush(), d.WriteAt(pattern(512, 3), 0, 0), d.Discard(0, 512, 0)} {
		if err != first { // the same error, not one like it
			t.Errorf("later error %v", err)
		}
	}
}

func TestMountedBlockDeviceIsRefusedWithItsMountPoint(t *testing.T) {
	t.Parallel()
	loop := loopDevice(t, image(t, t.TempDir()))
	if out, err := exec.Command("mkfs.ext4", "-q", loop).CombinedOutput(); err != nil {
		needs(t, "mkfs.ext4: "+err.Error()+" "+string(out))
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", loop, dir).CombinedOutput(); err != nil {
		needs(t, "mount: "+err.Error()+" "+string(out))
	}
	t.Cleanup(func() { run(t, "umount", dir) })
	_, err := block.OpenDisk(loop, block.DiskOptions{})
	if !errors.Is(err, block.ErrBusy) || !strings.Contains(err.Error(), "mounted on "+dir) {
		t.Fatalf("error %v", err)
	}
}

func image(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(dir, "disk.img")
	f, err := os.Create(name)
	if err == nil {
		err = errors.Join(f.Truncate(16<<20), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func openDisk(t *testing.T, name string) *block.Disk {
	t.Helper()
	d, err := block.OpenDisk(name, block.DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// loopDevice returns a loop device over a file.
func loopDevice(t *testing.T, file string, opts ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		needs(t, "loop devices need root")
	}
	out, err := exec.Command("losetup", append(opts, "--show", "-f", file)...).CombinedOutput()
	if err != nil {
		needs(t, "losetup: "+err.Error()+" "+string(out))
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { run(t, "losetup", "-d", loop) })
	return loop
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v: %s", name, args, err, out)
	}
}

// needs skips the test, or fails it where MARS_TEST_REQUIRE=all says that nothing may be missing.
func needs(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("MARS_TEST_REQUIRE") == "all" {
		t.Fatal("missing: " + reason)
	}
	t.Skip("SKIPPED: " + reason)
}
