package block

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
)

var (
	_ Device       = (*Disk)(nil)
	_ NowaitReader = (*Disk)(nil)
	_ ExtentMapper = (*Disk)(nil)
	_ VecWriter    = (*Disk)(nil)
)

func tempFile(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	return name
}

func open(t *testing.T, name string) *Disk {
	t.Helper()
	d, err := OpenDisk(name, DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return d
}

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

func TestOpenDiskMissingSaysHowToCreateIt(t *testing.T) {
	name := filepath.Join(t.TempDir(), "no.img")
	_, err := OpenDisk(name, DiskOptions{})
	wantErr(t, err, fs.ErrNotExist, name, "truncate -s 10G "+name)
	_, err = OpenDisk("/dev/no-such-volume", DiskOptions{})
	wantErr(t, err, fs.ErrNotExist, "lvcreate")
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("OpenDisk created the file")
	}
}

func TestOpenDiskRefusesWhatIsNoDisk(t *testing.T) {
	for _, name := range []string{t.TempDir(), "/dev/null"} {
		if _, err := OpenDisk(name, DiskOptions{}); err == nil || !strings.Contains(err.Error(), "neither") {
			t.Errorf("%s: error %v", name, err)
		}
	}
	for _, size := range []int64{0, 511} {
		if _, err := OpenDisk(tempFile(t, size), DiskOptions{}); err == nil || !strings.Contains(err.Error(), "empty") {
			t.Errorf("size %d: error %v", size, err)
		}
	}
}

func TestOpenDiskIsExclusive(t *testing.T) {
	name := tempFile(t, 1<<20)
	d := open(t, name)
	_, err := OpenDisk(name, DiskOptions{})
	wantErr(t, err, ErrBusy, name, "locked by process")
	check(t, d.Close())
	open(t, name)
}

func TestDiskSizeIsRoundedDownAndOnlyGrows(t *testing.T) {
	name := tempFile(t, 4096+100)
	d := open(t, name)
	if d.Size() != 4096 || d.Path() != name {
		t.Fatalf("size %d, path %s", d.Size(), d.Path())
	}
	check(t, os.Truncate(name, 8192+511))
	if n, err := d.Rescan(); err != nil || n != 8192 || d.Size() != 8192 {
		t.Fatalf("rescan: %d, %v", n, err)
	}
	check(t, os.Truncate(name, 512))
	if n, err := d.Rescan(); !errors.Is(err, ErrRange) || n != 8192 || d.Size() != 8192 {
		t.Fatalf("rescan after shrink: %d, %v", n, err)
	}
	if err := d.ReadAt(make([]byte, 512), 4096); err == nil {
		t.Fatal("read behind the end of a truncated file succeeded")
	}
}

func TestDiskReadOnly(t *testing.T) {
	d, err := OpenDisk(tempFile(t, 4096), DiskOptions{ReadOnly: true})
	check(t, err)
	defer d.Close()
	check(t, d.ReadAt(make([]byte, 4096), 0))
	wantErr(t, d.WriteAt(make([]byte, 512), 0, 0), ErrReadOnly)
	wantErr(t, d.WriteZeroes(0, 512, 0), ErrReadOnly)
	wantErr(t, d.Discard(0, 512, 0), ErrReadOnly)
	wantErr(t, d.WriteVecAt([][]byte{make([]byte, 512)}, 0), ErrReadOnly)
}

func TestDiskClosed(t *testing.T) {
	d := open(t, tempFile(t, 4096))
	check(t, d.Close())
	buf := make([]byte, 512)
	_, nowait := d.ReadAtNowait(buf, 0)
	_, extents := d.Extents(0, 512, 1)
	_, rescan := d.Rescan()
	for _, err := range []error{d.ReadAt(buf, 0), d.WriteAt(buf, 0, 0), d.Flush(), d.Discard(0, 512, 0), nowait, extents, rescan, d.Close()} {
		wantErr(t, err, ErrClosed)
	}
}

func TestDiskVectoredWrite(t *testing.T) {
	d := open(t, tempFile(t, 4<<20))
	var bufs [][]byte
	var want []byte
	for i := range 2500 { // more than one system call takes
		b := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, SectorSize/2*(i%3))
		bufs, want = append(bufs, b), append(want, b...)
	}
	check(t, d.WriteVecAt(bufs, 1024))
	d.StartWriteback(1024, int64(len(want)))
	got := make([]byte, len(want))
	check(t, d.ReadAt(got, 1024))
	if !bytes.Equal(got, want) {
		t.Fatal("read back differs")
	}
	wantErr(t, d.WriteVecAt([][]byte{want[:100], want[:412]}, 0), ErrAlign)
	wantErr(t, d.WriteVecAt([][]byte{want[:512], want[:512]}, 4<<20-512), ErrRange)
}

func TestDiskExtents(t *testing.T) {
	d := open(t, tempFile(t, 4<<20))
	check(t, d.WriteAt(bytes.Repeat([]byte{1}, 64<<10), 1<<20, 0))
	check(t, d.Flush())
	list, err := d.Extents(0, d.Size(), 10)
	check(t, err)
	want := []Extent{{1 << 20, true}, {64 << 10, false}, {3<<20 - 64<<10, true}}
	if len(list) != 3 || list[0] != want[0] || list[1] != want[1] || list[2] != want[2] {
		t.Fatalf("extents %v, want %v", list, want)
	}
	list, err = d.Extents(1<<20+512, 1024, 10)
	check(t, err)
	if len(list) != 1 || list[0] != (Extent{Len: 1024}) {
		t.Fatalf("part of the data: %v", list)
	}
	if list, err = d.Extents(0, d.Size(), 1); err != nil || len(list) != 1 {
		t.Fatalf("limited to 1: %v, %v", list, err)
	}
}

func TestDiskNowaitReadsWhatIsCached(t *testing.T) {
	d := open(t, tempFile(t, 1<<20))
	want := bytes.Repeat([]byte{7}, 8192)
	check(t, d.WriteAt(want, 4096, 0))
	got := make([]byte, 8192)
	ok, err := d.ReadAtNowait(got, 4096)
	check(t, err)
	if !ok {
		t.Skip("SKIPPED: this file system has no nowait reads")
	}
	if !bytes.Equal(got, want) {
		t.Fatal("read back differs")
	}
}

func TestFailedFlushIsFinal(t *testing.T) {
	d := open(t, tempFile(t, 4096))
	first := d.wrap("flush", syscall.EIO) // a real one needs dm-flakey: tested in the VM
	d.failed.Store(&first)
	buf := make([]byte, 512)
	for _, err := range []error{d.Flush(), d.WriteAt(buf, 0, 0), d.WriteAt(buf, 0, FUA), d.Discard(0, 512, 0), d.WriteVecAt([][]byte{buf}, 0)} {
		if err != first {
			t.Errorf("error %v, want the first one", err)
		}
	}
	check(t, d.ReadAt(buf, 0))
}

func TestDeviceUsers(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	root := fstest.MapFS{
		"sys/dev/block/8:0/uevent":         file("MAJOR=8\nMINOR=0\nDEVNAME=sda\n"),
		"sys/dev/block/8:0/sda1/partition": file("1\n"),
		"sys/dev/block/8:0/sda1/dev":       file("8:1\n"),
		"sys/dev/block/8:0/sda2/partition": file("2\n"),
		"sys/dev/block/8:0/sda2/dev":       file("8:2\n"),
		"sys/dev/block/8:0/queue/x":        file(""),
		"sys/dev/block/8:1/uevent":         file("DEVNAME=sda1\n"),
		"sys/dev/block/8:1/holders/dm-0/x": file(""),
		"sys/dev/block/8:2/uevent":         file("DEVNAME=sda2\n"),
		"sys/dev/block/8:3/uevent":         file("DEVNAME=sda3\n"),
		"proc/self/mountinfo": file("36 35 8:2 / /srv rw - ext4 /dev/sda2 rw\n" +
			"37 35 0:44 / /pool rw - btrfs /dev/sda3 rw\n"),
		"proc/swaps": file("Filename Type Size\n/dev/sda1\tpartition\t100\n"),
	}
	got := strings.Join(deviceUsers(root, "8:0"), "; ")
	want := "/dev/sda1 is used by dm-0; /dev/sda1 is swap; /dev/sda2 is mounted on /srv"
	if got != want {
		t.Errorf("users of a disk with partitions: %q, want %q", got, want)
	}
	if got := strings.Join(deviceUsers(root, "8:3"), "; "); got != "/dev/sda3 is mounted on /pool" {
		t.Errorf("users by source: %q", got)
	}
	if got := deviceUsers(root, "9:9"); got != nil {
		t.Errorf("users of an unknown device: %q", got)
	}
}
