package loop

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestStaleAfterKill(t *testing.T) {
	need(t)
	r := newRig(t)
	a, b := r.child("a"), r.child("b")
	live := r.open("live", newMemDev(8*mib, 8*mib))
	if left, err := CleanStale(r.mountDir()); err != nil || left != nil {
		t.Fatalf("clean-up with living owners: %v %v", left, err)
	}
	for _, node := range []string{a.node, b.node, live.Path()} {
		run(t, "dd", "if="+node, "of=/dev/null", "count=8")
	}
	a.kill9()
	b.kill9()
	if left, err := CleanStale(r.mountDir()); err != nil || left != nil {
		t.Fatalf("clean-up: %v %v", left, err)
	}
	run(t, "dd", "if="+live.Path(), "of=/dev/null", "count=8")
	r.close(live)
	if left := leftovers(r.dir); left != "" {
		t.Errorf("left: %s", left)
	}
}

// kill -9 in the middle of I/O: the application gets its error at once, dirty pages in the page cache or not.
func TestKillUnderLoad(t *testing.T) {
	need(t)
	r := newRig(t)
	c := r.child("vol")
	result := make(chan error, 2)
	for _, flag := range []string{"direct", "nonblock"} { // nonblock means nothing to a disk: this one writes through the page cache
		go func() {
			_, err := try(t, "sh", "-c", "while dd if=/dev/zero of="+c.node+" bs=64k count=500 conv=fsync oflag="+flag+"; do :; done")
			result <- err
		}()
	}
	eventually(t, "the writers", func() bool { return len(nodeNumber(t, c.node).disk().Users("")) >= 2 })
	c.kill9()
	for range cap(result) {
		if err := <-result; err != nil {
			t.Errorf("a writer went on: %v", err) // it was killed in the end
		}
	}
	if left, err := CleanStale(r.mountDir()); err != nil || left != nil {
		t.Errorf("clean-up: %v %v", left, err)
	}
}

func nodeNumber(t *testing.T, node string) loopDev {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimPrefix(node, "/dev/loop"))
	if err != nil {
		t.Fatal(err)
	}
	return loopDev(n)
}

// The dead device is still mounted: it is reported, its I/O fails, a successor of the same name can be shown at once, and it goes with its user.
func TestStaleInUse(t *testing.T) {
	need(t, "mkfs.ext4")
	r := newRig(t)
	c := r.child("vol")
	run(t, "mkfs.ext4", "-q", "-F", c.node)
	dead := &FrontEnd{cfg: r.config("dead", nil)}
	dead.cfg.Link = c.node
	at := r.mounted(dead)
	c.kill9()
	left, err := CleanStale(r.mountDir())
	if err != nil || len(left) != 1 {
		t.Fatalf("clean-up: %v %v", left, err)
	}
	if l := left[0]; l.Name != "vol" || l.Device != c.node || strings.Join(l.Users, ";") != "mounted on "+at {
		t.Errorf("leftover is %+v", l)
	}
	f := r.open("vol", newMemDev(8*mib, 8*mib))
	if f.loop.node() == c.node {
		t.Error("successor uses the device of the dead")
	}
	run(t, "umount", at)
	eventually(t, "the dead device to go", func() bool { return boundUnder(c.node) == "" })
	run(t, "dd", "if="+f.Path(), "of=/dev/null", "count=8")
	r.close(f)
}

// boundUnder is the backing file of a node, if it has one.
func boundUnder(node string) string {
	b, err := os.ReadFile(filepath.Join(sysBlock, filepath.Base(node), "loop", "backing_file"))
	if err != nil {
		return ""
	}
	return string(b)
}

// Open of the same name cleans up by itself.
func TestOpenAfterKill(t *testing.T) {
	need(t)
	r := newRig(t)
	c := r.child("vol")
	c.kill9()
	f := r.open("vol", newMemDev(8*mib, 8*mib))
	run(t, "dd", "if="+f.Path(), "of=/dev/null", "count=8")
	r.close(f)
}

// What is not ours is not touched, whatever it is called.
func TestCleanStaleSparesStrangers(t *testing.T) {
	need(t, "losetup", "mount")
	r := newRig(t)
	dir := r.mountDir()
	mnt := filepath.Join(dir, "vol", "mnt")
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	run(t, "mount", "-t", "tmpfs", "stranger", mnt)
	file := filepath.Join(mnt, "vol")
	run(t, "truncate", "-s", "1M", file)
	node := strings.TrimSpace(run(t, "losetup", "-f", "--show", file))
	t.Cleanup(func() {
		run(t, "losetup", "-d", node)
		eventually(t, "umount", func() bool { _, err := try(t, "umount", mnt); return err == nil })
	})
	if left, err := CleanStale(dir); err != nil || left != nil {
		t.Errorf("clean-up: %v %v", left, err)
	}
	if !strings.HasPrefix(boundUnder(node), file) {
		t.Error("a stranger's loop device was detached")
	}
	if left, err := CleanStale(filepath.Join(dir, "missing")); err != nil || left != nil {
		t.Errorf("clean-up of a missing directory: %v %v", left, err)
	}
}
