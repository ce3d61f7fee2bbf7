package crashfs

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"syscall"
	"testing"

	"mars/internal/vfs"
)

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func TestFaultStrikesTheIthMatchingOperation(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	f := s.durable("f", "A")
	s.fs.Inject(Fault{Skip: 1, Err: syscall.EIO, Match: func(op Op) bool { return op.Kind == OpWrite && op.Name == "f" }})
	s.write(f, 0, "B")
	s.must(f.Sync())
	_, err := f.WriteAt(data("C"), 0)
	wantErr(t, err, syscall.EIO)
	if err.Error() != "write: f: input/output error" {
		t.Errorf("error text %q", err)
	}
	if got := show(t, s.fs, "."); got != "f=B" {
		t.Errorf("a failed write had an effect: %q", got)
	}
	s.write(f, 0, "D")
	if n := s.fs.Fired(); n != 1 {
		t.Errorf("%d faults fired", n)
	}
}

func TestStickyFaultAndClear(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	f := s.durable("f", "A")
	s.fs.Inject(Fault{Err: syscall.EROFS, Sticky: true, Match: Op.Changes})
	for range 3 {
		wantErr(t, f.Sync(), syscall.EROFS)
		wantErr(t, s.fs.Remove("f"), syscall.EROFS)
	}
	_, err := f.Size()
	s.must(err)
	s.fs.ClearFaults()
	s.must(s.fs.Remove("f"))
}

func TestStopAtStopsEverything(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	f := s.durable("f", "AA")
	ops := s.fs.Ops()
	s.fs.StopAt(1)
	s.write(f, 0, "B")
	wantErr(t, f.Sync(), ErrGone)
	wantErr(t, f.Sync(), ErrGone)
	if n := s.fs.Ops() - ops; n != 3 {
		t.Errorf("%d operations counted", n)
	}
	if got := show(t, s.fs.CrashLosingAll(), "."); got != "f=AA" {
		t.Errorf("after the crash: %q", got)
	}
}

func TestFailedCloseClosesNevertheless(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	f := s.durable("f", "A")
	s.fs.FailAt(0, syscall.EIO)
	wantErr(t, f.Close(), syscall.EIO)
	wantErr(t, f.Sync(), fs.ErrClosed)
	wantErr(t, f.Close(), fs.ErrClosed)
}

func TestBadSpotFailsReadsThatTouchIt(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	f := s.durable("f", "AAAA")
	s.must(s.fs.FailReads("f", 512, 1, syscall.EIO))
	buf := make([]byte, 512)
	for off, want := range map[int64]error{0: nil, 1: syscall.EIO, 512: syscall.EIO, 513: nil, 1024: nil} {
		if _, err := f.ReadAt(buf, off); !errors.Is(err, want) {
			t.Errorf("read at %d: %v, want %v", off, err, want)
		}
	}
	_, err := vfs.ReadFile(s.fs.CrashLosingAll(), "f", 4096)
	wantErr(t, err, syscall.EIO)
}

func TestCorruptIsDurable(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	f := s.durable("f", "AAA")
	s.write(f, 1, "B")
	s.must(s.fs.Corrupt("f", 512, 512))
	s.must(s.fs.Corrupt("f", 512, 512)) // inverted twice
	s.must(s.fs.Corrupt("f", 0, 1024))
	wantErr(t, s.fs.Corrupt("f", 1536, 1), syscall.EINVAL)
	wantErr(t, s.fs.Corrupt("g", 0, 1), fs.ErrNotExist)
	if got, want := show(t, s.fs, "."), "f=\xbe\xbdA"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := show(t, s.fs.CrashLosingAll(), "."), "f=\xbe\xbeA"; got != want {
		t.Errorf("after a crash %q, want %q", got, want)
	}
}

func TestTrace(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	s.must(s.fs.MkdirAll("d"))
	s.fs.StartTrace()
	f := s.file(s.fs.Create("./d//a"))
	s.must(f.Allocate(0, 4096))
	s.write(f, 0, "A")
	s.must(f.SyncData())
	s.fs.FailAt(0, syscall.EIO)
	wantErr(t, f.Truncate(0), syscall.EIO)
	s.must(f.Close())
	s.must(s.fs.Rename("d/a", "d/b"))
	s.must(s.fs.SyncDir("d"))
	s.must(s.fs.Remove("d/b"))
	want := []string{
		"create: d/a", "allocate: d/a", "write: d/a", "syncdata: d/a", "truncate: d/a", "close: d/a", "rename: d/a -> d/b", "syncdir: d",
		"remove: d/b",
	}
	if got := s.fs.Trace(); !slices.Equal(got, want) {
		t.Errorf("trace %q, want %q", got, want)
	}
}

func (s script) wantFree(want int64) {
	s.t.Helper()
	space, err := s.fs.Space(".")
	s.must(err)
	if space.Free != want {
		s.t.Errorf("%d bytes free, want %d", space.Free, want)
	}
}

func TestQuota(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	s.fs.SetQuota(4 * blockSize)
	a, b := s.file(s.fs.Create("a")), s.file(s.fs.Create("b"))
	s.must(a.Allocate(0, 2*blockSize))
	s.must(b.Truncate(100 * blockSize)) // a hole costs nothing
	s.write(b, 7, "BB")
	s.wantFree(0)
	wantErr(t, a.Allocate(0, 2*blockSize+1), syscall.ENOSPC)
	s.write(a, 0, "AAAAAAAAAAAAAAAA") // preallocated
	n, err := a.WriteAt(make([]byte, 1024), 2*blockSize-512)
	if n != 512 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write over the end of the allocation: %d, %v", n, err)
	}
	s.must(b.Truncate(blockSize))
	s.wantFree(blockSize)
	s.must(s.fs.Remove("a"))
	s.wantFree(blockSize)
	s.must(a.Close()) // now it is gone
	s.wantFree(3 * blockSize)
	s.must(b.Close())
	s.must(s.fs.Rename("b", "c"))
	s.must(s.file(s.fs.Create("b")).Allocate(0, 1))
	s.must(s.fs.Rename("b", "c"))
	s.wantFree(3 * blockSize)
}

func TestQuotaAfterCrashAndKill(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	s.fs.SetQuota(4 * blockSize)
	s.must(s.durable("a", "A").Close())
	s.durable("open", "A")
	s.must(s.fs.Remove("a"))
	s.must(s.fs.Remove("open"))
	s.wantFree(3 * blockSize)
	killed := script{t, s.fs.Clone().Kill()}
	killed.wantFree(4 * blockSize)
	lost := script{t, s.fs.CrashLosingAll()}
	lost.wantFree(2 * blockSize)
}

func TestReadAtEndOfFile(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	f := s.durable("f", "A")
	n, err := f.ReadAt(make([]byte, 1000), 12)
	if n != 500 || err != io.EOF { // io.ReaderAt wants it bare
		t.Errorf("%d, %v", n, err)
	}
	_, err = f.ReadAt(nil, -1)
	wantErr(t, err, syscall.EINVAL)
}

func BenchmarkAppendAndSync(b *testing.B) {
	f := New()
	file, err := f.Create("log")
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 4096)
	b.ReportAllocs()
	for off := int64(0); b.Loop(); off = (off + 4096) % (64 << 20) {
		if _, err := file.WriteAt(buf, off); err != nil {
			b.Fatal(err)
		}
		if err := file.SyncData(); err != nil {
			b.Fatal(err)
		}
	}
}
