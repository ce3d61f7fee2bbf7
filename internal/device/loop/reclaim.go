package loop

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ProtectFromReclaim keeps memory pressure from turning into a deadlock. A process that serves a block device must not wait for that very
// device when it needs memory: to get a page, the kernel may try to write a dirty page of the file system on top to the device, and wait.
//
// It does two things, and returns what did not work, which is never fatal; a process that is not privileged (CAP_SYS_RESOURCE) gets both errors.
//
//   - PR_SET_IO_FLUSHER: allocations of the flagged threads never start I/O to get memory (PF_MEMALLOC_NOIO), and the threads are not
//     throttled for the dirty pages of others (PF_LOCAL_THROTTLE), as for an ordinary disk driver. The flag belongs to a thread, and is
//     inherited by the threads that it creates. Go creates threads from any thread, so all must have it: the call sets it on every
//     thread that the runtime has now, hence on all that it will ever have. Where the binary is linked with cgo (also: the race detector)
//     the runtime cannot do that; then only the calling thread and what it creates is flagged, and an error says so. Build with
//     CGO_ENABLED=0. Child processes inherit the flag too; it does them no harm.
//   - oom_score_adj -1000: the OOM killer passes over the process. Killing the server of a device that has dirty pages would free little
//     and fail the writes. Child processes inherit it; a process that starts helpers should set theirs back.
//
// Call it early in main, before the first device is shown.
func ProtectFromReclaim() []error {
	var errs []error
	if err := setIOFlusher(); err != nil {
		errs = append(errs, err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		errs = append(errs, fmt.Errorf("protect from the OOM killer: %w", namePrivilege(err)))
	}
	return errs
}

func setIOFlusher() error {
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become an I/O flusher: %w", namePrivilege(err))
	}
	_, _, no := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0)
	if no != 0 {
		return fmt.Errorf("become an I/O flusher on all threads (one is): %w", no)
	}
	return nil
}

// namePrivilege says what is missing: root may lack it in a container.
func namePrivilege(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (it needs CAP_SYS_RESOURCE)", err)
	}
	return err
}
