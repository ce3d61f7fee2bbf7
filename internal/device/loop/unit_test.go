package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"mars/internal/block"

	"github.com/hanwen/go-fuse/v2/fuse"
)

func TestErrno(t *testing.T) {
	for err, want := range map[error]syscall.Errno{
		block.ErrNoSpace:         syscall.ENOSPC,
		block.ErrAlign:           syscall.EINVAL,
		block.ErrRange:           syscall.EINVAL,
		block.ErrReadOnly:        syscall.EROFS,
		block.ErrClosed:          syscall.ENODEV,
		errors.New("head crash"): syscall.EIO,
	} {
		if got := errno(fmt.Errorf("wrapped: %w", err)); got != fuse.Status(want) {
			t.Errorf("%v gives %v, want %v", err, got, want)
		}
	}
}

func TestParseMount(t *testing.T) {
	const line = `36 35 7:3 / /srv/my\040data rw,noatime shared:1 master:2 - ext4 /dev/loop3 rw,errors=continue`
	got, ok := parseMount(line)
	want := mountEntry{dev: "7:3", point: "/srv/my data", fstype: "ext4", source: "/dev/loop3"}
	if !ok || got != want {
		t.Errorf("got %+v", got)
	}
	for _, bad := range []string{"", "36 35 7:3", "a b c d e f - x", `1 2 3 4 5 6 -`} {
		if m, ok := parseMount(bad); ok {
			t.Errorf("%q parsed as %+v", bad, m)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{``: "", `a\040b`: "a b", `a\04`: `a\04`, `\134`: `\`, `\999x`: `\999x`} {
		if got := unescape(in); got != want {
			t.Errorf("%q gives %q, want %q", in, got, want)
		}
	}
}

func TestLink(t *testing.T) {
	link := filepath.Join(t.TempDir(), "a", "b")
	for _, node := range []string{"/dev/loop98", "/dev/loop99"} {
		if err := placeLink(link, node); err != nil {
			t.Fatal(err)
		}
	}
	if err := dropLink(link, "/dev/loop98"); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(link); err != nil || target != "/dev/loop99" {
		t.Errorf("a foreign link was dropped: %q %v", target, err)
	}
	if err := dropLink(link, "/dev/loop99"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(link); !os.IsNotExist(err) {
		t.Errorf("link is still there: %v", err)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Without udev the node of a loop device has to be made.
func TestEnsureNode(t *testing.T) {
	need(t)
	free := loopDev(9000)
	for ; exists(free.node()); free++ {
	}
	t.Cleanup(func() { _ = os.Remove(free.node()) }) // gone already when all is well
	for range 2 {
		if err := free.ensureNode(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Remove(free.node()), os.WriteFile(free.node(), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := free.ensureNode(); err == nil {
		t.Error("a file was taken for a loop device")
	}
}
