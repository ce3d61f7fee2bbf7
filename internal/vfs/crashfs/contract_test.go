package crashfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"syscall"
	"testing"

	"mars/internal/vfs"
)

// runner does random operations on a file system and describes what came out.
type runner struct {
	rng  *rand.Rand
	fs   vfs.FS
	dir  string
	open [3]vfs.File
}

func (r *runner) name() string {
	names := [...]string{"a", "b", "c", "d/a", "d/e/b", "d", "x/y"}
	return path.Join(r.dir, names[r.rng.IntN(len(names))])
}

func (r *runner) step() string {
	if slot := r.rng.IntN(6); slot < len(r.open) && r.open[slot] != nil {
		return r.fileStep(slot)
	}
	switch r.rng.IntN(7) {
	case 0, 1:
		return r.openStep("create", r.fs.Create)
	case 2:
		return r.openStep("open", r.fs.Open)
	case 3:
		return "remove " + outcome(r.fs.Remove(r.name()))
	case 4:
		from, to := r.name(), r.name()
		if base := path.Base(from); base == "d" || path.Base(to) == "d" {
			return "" // directories: not supported by crashfs
		}
		return "rename " + outcome(r.fs.Rename(from, to))
	case 5:
		return "mkdir " + outcome(r.fs.MkdirAll(path.Join(r.dir, "d/e")))
	}
	return r.list()
}

func (r *runner) list() string {
	s := ""
	for _, dir := range []string{"", "d", "d/e", "x"} {
		names, err := r.fs.ReadDir(path.Join(r.dir, dir))
		s += fmt.Sprintf("list %q %s %s ", names, outcome(err), outcome(r.fs.SyncDir(path.Join(r.dir, dir))))
	}
	return s
}

func (r *runner) openStep(what string, open func(string) (vfs.File, error)) string {
	f, err := open(r.name())
	if err != nil {
		return what + " " + outcome(err)
	}
	slot := r.rng.IntN(len(r.open))
	if r.open[slot] != nil {
		what += " " + outcome(r.open[slot].Close())
	}
	r.open[slot] = f
	return what
}

func (r *runner) fileStep(slot int) string {
	f := r.open[slot]
	off, n := r.rng.Int64N(20000), r.rng.IntN(9000)
	switch r.rng.IntN(9) {
	case 0, 1:
		k, err := f.WriteAt(r.bytes(n), off)
		return fmt.Sprintf("write %d %s", k, outcome(err))
	case 2:
		k, err := f.WritevAt([][]byte{r.bytes(n), nil, r.bytes(n / 2)}, off)
		return fmt.Sprintf("writev %d %s", k, outcome(err))
	case 3:
		return "truncate " + outcome(f.Truncate(off))
	case 4:
		return "allocate " + outcome(f.Allocate(off, int64(n)))
	case 5:
		r.open[slot] = nil
		return "close " + outcome(errors.Join(f.Sync(), f.SyncData(), f.Close()))
	case 6:
		size, err := f.Size()
		return fmt.Sprintf("size %d %s", size, outcome(err))
	}
	p := make([]byte, n)
	k, err := f.ReadAt(p, off)
	return fmt.Sprintf("read %d %08x %s", k, crc32.ChecksumIEEE(p[:k]), outcome(err))
}

func (r *runner) bytes(n int) []byte {
	p := make([]byte, n+7)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.rng.Uint64())
	}
	return p[:n]
}

func outcome(err error) string {
	for _, is := range []error{
		fs.ErrNotExist, fs.ErrExist, io.EOF, syscall.EISDIR, syscall.ENOTDIR, syscall.ENOTEMPTY, syscall.EINVAL, fs.ErrClosed,
	} {
		if errors.Is(err, is) {
			return is.Error()
		}
	}
	if err != nil {
		return err.Error()
	}
	return "ok"
}

// The fake does the same as the operating system, operation by operation.
func TestBehavesLikeTheOperatingSystem(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		fake := New()
		a := runner{rng: rand.New(rand.NewPCG(seed, 3)), fs: fake, dir: "."}
		b := runner{rng: rand.New(rand.NewPCG(seed, 3)), fs: vfs.OS(), dir: t.TempDir()}
		for i := range 150 {
			if got, want := a.step(), b.step(); got != want {
				t.Fatalf("seed %d, operation %d: %q, the operating system %q", seed, i, got, want)
			}
		}
		for _, f := range b.open {
			if f != nil {
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
