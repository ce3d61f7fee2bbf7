package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSoakNoticesLostFiles is the canary of the checker of files: states that were there are accepted, others are not.
func TestSoakNoticesLostFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := newFileLoad(1)
	if err := f.repair(dir); err != nil {
		t.Fatal(err)
	}
	work := func(n uint64) {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		want := f.done.Load() + n
		go func() { ended <- f.work(ctx, dir) }() // ends with ctx
		until(t, "some operations are done", func() bool { return f.done.Load() >= want })
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	work(30)
	early, then := t.TempDir(), f.done.Load()
	mustRun(t, "cp", "-a", dir+"/.", early)
	work(30)
	now := f.done.Load()
	wantErr(t, "all is there", f.check(dir, now, false), "")
	wantErr(t, "an old state, which may be", f.check(early, then, false), "")
	wantErr(t, "an old state, which must not be", f.check(early, now, false), "in no state")

	some := f.state(now)
	for name := range some {
		path := filepath.Join(dir, filesDir, name)
		p, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		p[len(p)-1] ^= 1
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "a bit is wrong", f.check(dir, now, false), "does not have its content")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "a file is gone", f.check(dir, now, false), "in no state")
		break
	}
}

// TestSoakNoticesLostTransactions is the canary of the checker of the database.
func TestSoakNoticesLostTransactions(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("sqlite3"); err != nil {
		require(t, "no sqlite3")
	}
	dir, early := t.TempDir(), t.TempDir()
	d := newDBLoad(1)
	work := func(n uint64) {
		if err := d.open(dir); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		want := d.done.Load() + n
		go func() { ended <- d.work(ctx) }() // ends with ctx
		until(t, "some transactions are done", func() bool { return d.done.Load() >= want })
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if err := d.close(); err != nil {
			t.Fatal(err)
		}
	}
	check := func(dir string, must uint64) error { _, err := d.check(dir, must); return err }
	work(20)
	then := d.done.Load()
	mustRun(t, "cp", "-a", dir+"/.", early)
	work(dbRows)
	now := d.done.Load()
	wantErr(t, "all is there", check(dir, now), "")
	wantErr(t, "an old state, which may be", check(early, then), "")
	wantErr(t, "an old state, which must not be", check(early, now), "the last transaction is")
	mustRun(t, "sqlite3", filepath.Join(dir, dbFile), "DELETE FROM t WHERE n=(SELECT max(n)-7 FROM t);")
	wantErr(t, "a row is gone", check(dir, now), "is expected there is")
	mustRun(t, "sqlite3", filepath.Join(early, dbFile), "UPDATE c SET n=n-1;")
	wantErr(t, "half a transaction", check(early, 0), "the last row is")
}

func wantErr(t *testing.T, what string, err error, words string) {
	t.Helper()
	if (err == nil) != (words == "") || err != nil && !strings.Contains(err.Error(), words) {
		t.Errorf("%s: the checker says %v, want %q", what, err, words)
	}
}
