package loop

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestProtectFromReclaim runs in processes of its own, because it changes the process for good: with the privileges of this one, whatever they
// are, and without the capability. What is right depends on them; the helper knows both.
func TestProtectFromReclaim(t *testing.T) {
	for _, c := range []struct {
		name  string
		start func(*exec.Cmd) error
	}{
		{"as we are", (*exec.Cmd).Start},
		{"without the capability", startUnprivileged},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "MARS_LOOP_HELPER=protect")
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := c.start(cmd); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v: %s", err, out.String())
			}
			t.Log(out.String())
		})
	}
}

// startUnprivileged starts cmd so that it can never have CAP_SYS_RESOURCE.
func startUnprivileged(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() { // ends when the process is started, and takes its thread along, which has lost the capability for good
		runtime.LockOSThread()
		err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_RESOURCE, 0, 0, 0)
		if errors.Is(err, unix.EPERM) {
			err = nil // we are not privileged anyway, and the helper will say so
		}
		started <- errors.Join(err, cmd.Start())
	}()
	return <-started
}

// helperProtect ends with 0 when ProtectFromReclaim does what the privileges of this process allow, and says else what is missing.
func helperProtect() int {
	if err := checkProtect(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func checkProtect() error {
	privileged, err := sysResource()
	if err != nil {
		return err
	}
	before, err := os.ReadFile(oomScore)
	if err != nil {
		return err
	}
	errs := ProtectFromReclaim()
	fmt.Printf("privileged: %v, errors: %v\n", privileged, errs)
	if !privileged {
		return errors.Join(checkRefused(errs), checkThreads(false), checkScore(string(before)))
	}
	if len(errs) == 1 && errors.Is(errs[0], syscall.ENOTSUP) {
		return checkScore("-1000\n") // linked with cgo: the runtime cannot reach all threads
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return errors.Join(checkThreads(true), checkScore("-1000\n"))
}

const oomScore = "/proc/self/oom_score_adj"

func checkScore(want string) error {
	got, err := os.ReadFile(oomScore)
	if err == nil && string(got) != want {
		err = fmt.Errorf("OOM score is %q, want %q", got, want)
	}
	return err
}

// checkRefused: both measures fail, and the errors tell the operator what to grant.
func checkRefused(errs []error) error {
	if len(errs) != 2 {
		return fmt.Errorf("%d errors, want 2", len(errs))
	}
	for _, err := range errs {
		if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_SYS_RESOURCE") {
			return fmt.Errorf("error does not name the capability: %w", err)
		}
	}
	return nil
}

// checkThreads: either all threads are flagged or none is.
func checkThreads(flagged bool) error {
	const memallocNoIO = 0x80000 // PF_MEMALLOC_NOIO
	stats, err := filepath.Glob("/proc/self/task/*/stat")
	if err != nil {
		return err
	}
	for _, s := range stats {
		b, err := os.ReadFile(s)
		if err != nil {
			continue // the thread has ended
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		flags, err := strconv.ParseUint(strings.Fields(rest)[6], 10, 64)
		if err != nil {
			return fmt.Errorf("flags of thread %q: %w", b, err)
		}
		if (flags&memallocNoIO != 0) != flagged {
			return fmt.Errorf("a thread is an I/O flusher: %v, want %v: %s", !flagged, flagged, b)
		}
	}
	return nil
}

func hasSysResource(t *testing.T) bool {
	t.Helper()
	has, err := sysResource()
	if err != nil {
		t.Fatal(err)
	}
	return has
}

// sysResource says whether this process has CAP_SYS_RESOURCE where it counts: over the machine, not only over a user namespace.
func sysResource() (bool, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false, err
	}
	_, rest, _ := strings.Cut(string(status), "\nCapEff:\t")
	hex, _, _ := strings.Cut(rest, "\n")
	effective, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		return false, fmt.Errorf("capabilities of this process: %w", err)
	}
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false, err
	}
	initial := strings.Join(strings.Fields(string(ids)), " ") == "0 0 4294967295"
	return initial && effective>>unix.CAP_SYS_RESOURCE&1 != 0, nil
}
