package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mars/internal/control"
)

// needLoop says what is missing for tests with real block devices.
func needLoop(tools ...string) string {
	if os.Geteuid() != 0 {
		return "not root: cannot mount"
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			return "no " + dev
		}
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			return "no " + tool
		}
	}
	return ""
}

// fileSystem is a kind of file system and how to look at it.
type fileSystem struct {
	name string
	mkfs []string
	fsck []string // must not change anything, and fail if something is wrong
	size int64
}

var (
	ext4 = fileSystem{"ext4", []string{"mkfs.ext4", "-q", "-F"}, []string{"e2fsck", "-f", "-n"}, 64 * mib}
	xfs  = fileSystem{"xfs", []string{"mkfs.xfs", "-q", "-f"}, []string{"xfs_repair", "-n"}, 320 * mib} // xfs refuses less than 300 MiB
)

// TestExt4 and TestXFS run a real file system on the block device and kill the daemons at random moments.
func TestExt4(t *testing.T) { testFileSystem(t, ext4) }
func TestXFS(t *testing.T)  { testFileSystem(t, xfs) }

// testFileSystem: under load, the primary is killed at a random moment, and the secondary takes over: its file system must be one that a
// machine leaves behind that lost power, with every file that was synced and shipped before. Then the dead node comes back and resolves.
func testFileSystem(t *testing.T, fs fileSystem) {
	t.Parallel()
	if missing := needLoop(fs.mkfs[0], fs.fsck[0], "mount", "umount"); missing != "" {
		require(t, missing)
	}
	w := newCluster(t, 2, "--device", "loop")
	a, b := w.nodes[0], w.nodes[1]
	a.do("create-resource", res, makeDisk(t, a.diskOf(res), fs.size))
	b.knows(res)
	b.do("join-resource", res, makeDisk(t, b.diskOf(res), fs.size))
	b.do("wait-resource", res, "uptodate")
	mustRun(t, append(fs.mkfs, a.device(res))...)

	files := &synced{}
	from, to := a, b
	for range 2 {
		m := mountAt(t, w, from.device(res))
		refused := to.admIn(shortly, "primary", res)
		checkRefusal(t, "handover while mounted", refused, from.name, m.dir)
		files.write(t, m.dir, time.Duration(300+rand.IntN(700))*time.Millisecond)
		safe := files.mark()
		to.do("wait-resource", res, "fetch-reached")
		files.write(t, m.dir, time.Duration(rand.IntN(300))*time.Millisecond)
		from.kill()
		m.lost()
		to.awaitSight(from, false)
		to.do("primary", res, "--force")
		checkFileSystem(t, w, to, fs)
		after := mountAt(t, w, to.device(res))
		files.check(t, after.dir, safe)
		files.forget(safe)
		after.umount()
		from.start()
		from.resolves(res, to)
		settle(res, to, from)
		from, to = to, from
	}
	from.do("secondary", res)
	settle(res, from, to)
	checkEqual(t, res, a, b)
}

// mustRun runs a program that must succeed.
func mustRun(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (x *node) device(res string) string {
	x.w.t.Helper()
	return x.awaitSelf(res, "its device is shown", func(m control.Member) bool { return m.Device != "" }).Device
}

// checkFileSystem recovers a copy of the device's content as a mount would, and checks it.
func checkFileSystem(t *testing.T, w *world, x *node, fs fileSystem) {
	t.Helper()
	image := filepath.Join(w.root, "copy.img")
	mustRun(t, "cp", "--sparse=always", x.device(res), image)
	defer os.Remove(image)
	m := mountAt(t, w, image, "-o", "loop")
	m.umount() // mounting replays the journal
	mustRun(t, append(fs.fsck, image)...)
}

// mounted is a mounted file system. The test's end takes it down at the latest.
type mounted struct {
	t    *testing.T
	dir  string
	once sync.Once
}

func mountAt(t *testing.T, w *world, device string, options ...string) *mounted {
	t.Helper()
	dir, err := os.MkdirTemp(w.root, "mnt-")
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, append(append([]string{"mount"}, options...), device, dir)...)
	m := &mounted{t: t, dir: dir}
	t.Cleanup(m.lost)
	return m
}

func (m *mounted) umount() {
	m.t.Helper()
	m.once.Do(func() { mustRun(m.t, "umount", m.dir) })
}

// lost takes a file system down whose device is gone, or that the test has forgotten.
func (m *mounted) lost() {
	m.once.Do(func() {
		if out, err := exec.Command("umount", "-l", m.dir).CombinedOutput(); err != nil {
			m.t.Errorf("umount %s: %v\n%s", m.dir, err, out)
		}
	})
}

// synced remembers the files that were written and synced, in order.
type synced struct {
	sums []fileSum
	next int
}

type fileSum struct {
	name string
	sum  [32]byte
}

// write writes and syncs files for a while. Every third one is removed later, so that the file system has something to do.
func (s *synced) write(t *testing.T, dir string, d time.Duration) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		s.next++
		p := make([]byte, 1+rand.IntN(200<<10))
		for i := range p {
			p[i] = byte(rand.Uint32())
		}
		name := fmt.Sprintf("file%d", s.next)
		if err := writeSynced(filepath.Join(dir, name), p); err != nil {
			t.Fatal(err)
		}
		s.sums = append(s.sums, fileSum{name, sha256.Sum256(p)})
		if s.next%3 == 0 {
			if err := os.WriteFile(filepath.Join(dir, "scratch"), p, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func writeSynced(path string, p []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	return errors.Join(err, f.Sync(), f.Close())
}

func (s *synced) mark() int { return len(s.sums) }

// check: the first n files are all there; of the others each is right or not there.
func (s *synced) check(t *testing.T, dir string, n int) {
	t.Helper()
	for i, f := range s.sums {
		b, err := os.ReadFile(filepath.Join(dir, f.name))
		switch {
		case i < n && err != nil:
			t.Errorf("a file that was synced and shipped is gone: %v", err)
		case i < n && sha256.Sum256(b) != f.sum:
			t.Errorf("%s was synced and shipped and has other content now", f.name)
		}
	}
}

// forget forgets all files but the first n.
func (s *synced) forget(n int) { s.sums = s.sums[:n] }

// TestMountedDisk: a disk that the machine itself has mounted is nobody's replica.
func TestMountedDisk(t *testing.T) {
	t.Parallel()
	if missing := needLoop("mkfs.ext4", "losetup", "mount", "umount"); missing != "" {
		require(t, missing)
	}
	w := newCluster(t, 1)
	image := makeDisk(t, filepath.Join(w.root, "mounted.img"), volumeSize)
	mustRun(t, "mkfs.ext4", "-q", "-F", image)
	out, err := exec.Command("losetup", "-f", "--show", image).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	dev := string(bytes.TrimSpace(out))
	t.Cleanup(func() { mustRun(t, "losetup", "-d", dev) })
	m := mountAt(t, w, dev)
	w.nodes[0].refuses([]string{dev, "in use"}, "create-resource", res, dev)
	m.umount()
	w.nodes[0].do("create-resource", res, dev) // a block device as disk
	w.nodes[0].do("secondary", res)
	w.nodes[0].do("delete-resource", res)
}

// TestStopWithMount: SIGTERM while a file system is mounted: the daemon ends, the file system gets errors, and what was synced is there at the
// next start.
func TestStopWithMount(t *testing.T) {
	t.Parallel()
	if missing := needLoop("mkfs.ext4", "mount", "umount"); missing != "" {
		require(t, missing)
	}
	w := newCluster(t, 1, "--device", "loop")
	a := w.nodes[0]
	a.do("create-resource", res, makeDisk(t, a.diskOf(res), ext4.size))
	mustRun(t, append(ext4.mkfs, a.device(res))...)
	m := mountAt(t, w, a.device(res))
	files := &synced{}
	files.write(t, m.dir, 200*time.Millisecond)
	a.stop()
	if _, err := os.ReadFile(filepath.Join(m.dir, "not-cached")); err == nil || errors.Is(err, io.EOF) {
		t.Error("the device is gone, and yet there is no error")
	}
	m.lost()
	a.start()
	a.awaitSelf(res, "alpha is primary again", isPrimary)
	again := mountAt(t, w, a.device(res))
	files.check(t, again.dir, files.mark())
	var st syscall.Statfs_t
	if err := syscall.Statfs(again.dir, &st); err != nil {
		t.Error(err)
	}
	again.umount()
}
