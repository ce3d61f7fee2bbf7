package crashfs

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"mars/internal/vfs"
)

// A naive oracle: it keeps the whole file after each operation since the last sync. After a crash, each sector must be as in one of them.
func TestRandomWritesAgainstSnapshots(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 2))
		s := script{t, New()}
		f := s.durable("f", "A")
		snapshots := [][]byte{data("A")}
		for range rng.IntN(30) {
			snapshots = randomChange(s, rng, f, snapshots)
		}
		s.fs = s.fs.Crash(rng)
		got, err := vfs.ReadFile(s.fs, "f", 1<<20)
		s.must(err)
		if !explained(got, snapshots) {
			t.Fatalf("seed %d: %d bytes after the crash are no mixture of the %d states since the last sync", seed, len(got), len(snapshots))
		}
	}
}

func randomChange(s script, rng *rand.Rand, f vfs.File, snapshots [][]byte) [][]byte {
	s.t.Helper()
	now := bytes.Clone(snapshots[len(snapshots)-1])
	switch rng.IntN(6) {
	case 0:
		s.must(f.SyncData())
		return [][]byte{now}
	case 1:
		size := rng.IntN(9000)
		s.must(f.Truncate(int64(size)))
		now = append(now, make([]byte, 9000)...)[:size]
	default:
		p := bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, 1+rng.IntN(2000))
		off := rng.IntN(7000)
		_, err := f.WriteAt(p, int64(off))
		s.must(err)
		now = append(now, make([]byte, max(off+len(p)-len(now), 0))...)
		copy(now[off:], p)
	}
	return append(snapshots, now)
}

func explained(got []byte, snapshots [][]byte) bool {
	hasSize := func(s []byte) bool { return len(s) == len(got) }
	if !slices.ContainsFunc(snapshots, hasSize) {
		return false
	}
	for off := 0; off < len(got); off += 512 {
		sector := got[off:min(off+512, len(got))]
		same := func(s []byte) bool {
			padded := make([]byte, len(sector))
			copy(padded, s[min(off, len(s)):])
			return bytes.Equal(sector, padded)
		}
		if !slices.ContainsFunc(snapshots, same) {
			return false
		}
	}
	return true
}

// A log that is never synced does not collect its sizes for ever; the durable one is kept.
func TestManyUnsyncedSizes(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	f := s.durable("f", "A")
	for i := range int64(100) {
		s.write(f, 1+i, "B")
	}
	if n := len(f.(*handle).ino.sizes); n != maxSizes {
		t.Errorf("%d sizes kept", n)
	}
	if got := show(t, s.fs.CrashLosingAll(), "."); got != "f=A" {
		t.Errorf("%q", got)
	}
}

func TestSizeThatAFailedSyncDropped(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	f := s.durable("f", "A")
	s.write(f, 1, "BB")
	s.fs.Inject(Fault{Drop: true, Err: ErrGone})
	_ = f.Sync() // fails
	s.must(f.Truncate(1024))
	if got := show(t, s.fs.Clone().CrashLosingAll(), "."); got != "f=A" {
		t.Errorf("without another sync: %q", got)
	}
	s.must(f.Sync())
	if got := show(t, s.fs.CrashLosingAll(), "."); got != "f=A." {
		t.Errorf("with another sync: %q", got)
	}
}

func TestRemoveDirectory(t *testing.T) {
	t.Parallel()
	s := script{t, New()}
	s.must(s.fs.MkdirAll("d/e"))
	s.durable("d/e/f", "A")
	wantErr(t, s.fs.Remove("d"), syscall.ENOTEMPTY)
	s.must(s.fs.Remove("d/e/f"))
	s.must(s.fs.Remove("d/e"))
	after := s.fs.CrashLosingAll()
	if names, err := after.ReadDir("d"); len(names) != 0 || err != nil {
		t.Errorf("after the crash: %q, %v", names, err)
	}
}
