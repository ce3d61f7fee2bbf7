package loop

import (
	"errors"
	"fmt"
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
