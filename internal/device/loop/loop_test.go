package loop

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"mars/internal/block"

	"golang.org/x/sys/unix"
)

// fillFiles writes files of random contents and returns their digests by path.
func fillFiles(t *testing.T, dir string, seed uint64) map[string][32]byte {
	t.Helper()
	rng := rand.NewChaCha8([32]byte{byte(seed)})
	sums := map[string][32]byte{}
	for i := range 40 {
		name := filepath.Join(dir, fmt.Sprintf("d%d", i%5), fmt.Sprintf("f%d", i))
		b := make([]byte, rng.Uint64()%(600<<10))
		_, _ = rng.Read(b) // never fails
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, b, 0o644)); err != nil {
			t.Fatal(err)
		}
		sums[name] = sha256.Sum256(b)
	}
	return sums
}

func checkFiles(t *testing.T, sums map[string][32]byte) {
	t.Helper()
	for name, want := range sums {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(b) != want {
			t.Errorf("%s has changed", name)
		}
	}
}

// A file system lives on the device: written, synced, trimmed, unmounted, checked, mounted again; the device cannot be taken away meanwhile.
func TestFileSystems(t *testing.T) {
	for _, c := range []struct {
		name string
		mkfs []string
		fsck []string
	}{
		{"ext4", []string{"mkfs.ext4", "-q", "-F"}, []string{"e2fsck", "-fn"}},
		{"xfs", []string{"mkfs.xfs", "-q", "-f"}, []string{"xfs_repair", "-n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			need(t, c.mkfs[0], c.fsck[0], "fstrim")
			r, d := newRig(t), newMemDev(320*mib, 320*mib)
			f := r.open("vol", d)
			run(t, append(c.mkfs, f.Path())...)
			at := r.mounted(f)
			sums := fillFiles(t, at, 1)
			checkInUse(t, f, "mounted on "+at)
			checkSync(t, d, at)
			checkTrim(t, d, at, sums)
			run(t, "umount", at)
			run(t, append(c.fsck, f.Path())...)
			run(t, "mount", f.Path(), at)
			run(t, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
			checkFiles(t, sums)
			run(t, "umount", at)
			r.close(f)
		})
	}
}

// checkInUse: Users names the user, Close refuses with that name, and the device still works.
func checkInUse(t *testing.T, f *FrontEnd, who string) {
	t.Helper()
	if users := f.Users(); !slices.Contains(users, who) {
		t.Errorf("users are %q, want %q", users, who)
	}
	err := f.Close(t.Context())
	if !errors.Is(err, block.ErrBusy) || !strings.Contains(err.Error(), who) {
		t.Fatalf("close of a used device: %v", err)
	}
	if _, err := os.Stat(f.Path()); err != nil {
		t.Errorf("refused close has harmed the device: %v", err)
	}
}

func checkSync(t *testing.T, d *memDev, at string) {
	t.Helper()
	before := d.flushes.Load()
	run(t, "sync", "-f", at)
	if d.flushes.Load() == before {
		t.Error("sync did not flush the device")
	}
}

func checkTrim(t *testing.T, d *memDev, at string, sums map[string][32]byte) {
	t.Helper()
	for name := range sums {
		if strings.HasSuffix(name, "3") {
			delete(sums, name)
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(t, "sync", "-f", at)
	run(t, "fstrim", at)
	if d.discards.Load() == 0 {
		t.Error("fstrim did not discard")
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	need(t)
	r := newRig(t)
	f := r.open("vol", newMemDev(8*mib, 8*mib))
	if users := f.Users(); len(users) != 0 {
		t.Errorf("users of an unused device: %q", users)
	}
	node := f.loop
	r.close(f)
	if left := leftovers(r.dir); left != "" {
		t.Errorf("left: %s", left)
	}
	if b := node.backing(); b != "" && strings.HasPrefix(b, r.dir) {
		t.Errorf("loop device still bound to %s", b)
	}
	r.close(f) // again: nothing to do
	f.Abort()
	if err := f.Resized(); !errors.Is(err, block.ErrClosed) {
		t.Errorf("resize after close: %v", err)
	}
}

// A mounted file system sees the new size and grows into it.
func TestGrowsOnline(t *testing.T) {
	for _, c := range []struct {
		mkfs, grow, fsck []string
		privileged       bool // growing it while it is mounted needs CAP_SYS_RESOURCE
	}{
		{[]string{"mkfs.xfs", "-q", "-f"}, []string{"xfs_growfs"}, []string{"xfs_repair", "-n"}, false},
		{[]string{"mkfs.ext4", "-q", "-F"}, []string{"resize2fs"}, []string{"e2fsck", "-fn"}, true},
	} {
		t.Run(c.mkfs[0], func(t *testing.T) {
			need(t, c.mkfs[0], c.grow[0], c.fsck[0], "blockdev")
			const before, after = 320 * mib, 512 * mib
			r, d := newRig(t), newMemDev(before, after)
			f := r.open("vol", d)
			run(t, append(c.mkfs, f.Path())...)
			at := r.mounted(f)
			d.size.Store(after)
			if err := f.Resized(); err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSpace(run(t, "blockdev", "--getsize64", f.Path())); got != fmt.Sprint(after) {
				t.Errorf("size is %s", got)
			}
			if !c.privileged || hasSysResource(t) {
				run(t, append(c.grow, f.Path())...)
			} else {
				growsOffline(t, f, at)
			}
			if err := os.WriteFile(filepath.Join(at, "big"), make([]byte, before), 0o644); err != nil {
				t.Fatal(err)
			}
			run(t, "umount", at)
			run(t, append(c.fsck, f.Path())...)
			r.close(f)
		})
	}
}

// growsOffline is what remains to somebody who may not grow a mounted ext4: the kernel refuses, and nothing has happened to the file system.
func growsOffline(t *testing.T, f *FrontEnd, at string) {
	t.Helper()
	t.Log("without CAP_SYS_RESOURCE: ext4 is grown while it is not mounted")
	if out, err := try(t, "resize2fs", f.Path()); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("resize2fs of a mounted file system: %v\n%s", err, out)
	}
	run(t, "umount", at)
	run(t, "e2fsck", "-fp", f.Path())
	run(t, "resize2fs", f.Path())
	run(t, "mount", f.Path(), at)
}

func TestDiscardAndZeroes(t *testing.T) {
	need(t, "blkdiscard")
	r, d := newRig(t), newMemDev(64*mib, 64*mib)
	f := r.open("vol", d)
	run(t, "blkdiscard", "-o", "1048576", "-l", "8192", f.Path())
	run(t, "blkdiscard", "-z", "-o", "2097152", "-l", "4096", f.Path())
	if got, want := d.ranges(), "discard 1048576+8192 flags 0; zero 2097152+4096 flags 2"; got != want {
		t.Errorf("device saw %q, want %q", got, want)
	}
	r.close(f)
}

// The kernel's view of the block device: what the file system above builds on.
func TestQueueLimits(t *testing.T) {
	need(t)
	r := newRig(t)
	cfg := r.config("vol", newMemDev(8*mib+512, 16*mib))
	cfg.BlockSize = 4096
	f, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Abort)
	for file, want := range map[string]string{
		"queue/logical_block_size": "4096",
		"queue/write_cache":        "write back",
		"loop/dio":                 "1",
		"loop/autoclear":           "0",
		"size":                     "16384", // whole logical blocks, in sectors
	} {
		got, err := os.ReadFile(f.loop.sys(file))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q (%v), want %q", file, got, err, want)
		}
	}
	r.close(f)
}

func TestErrorsReachTheApplication(t *testing.T) {
	need(t)
	r, d := newRig(t), newMemDev(8*mib, 8*mib)
	f := r.open("vol", d)
	fd, err := unix.Open(f.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	for _, c := range []struct {
		fault, want error
	}{{block.ErrNoSpace, unix.ENOSPC}, {errors.New("disk gone"), unix.EIO}, {block.ErrReadOnly, unix.EIO}} {
		d.fail.Store(&c.fault)
		if _, err := unix.Pwrite(fd, page, 0); !errors.Is(err, c.want) {
			t.Errorf("write with %v gives %v", c.fault, err)
		}
		if err := unix.Fsync(fd); !errors.Is(err, unix.EIO) {
			t.Errorf("flush with %v gives %v", c.fault, err)
		}
	}
	d.fail.Store(nil)
	if _, err := unix.Pwrite(fd, page, 0); err != nil {
		t.Errorf("write after the fault: %v", err)
	}
}

func TestProcessIsAUser(t *testing.T) {
	need(t)
	r := newRig(t)
	f := r.open("vol", newMemDev(8*mib, 8*mib))
	cmd := exec.Command("sh", "-c", "exec 3<"+f.Path()+"; read x")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() { _, _ = stdin.Close(), cmd.Wait() })
	t.Cleanup(end)
	eventually(t, "the process to open the device", func() bool { return len(f.Users()) > 0 })
	checkInUse(t, f, fmt.Sprintf("opened by pid %d (sh)", cmd.Process.Pid))
	end()
	r.close(f)
}

// An opener that /proc does not show (here: this process, which does not count) still keeps the device, and the device stays usable.
func TestInvisibleOpenerKeepsDevice(t *testing.T) {
	need(t)
	for _, flags := range []int{0, unix.O_EXCL} {
		r := newRig(t)
		f := r.open("vol", newMemDev(8*mib, 8*mib))
		fd, err := unix.Open(f.Path(), unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		checkErr := f.Close(t.Context())
		_ = unix.Close(fd)
		if !errors.Is(checkErr, block.ErrBusy) {
			t.Errorf("close with flags %x: %v", flags, checkErr)
		}
		if auto, _ := os.ReadFile(f.loop.sys("loop", "autoclear")); string(auto) != "0\n" {
			t.Errorf("refused close left autoclear at %q", auto)
		}
		run(t, "dd", "if="+f.Path(), "of=/dev/null", "bs=64k")
		r.close(f)
	}
}

// An operator detaches the loop device by hand, and its number goes to somebody else, who must not notice our Close.
func TestDetachedByHand(t *testing.T) {
	need(t, "losetup")
	for range 10 {
		if detachByHand(t) {
			return
		}
	}
	t.Error("other tests took the loop device each time")
}

// detachByHand returns false when the loop device was taken by another test before its number could be reused.
func detachByHand(t *testing.T) bool {
	t.Helper()
	r := newRig(t)
	f := r.open("vol", newMemDev(8*mib, 8*mib))
	file := filepath.Join(r.dir, "other")
	run(t, "truncate", "-s", "1M", file)
	run(t, "losetup", "-d", f.loop.node())
	if _, err := try(t, "losetup", f.loop.node(), file); err != nil {
		return false
	}
	t.Cleanup(func() { run(t, "losetup", "-d", f.loop.node()) })
	fd, err := unix.Open(f.loop.node(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if users := f.Users(); users != nil {
		t.Errorf("users of a device that is not ours: %q", users)
	}
	r.close(f)
	if f.loop.backing() != file {
		t.Error("close detached a stranger's device")
	}
	return true
}

func TestAbortWhileMounted(t *testing.T) {
	need(t, "mkfs.ext4")
	r := newRig(t)
	f := r.open("vol", newMemDev(64*mib, 64*mib))
	run(t, "mkfs.ext4", "-q", "-F", f.Path())
	at := r.mounted(f)
	if err := os.WriteFile(filepath.Join(at, "file"), make([]byte, mib), 0o644); err != nil {
		t.Fatal(err)
	}
	f.Abort()
	if out, err := try(t, "dd", "if=/dev/zero", "of="+filepath.Join(at, "file"), "bs=64k", "count=4", "conv=fsync"); err == nil {
		t.Errorf("write after abort: %s", out)
	}
	if _, err := os.Lstat(f.Path()); err == nil {
		t.Error("link is still there")
	}
	run(t, "umount", at)
	eventually(t, "the loop device to go with its last user", func() bool { return !strings.HasSuffix(f.loop.backing(), "/vol") })
}

// Abort must not wait for a Device that never answers, and neither must the application.
func TestAbortWithStalledDevice(t *testing.T) {
	need(t)
	r, d := newRig(t), newMemDev(8*mib, 8*mib)
	f := r.open("vol", d)
	stall := make(chan struct{})
	d.stall.Store(&stall)
	reads := d.reads.Load()
	result := make(chan error, 1)
	go func() {
		_, err := try(t, "dd", "if="+f.Path(), "of=/dev/null", "bs=4k", "count=1", "iflag=direct")
		result <- err
	}()
	eventually(t, "the request to reach the device", func() bool { return d.reads.Load() > reads })
	f.Abort()
	if err := <-result; err == nil {
		t.Error("read from a stalled device succeeded after abort")
	}
	close(stall)
	eventually(t, "the server to end", func() bool {
		select {
		case <-f.mount.served:
			return true
		default:
			return false
		}
	})
}

// A Close that waits for the kernel ends when its context does, and can be repeated.
func TestCloseIsBounded(t *testing.T) {
	need(t)
	r := newRig(t)
	f := r.open("vol", newMemDev(8*mib, 8*mib))
	// Somebody inside the FUSE mount keeps it busy after the loop device is gone.
	fd, err := unix.Open(f.place.mnt(), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), settleTime)
	defer cancel()
	err = f.Close(ctx)
	_ = unix.Close(fd)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close: %v", err)
	}
	r.close(f)
}

func TestManyAtOnce(t *testing.T) {
	need(t)
	r := newRig(t)
	var wg sync.WaitGroup
	fronts := make([]*FrontEnd, 6)
	for i := range fronts {
		d := newMemDev(8*mib, 8*mib)
		d.data[0] = byte('a' + i)
		wg.Go(func() {
			var err error
			if fronts[i], err = Open(r.config(fmt.Sprintf("vol%d", i), d)); err != nil {
				t.Errorf("open %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for i, f := range fronts {
		if f == nil {
			continue
		}
		t.Cleanup(f.Abort)
		if got := run(t, "head", "-c", "1", f.Path()); got != string(rune('a'+i)) {
			t.Errorf("device %d serves %q", i, got)
		}
	}
	for _, f := range fronts {
		if f != nil {
			wg.Go(func() { r.close(f) })
		}
	}
	wg.Wait()
}

func TestOpenRefuses(t *testing.T) {
	need(t)
	r, d := newRig(t), newMemDev(8*mib, 8*mib)
	f := r.open("vol", d)
	if _, err := Open(r.config("vol", d)); !errors.Is(err, block.ErrBusy) {
		t.Errorf("second open: %v", err)
	}
	if _, err := os.Stat(f.Path()); err != nil {
		t.Errorf("the second open has harmed the first: %v", err)
	}
	precious := filepath.Join(r.dir, "precious")
	if err := os.WriteFile(precious, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	bad := map[string]func(*Config){
		"link over a file":  func(c *Config) { c.Link = precious },
		"relative link":     func(c *Config) { c.Link = "dev" },
		"path as a name":    func(c *Config) { c.Name = "../x" },
		"odd block size":    func(c *Config) { c.BlockSize = 1000 },
		"no device":         func(c *Config) { c.Dev = nil },
		"no mount dir":      func(c *Config) { c.MountDir = "" },
		"mount dir no dir":  func(c *Config) { c.MountDir = precious },
		"block size 128KiB": func(c *Config) { c.BlockSize = 128 << 10 },
	}
	for what, change := range bad {
		cfg := r.config("other", d)
		change(&cfg)
		if _, err := Open(cfg); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	r.close(f)
}

// The backing file is for the loop driver only.
func TestFileIsPrivate(t *testing.T) {
	need(t)
	r := newRig(t)
	f := r.open("vol", newMemDev(8*mib, 8*mib))
	if _, err := unix.Open(f.place.file(), unix.O_RDWR|unix.O_CLOEXEC, 0); !errors.Is(err, unix.EACCES) {
		t.Errorf("open of the backing file: %v", err)
	}
	if _, err := unix.Open(f.place.mnt()+"/other", unix.O_RDONLY|unix.O_CLOEXEC, 0); !errors.Is(err, unix.ENOENT) {
		t.Errorf("open of another name: %v", err)
	}
	r.close(f)
}

func TestFio(t *testing.T) {
	need(t, "fio")
	r, d := newRig(t), newMemDev(64*mib, 64*mib)
	f := r.open("vol", d)
	run(t, "fio", "--aux-path="+t.TempDir(), "--verify_state_save=0", "--name=v", "--filename="+f.Path(), "--rw=randwrite", "--bsrange=512-256k", "--bs_unaligned=0", "--blockalign=512",
		"--size=64M", "--direct=1", "--ioengine=libaio", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--output-format=terse")
	r.close(f)
}
