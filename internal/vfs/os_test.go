package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
	for _, s := range texts {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not contain %q", err, s)
		}
	}
}

func create(t *testing.T, name string) File {
	t.Helper()
	f, err := OS().Create(name)
	check(t, err)
	t.Cleanup(func() {
		if err := f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
			t.Error(err)
		}
	})
	return f
}

func TestOSWritevOfManyBuffers(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	f := create(t, name)
	var bufs [][]byte
	want := make([]byte, 100)
	for i := range 3*iovMax + 17 { // the kernel takes iovMax at once; some are empty
		b := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, i%4)
		bufs, want = append(bufs, b), append(want, b...)
	}
	n, err := f.WritevAt(bufs, 100)
	check(t, err)
	if n != len(want)-100 {
		t.Errorf("%d bytes written, want %d", n, len(want)-100)
	}
	got, err := ReadFile(OS(), name, 1<<20)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Error("read back differs")
	}
	if n, err := f.WritevAt([][]byte{nil, {}}, 0); n != 0 || err != nil {
		t.Errorf("nothing to write: %d, %v", n, err)
	}
}

// Whatever the kernel takes of a batch, the next one goes on there.
func TestCursorAfterShortWrites(t *testing.T) {
	var bufs [][]byte
	var want []byte
	for i := range 2*iovMax + 3 {
		b := bytes.Repeat([]byte{byte(i)}, i%5)
		bufs, want = append(bufs, b), append(want, b...)
	}
	for _, step := range []int{1, 2, 3, 7, 1000, len(want)} {
		var got []byte
		for c := newCursor(bufs); c.left > 0; {
			batch := c.batch()
			if len(batch) > iovMax {
				t.Fatalf("batch of %d buffers", len(batch))
			}
			taken := bytes.Join(batch, nil)
			taken = taken[:min(step, len(taken))]
			got = append(got, taken...)
			c.advance(len(taken))
		}
		if !bytes.Equal(got, want) {
			t.Errorf("steps of %d bytes: written data differ", step)
		}
	}
}

func TestOSAllocateExtends(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	f := create(t, name)
	check(t, f.Allocate(0, 1<<20))
	size, err := f.Size()
	check(t, err)
	if size != 1<<20 {
		t.Errorf("size %d", size)
	}
	var st unix.Stat_t
	check(t, unix.Stat(name, &st))
	if st.Blocks*512 < 1<<20 {
		t.Errorf("only %d bytes allocated", st.Blocks*512)
	}
	check(t, f.Allocate(0, 4096))
	if size, err = f.Size(); err != nil || size != 1<<20 {
		t.Errorf("size after a smaller allocation: %d, %v", size, err)
	}
	check(t, errors.Join(f.SyncData(), f.Sync()))
}

func TestOSFilesArePrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	check(t, OS().MkdirAll(dir))
	create(t, filepath.Join(dir, "f"))
	for name, want := range map[string]fs.FileMode{dir: fs.ModeDir | 0o700, filepath.Join(dir, "f"): 0o600} {
		st, err := os.Stat(name)
		check(t, err)
		if st.Mode()&(fs.ModeDir|0o077) != want&(fs.ModeDir|0o077) {
			t.Errorf("mode of %s is %s, want %s", name, st.Mode(), want)
		}
	}
}

func TestOSErrorsNameTheFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	_, err := OS().Open(name)
	wantErr(t, err, fs.ErrNotExist, name)
	f := create(t, name)
	wantErr(t, f.Allocate(-1, 5), syscall.EINVAL, name, "fallocate")
	_, err = f.WritevAt([][]byte{{1}}, -1)
	wantErr(t, err, syscall.EINVAL, name, "pwritev")
	check(t, f.Close())
	for _, err := range []error{f.SyncData(), f.Allocate(0, 1), f.Sync()} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("closed file: %v", err)
		}
	}
	wantErr(t, OS().SyncDir(name), syscall.ENOTDIR, name)
	_, err = OS().Space(name + "x")
	wantErr(t, err, fs.ErrNotExist, name)
	wantErr(t, OS().MkdirAll(name), syscall.ENOTDIR, name)
	wantErr(t, OS().MkdirAll(name+"/d"), syscall.ENOTDIR, name)
}

func TestOSMkdirAllAndReadDir(t *testing.T) {
	dir := t.TempDir()
	check(t, OS().MkdirAll(filepath.Join(dir, "b/c/d")))
	check(t, OS().MkdirAll(filepath.Join(dir, "b/c/d")))
	check(t, OS().MkdirAll("/proc/self")) // exists; its parent cannot be synced
	create(t, filepath.Join(dir, "a"))
	names, err := OS().ReadDir(dir)
	check(t, err)
	if !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("names %q", names)
	}
}

func TestOSNoSpace(t *testing.T) {
	dir := tinyFileSystem(t, 64<<10)
	space, err := OS().Space(dir)
	check(t, err)
	if space.Total != 64<<10 || space.Free <= 0 || space.Free > space.Total {
		t.Errorf("space %+v", space)
	}
	f := create(t, filepath.Join(dir, "f"))
	wantErr(t, f.Allocate(0, 1<<20), syscall.ENOSPC, "fallocate")
	n, err := f.WritevAt([][]byte{make([]byte, 32<<10), make([]byte, 64<<10)}, 0)
	wantErr(t, err, syscall.ENOSPC, "pwritev")
	if n <= 0 || n > 64<<10 {
		t.Errorf("%d bytes written before the disk was full", n)
	}
	if space, err = OS().Space(dir); err != nil || space.Free != 0 {
		t.Errorf("space when full: %+v, %v", space, err)
	}
}

func tinyFileSystem(t *testing.T, size int64) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("mars-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		if os.Getenv("MARS_TEST_REQUIRE") == "all" {
			t.Fatalf("missing: a tmpfs: %v", err)
		}
		t.Skipf("SKIPPED: cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestLockNamesFileAndHolder(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	l, err := Lock(name)
	check(t, err)
	_, err = Lock(name)
	wantErr(t, err, ErrLocked, name, fmt.Sprintf("by process %d (", os.Getpid()))
	pid, err := os.ReadFile(name)
	check(t, err)
	if string(pid) != fmt.Sprintf("%d\n", os.Getpid()) {
		t.Errorf("the lock file holds %q", pid)
	}
	check(t, l.Close())
	l, err = Lock(name)
	check(t, err)
	check(t, l.Close())
	_, err = Lock(filepath.Join(name, "x"))
	wantErr(t, err, syscall.ENOTDIR, name)
}

func TestHolderIn(t *testing.T) {
	const table = "1: POSIX  ADVISORY  WRITE 11 fd:01:7 0 EOF\n" +
		"2: FLOCK  ADVISORY  WRITE 12 fd:01:8 0 EOF\n" +
		"3: -> FLOCK  ADVISORY  WRITE 13 fd:01:7 0 EOF\n" +
		"4: FLOCK  ADVISORY  WRITE 14 fd:01:7 0 EOF\n" +
		"5: FLOCK\n"
	for id, want := range map[string]int{"fd:01:7": 14, "fd:01:8": 12, "fd:01:9": 0} {
		if got := holderIn(table, id); got != want {
			t.Errorf("holder of %s: %d, want %d", id, got, want)
		}
	}
}

func TestSignedHolder(t *testing.T) {
	for content, want := range map[string]int{"": 0, "4711\n": 4711, "not a pid": 0, "1 2": 0} {
		name := filepath.Join(t.TempDir(), "lock")
		check(t, os.WriteFile(name, []byte(content), 0o600))
		f, err := os.Open(name)
		check(t, err)
		if got := signedHolder(f); got != want {
			t.Errorf("%q: %d, want %d", content, got, want)
		}
		check(t, f.Close())
	}
}
