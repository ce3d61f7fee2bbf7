package vfs_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"mars/internal/vfs"
	"mars/internal/vfs/crashfs"
)

const posFile = "d/pos"

// withOld returns a file system that holds "old" durably in d/pos.
func withOld(t *testing.T) *crashfs.FS {
	t.Helper()
	fs := crashfs.New()
	if err := errors.Join(fs.MkdirAll("d"), vfs.WriteFileAtomic(fs, posFile, []byte("old"))); err != nil {
		t.Fatal(err)
	}
	return fs
}

func content(t *testing.T, fs vfs.FS) string {
	t.Helper()
	data, err := vfs.ReadFile(fs, posFile, 100)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestWriteFileAtomicOrder(t *testing.T) {
	fs := withOld(t)
	fs.StartTrace()
	if err := vfs.WriteFileAtomic(fs, posFile, []byte("new")); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"create: d/pos.tmp", "write: d/pos.tmp", "sync: d/pos.tmp", "close: d/pos.tmp", "rename: d/pos.tmp -> d/pos", "syncdir: d",
	}
	if got := fs.Trace(); !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
}

// Each operation fails once. The error surfaces, the content is old or new now and after a crash, and the next attempt succeeds.
func TestWriteFileAtomicFailsAtEachOperationUntilSuccess(t *testing.T) {
	injected := errors.New("injected")
	for i := 0; ; i++ {
		fs := withOld(t)
		fs.FailAt(i, injected)
		err := vfs.WriteFileAtomic(fs, posFile, []byte("new"))
		if err == nil {
			if i != 6 {
				t.Errorf("success after %d failures, want 6", i)
			}
			return
		}
		if !errors.Is(err, injected) {
			t.Fatalf("operation %d: error %v", i, err)
		}
		crashes(t, fs)
		if err := vfs.WriteFileAtomic(fs, posFile, []byte("new")); err != nil {
			t.Fatalf("after the failure of operation %d: %v", i, err)
		}
		if got := content(t, fs.CrashLosingAll()); got != "new" {
			t.Fatalf("acknowledged content lost: %q", got)
		}
	}
}

// crashes cuts the power in many ways, expects the old or the new content each time, and returns which of them occurred.
func crashes(t *testing.T, fs *crashfs.FS) map[string]bool {
	t.Helper()
	seen := map[string]bool{}
	for seed := range uint64(100) {
		got := content(t, fs.Clone().Crash(rand.New(rand.NewPCG(seed, 0))))
		if got != "old" && got != "new" {
			t.Fatalf("seed %d: content %q after a crash", seed, got)
		}
		seen[got] = true
	}
	return seen
}

// The power fails between any two operations.
func TestWriteFileAtomicCrashesAfterEachOperation(t *testing.T) {
	want := []string{"old", "old", "old", "old", "old", "both", "new"}
	for k, want := range want {
		fs := withOld(t)
		fs.StopAt(k)
		err := vfs.WriteFileAtomic(fs, posFile, []byte("new"))
		if (err == nil) != (k == 6) {
			t.Fatalf("%d operations: error %v", k, err)
		}
		seen := crashes(t, fs)
		if seen["old"] != (want != "new") || seen["new"] != (want != "old") {
			t.Errorf("after %d operations: %v, want %s", k, seen, want)
		}
	}
}

func TestReadFileLimit(t *testing.T) {
	fs := withOld(t)
	if _, err := vfs.ReadFile(fs, posFile, 2); err == nil {
		t.Error("a file over the limit was read")
	}
	if err := vfs.WriteFileAtomic(fs, posFile, nil); err != nil {
		t.Fatal(err)
	}
	if got := content(t, fs); got != "" {
		t.Errorf("empty file reads %q", got)
	}
}
