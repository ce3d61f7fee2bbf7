package nbd

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"slices"
	"testing"

	"mars/internal/block"
)

func show(t *testing.T, path string) *FrontEnd {
	t.Helper()
	f, err := Show(Config{Export: "vol", Dev: newMemDevice(testSize)}, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Abort)
	return f
}

func TestFrontEnd(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	f := show(t, path)
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket's mode is %v, %v", info.Mode(), err)
	}
	c := open(t, f.Path(), false)
	if users, want := f.Users(), []string{"NBD client " + self(t)}; !slices.Equal(users, want) {
		t.Errorf("Users are %q, want %q", users, want)
	}
	if err := f.Close(t.Context()); !errors.Is(err, block.ErrBusy) {
		t.Errorf("Close: %v", err)
	}
	if err := f.Resized(); err != nil {
		t.Errorf("Resized: %v", err)
	}
	c.nc.Close()
	waitFor(t, "the client to be gone", func() bool { return len(f.Users()) == 0 })
	if err := f.Close(t.Context()); err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestAbortRemovesTheSocket(t *testing.T) {
	t.Parallel()
	f := show(t, socketPath(t))
	c := open(t, f.Path(), false)
	f.Abort()
	c.expectClosed()
	if _, err := os.Lstat(f.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestCloseRightAfterShow(t *testing.T) {
	t.Parallel()
	f := show(t, socketPath(t))
	if err := f.Close(t.Context()); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	f := show(t, path)
	open(t, f.Path(), false).read(0, 512)
}

func TestWhatIsInUseIsNotReplaced(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	f := show(t, path)
	if _, err := Show(Config{Dev: newMemDevice(testSize)}, path); !errors.Is(err, block.ErrBusy) {
		t.Errorf("Show on a served socket: %v", err)
	}
	open(t, f.Path(), false).read(0, 512)

	file := socketPath(t)
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Show(Config{Dev: newMemDevice(testSize)}, file); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Show on a file: %v", err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "precious" {
		t.Errorf("the file holds %q, %v", got, err)
	}
}

func TestShowInNoDirectory(t *testing.T) {
	t.Parallel()
	if _, err := Show(Config{Dev: newMemDevice(testSize)}, socketPath(t)+"/x/y"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Show: %v", err)
	}
}
