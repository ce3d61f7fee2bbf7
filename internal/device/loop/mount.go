package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"mars/internal/device/blockdev"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fuseType is the file system type that our mounts, and only ours, have.
const fuseType = "fuse.mars"

// mount is a mounted volumeFS with the goroutines that serve it.
type mount struct {
	at     string
	served chan struct{} // closed when the last request has been answered and the FUSE descriptor is closed
}

// mountVolume mounts and starts to serve. The goroutine that it starts ends when the file system is unmounted or aborted.
func mountVolume(p place, v *volumeFS, log *slog.Logger) (*mount, error) {
	if err := os.Mkdir(p.mnt(), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("mount point: %w", err)
	}
	fd, err := mountFuse(p)
	if err != nil {
		return nil, err
	}
	// We mount ourselves and hand over the descriptor, because go-fuse's own direct mount leaves it open in child processes: then kill -9
	// of this process would not fail the pending requests as long as a child lives.
	srv, err := fuse.NewServer(v, fmt.Sprintf("/dev/fd/%d", fd), fuseOptions(p, log))
	if err != nil { // the descriptor is closed by now
		return nil, errors.Join(fmt.Errorf("serve fuse: %w", err), detachMount(p.mnt()))
	}
	m := &mount{at: p.mnt(), served: make(chan struct{})}
	go func() {
		defer close(m.served)
		srv.Serve()
	}()
	return m, nil
}

func mountFuse(p place) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40700,user_id=%d,group_id=%d,max_read=%d", fd, os.Geteuid(), os.Getegid(), maxTransfer)
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("mars:"+p.name, p.mnt(), fuseType, flags, opts); err != nil {
		_ = unix.Close(fd) // the error that matters is the mount's
		return -1, fmt.Errorf("mount %s: %w", p.mnt(), err)
	}
	return fd, nil
}

func fuseOptions(p place, log *slog.Logger) *fuse.MountOptions {
	return &fuse.MountOptions{
		FsName:              "mars:" + p.name,
		Name:                "mars",
		MaxWrite:            maxTransfer,
		MaxBackground:       maxBackground,
		CongestionThreshold: maxBackground,
		ExtraCapabilities:   fuse.CAP_ASYNC_DIO, // else the loop driver's thread would wait for every request
		DisableXAttrs:       true,
		DisableReadDirPlus:  true,
		DisableSplice:       true, // our data is in memory
		Logger:              slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// unmount takes the file system away once nobody, that is the loop device, has the file open any more.
func (m *mount) unmount(ctx context.Context) error {
	err := blockdev.Poll(ctx, "unmount "+m.at, func() (bool, error) {
		err := unix.Unmount(m.at, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			return false, nil
		}
		return true, ignoreNotMounted(err)
	})
	if err != nil {
		return err
	}
	return m.wait(ctx)
}

// abort makes the kernel fail all requests, pending and future, and hides the mount.
func (m *mount) abort(ctx context.Context) error {
	return errors.Join(detachMount(m.at), m.wait(ctx))
}

func (m *mount) wait(ctx context.Context) error {
	select {
	case <-m.served:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("requests to the device are still running: %w", context.Cause(ctx))
	}
}

// detachMount aborts the FUSE connection (that is what MNT_FORCE means to FUSE) and unmounts lazily.
func detachMount(at string) error {
	err := unix.Unmount(at, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err = ignoreNotMounted(err); err != nil {
		return fmt.Errorf("abort mount %s: %w", at, err)
	}
	return nil
}

// abortMount only aborts the connection; the mount keeps its place.
func abortMount(at string) error {
	err := unix.Unmount(at, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return nil // aborted, and still there
	}
	if err = ignoreNotMounted(err); err != nil {
		return fmt.Errorf("abort mount %s: %w", at, err)
	}
	return nil
}

// ignoreNotMounted: EINVAL is the kernel's word for "not a mount point".
func ignoreNotMounted(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
