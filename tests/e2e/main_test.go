package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Bounds of waiting. They are generous because a loaded machine must not make a test fail; a healthy run never gets near them.
const (
	patience  = 90 * time.Second // for anything to become true
	commandly = 80 * time.Second // for one marsadm command
	shortly   = 2 * time.Second  // for a command that shall give up and say what it has waited for
	pollEvery = 25 * time.Millisecond
)

// bin holds the programs under test, built once per run.
var bin struct{ dir, marsd, marsadm string }

func TestMain(m *testing.M) {
	flag.Parse()
	// The tests mostly wait: for time-outs, for disks, for each other's processes. So more of them run at once than there are processors.
	if f := flag.Lookup("test.parallel"); f != nil && f.Value.String() == f.DefValue {
		if err := flag.Set("test.parallel", "6"); err != nil {
			panic(err)
		}
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if err := ownMounts(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := build(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(bin.dir)
	return m.Run()
}

// ownMounts begins again in a mount namespace of its own. Else whoever makes a namespace on the same machine gets a copy of each mount that a test
// has just then, and keeps that file system busy after the test has unmounted it. For the same reason the mounts of others are left out here.
func ownMounts() error {
	const began = "MARS_E2E_OWN_MOUNTS"
	if os.Geteuid() != 0 || os.Getenv(began) != "" {
		return os.Unsetenv(began) // the tests have theirs, or cannot mount anything
	}
	runtime.LockOSThread() // for the thread that goes on, with everything it has, in Exec
	defer runtime.UnlockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWNS); errors.Is(err, syscall.EPERM) {
		return nil // who may not do that can mount nothing either
	} else if err != nil {
		return fmt.Errorf("a mount namespace for the tests: %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("a mount namespace for the tests: %w", err)
	}
	mounts, err := os.ReadFile("/proc/thread-self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] != "/" && (strings.HasPrefix(f[0], "/dev/loop") || strings.HasPrefix(f[1], os.TempDir()+"/")) {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH) // it may be gone by now
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return fmt.Errorf("begin again: %w", syscall.Exec(self, os.Args, append(os.Environ(), began+"=1")))
}

func build() error {
	dir, err := os.MkdirTemp("", "mars-e2e-bin-")
	if err != nil {
		return err
	}
	// The daemon gets a name of its own, so that somebody's "pkill marsd" on the same machine does not meet it.
	bin.dir, bin.marsd, bin.marsadm = dir, filepath.Join(dir, "e2e-marsd"), filepath.Join(dir, "marsadm")
	return errors.Join(buildOne("mars/cmd/marsd", bin.marsd), buildOne("mars/cmd/marsadm", bin.marsadm))
}

func buildOne(what, file string, flags ...string) error {
	args := append([]string{"build", "-o", file}, flags...)
	env := os.Environ()
	if os.Getenv("MARS_E2E_RACE") == "1" {
		args = append(args, "-race")
		env = append(env, "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", append(args, what)...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs under test: %w\n%s", err, out)
	}
	return nil
}

// require skips the test, or fails it when skipping is not allowed.
func require(t *testing.T, missing string) {
	t.Helper()
	if missing == "" {
		return
	}
	if os.Getenv("MARS_TEST_REQUIRE") == "all" {
		t.Fatalf("REQUIRED BUT MISSING: %s", missing)
	}
	t.Skipf("SKIPPED: %s", missing)
}
