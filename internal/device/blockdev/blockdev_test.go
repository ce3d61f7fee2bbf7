package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseMount(t *testing.T) {
	const line = `36 35 7:3 / /srv/my\040data rw,noatime shared:1 master:2 - ext4 /dev/loop3 rw,errors=continue`
	got, ok := parseMount(line)
	want := MountEntry{Dev: "7:3", Point: "/srv/my data", FSType: "ext4", Source: "/dev/loop3"}
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
		if err := PlaceLink(link, node); err != nil {
			t.Fatal(err)
		}
	}
	if err := DropLink(link, "/dev/loop98"); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(link); err != nil || target != "/dev/loop99" {
		t.Errorf("a foreign link was dropped: %q %v", target, err)
	}
	if err := DropLink(link, "/dev/loop99"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(link); !os.IsNotExist(err) {
		t.Errorf("link is still there: %v", err)
	}
}

// Without udev the node of a device has to be made.
func TestEnsureNode(t *testing.T) {
	node, number := filepath.Join(t.TempDir(), "loop9000"), unix.Mkdev(7, 9000)
	if err := EnsureNode(node, number); errors.Is(err, os.ErrPermission) {
		if os.Getenv("MARS_TEST_REQUIRE") == "all" {
			t.Fatal("REQUIRED: ", err)
		}
		t.Skip("SKIPPED: ", err)
	}
	for range 2 {
		if err := EnsureNode(node, number); err != nil {
			t.Fatal(err)
		}
	}
	if err := EnsureNode(node, number+1); err == nil {
		t.Error("another device's node was taken for ours")
	}
	if err := errors.Join(os.Remove(node), os.WriteFile(node, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := EnsureNode(node, number); err == nil {
		t.Error("a file was taken for a device")
	}
}
