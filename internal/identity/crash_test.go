package identity

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"mars/internal/vfs/crashfs"
)

func on(fs *crashfs.FS) files {
	return files{fs, func(string) error { return nil }}
}

// ends are the ways for a process to end.
func ends(fs *crashfs.FS, k int) []*crashfs.FS {
	return []*crashfs.FS{fs.Clone().Kill(), fs.Clone().CrashLosingAll(), fs.Clone().CrashKeepingAll(), fs.Clone().Crash(rand.New(rand.NewPCG(uint64(k), 0)))}
}

// anywhere stops do at every operation, and lets check look at what is there after each way to end. acked: do has said that it is done.
func anywhere(t *testing.T, begin func() *crashfs.FS, do func(files) error, check func(f files, acked bool) error) {
	t.Helper()
	for k := 0; ; k++ {
		fs := begin()
		fs.StopAt(k)
		err := do(on(fs))
		for i, after := range ends(fs, k) {
			if why := check(on(after), err == nil); why != nil {
				t.Fatalf("stopped at operation %d, end %d: %v", k, i, why)
			}
		}
		if err == nil {
			break
		}
	}
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
		for k := 0; ; k++ {
			fs := begin()
			fs.FailAt(k, errno)
			err := do(on(fs))
			if fs.Fired() == 0 {
				break
			}
			if err != nil && !errors.Is(err, errno) {
				t.Fatalf("operation %d: %v", k, err)
			}
			fs.ClearFaults()
			if why := check(on(fs.CrashLosingAll()), err == nil); why != nil {
				t.Fatalf("operation %d fails with %v (%v): %v", k, errno, err, why)
			}
		}
	}
}

var (
	errHalf = errors.New("neither before nor after")
	errLost = errors.New("it was acknowledged and is not so")
)

// An identity that is stored is there completely or not at all; when it is removed it does not come back, nor do its tokens.
func TestIdentityStoppedAnywhere(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	id := must1(Create(now))(t)
	same := func(f files) (bool, error) {
		got, err := f.load("c")
		if errors.Is(err, ErrNone) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if !bytes.Equal(got.cert.Raw, id.cert.Raw) {
			return false, errHalf
		}
		return true, nil
	}
	anywhere(t, crashfs.New, func(f files) error { return f.save(id, "c") }, func(f files, acked bool) error {
		there, err := same(f)
		if err == nil && acked && !there {
			err = errLost
		}
		return err
	})
	saved := func() *crashfs.FS {
		fs := crashfs.New()
		if err := on(fs).save(id, "c"); err != nil {
			t.Fatal(err)
		}
		return fs
	}
	anywhere(t, saved, func(f files) error { return f.remove("c") }, func(f files, acked bool) error {
		there, err := same(f)
		if err == nil && acked && there {
			err = errLost
		}
		return err
	})
}

// A token that was issued is known, and one that was used is used, whatever happens; a second use is never acknowledged.
func TestTokenUsedOnceAnywhere(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	tok := NewToken("h:1", Pin{}, now.Add(time.Hour))
	add := func(f files) error {
		tokens, err := f.openTokens("c")
		if err != nil {
			return err
		}
		return tokens.Add(tok, now)
	}
	redeem := func(f files) error {
		tokens, err := f.openTokens("c")
		if err != nil {
			return err
		}
		return tokens.Redeem(tok.Secret, now)
	}
	anywhere(t, crashfs.New, add, func(f files, acked bool) error {
		if err := redeem(f); err != nil && (acked || !errors.Is(err, ErrTokenUnknown)) {
			return err
		}
		return nil
	})
	issued := func() *crashfs.FS {
		fs := crashfs.New()
		if err := add(on(fs)); err != nil {
			t.Fatal(err)
		}
		return fs
	}
	anywhere(t, issued, redeem, func(f files, acked bool) error {
		switch err := redeem(f); {
		case err == nil && acked:
			return errLost
		case err != nil && !errors.Is(err, ErrTokenUsed):
			return err
		}
		return nil
	})
}

// The order of the operations is what makes crashes harmless.
func TestOperationOrder(t *testing.T) {
	t.Parallel()
	fs := crashfs.New()
	id := must1(Create(time.Unix(1_700_000_000, 0)))(t)
	for _, c := range []struct {
		do   func() error
		want string
	}{
		{func() error { return on(fs).save(id, "c") }, "mkdir: c/identity; remove: c/identity/identity.pem.tmp; create: c/identity/identity.pem.tmp; " +
			"write: c/identity/identity.pem.tmp; sync: c/identity/identity.pem.tmp; close: c/identity/identity.pem.tmp; " +
			"rename: c/identity/identity.pem.tmp -> c/identity/identity.pem; syncdir: c/identity"},
		{func() error { return on(fs).remove("c") }, "remove: c/identity/identity.pem; remove: c/identity/tokens.json; syncdir: c/identity"},
	} {
		fs.StartTrace()
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(fs.Trace(), "; "); got != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
}

func must1[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
