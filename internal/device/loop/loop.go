// Package loop shows a block.Device to applications as a kernel block device, on any kernel that has FUSE and the loop driver:
// a private FUSE file system shows the Device as one regular file, a loop device in direct-IO mode sits on that file, and a symlink with a
// stable name points to the loop device.
//
//	application -> /dev/mars/NAME -> /dev/loopN -> MountDir/NAME/mnt/NAME (FUSE) -> block.Device
//
// What it guarantees:
//
//   - No page cache between the loop device and the Device: a request that the loop device completed has been completed by the Device.
//     FLUSH and FUA of the application become Device.Flush, discard becomes Device.Discard, write-zeroes becomes Device.WriteZeroes when
//     the range must stay allocated and Device.Discard (which zeroes) when it need not.
//   - Close never takes the device away from a user: whether somebody has it open is decided by the kernel's own count of openers, in the
//     same step that keeps new ones out. Users only gives names to what was found.
//   - The symlink never points to somebody else's loop device: it goes before the loop device is given back.
//   - kill -9 of the process fails all I/O at once (no descriptor of the FUSE connection is inherited by children) and leaves a dead
//     loop device, mount and symlink behind, which CleanStale, or the next Open of the same name, removes. Both act only on what the
//     claim file in MountDir/NAME says is ours and whose owner is dead (its flock is gone).
//   - Close and Abort never hang on a request: Abort aborts the FUSE connection, after which the kernel answers everything itself.
//
// What it does not do: survive a restart of the process with the device open (the nbd and ublk front ends do that), and partitions.
// The loop driver submits requests from one kernel thread and waits there for a flush or a discard, so these hold up requests behind them.
// Of the errors of reads and writes those reach the application for which the block layer has a word ("no space", on newer kernels "no such
// device"); everything else, and every error of a flush or discard, is EIO there. The reason is in the log.
//
// The process that serves a device must never depend on it: not swap to it, log to a file system on it, or map files from there. See
// ProtectFromReclaim for the memory side of that. Inside this package a thread that works on the loop device's own node (configure,
// resize, detach) is one that the other threads can serve meanwhile; all such calls are plain blocking system calls, which release the Go
// scheduler's processor, and never go through the network poller. One window is left: a process killed with SIGKILL while it closes the
// node as the last of its openers, right after another program wrote to the node through the page cache, waits for that write in the
// kernel and keeps its own FUSE connection open. `echo 1 > /sys/fs/fuse/connections/N/abort` resolves it; it needs a kill within
// microseconds of a resize or close.
package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"time"

	"mars/internal/block"
	"mars/internal/device"
	"mars/internal/device/blockdev"

	"golang.org/x/sys/unix"
)

const (
	// settleTime is how long Close retries while only short-lived openers are seen: udev probes a device whenever a writer closes it.
	settleTime = 500 * time.Millisecond
	// detachTimeout bounds how long clean-up waits for the kernel to give up a loop device that has no users.
	detachTimeout = 10 * time.Second
	// abortTimeout bounds how long Abort waits for requests that the Device has not answered.
	abortTimeout = 2 * time.Second
)

// Config says what to show and where.
type Config struct {
	// Name of the resource; letters, digits, '.', '_' and '-'.
	Name string
	// Dev is what is shown. It must stay usable until Close or Abort has returned; after that it may still be called by requests that
	// had begun before Abort, and must then fail.
	Dev block.Device
	// MountDir is a directory on a local, ordinary file system (/run/mars/loop) that this package has for itself.
	MountDir string
	// Link is the stable symlink that applications use (/dev/mars/NAME). Empty: none, Path is the loop device's node.
	Link string
	// BlockSize is the logical block size in bytes; 0 means 512.
	BlockSize int
	Log       *slog.Logger
}

// FrontEnd is one Device shown as a loop device. It implements device.FrontEnd.
type FrontEnd struct {
	cfg   Config
	log   *slog.Logger
	place place
	claim *claim
	fs    *volumeFS
	mount *mount
	loop  loopDev

	// turn is a lock with a deadline: it serialises Close and Resized. Abort does not take it, because it must get through while Close
	// waits; all steps that the two share can be done twice.
	turn      chan struct{}
	withdrawn atomic.Bool // the kernel lets no new users in
	gone      atomic.Bool // nothing is left; the loop device's number may belong to somebody else
}

var _ device.FrontEnd = (*FrontEnd)(nil)

var nameRule = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)

// Available tells why this front end cannot be used on this machine; nil when it can.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("loop front end needs root")
	}
	for _, n := range []struct{ path, hint string }{
		{"/dev/fuse", "modprobe fuse"},
		{loopControl, "modprobe loop"},
	} {
		fd, err := unix.Open(n.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("loop front end needs %s (%s?): %w", n.path, n.hint, err)
		}
		_ = unix.Close(fd) // nothing was written
	}
	if _, err := os.Stat(sysBlock); err != nil {
		return fmt.Errorf("loop front end needs sysfs: %w", err)
	}
	return nil
}

// Open shows cfg.Dev. What a killed predecessor of the same name left behind is cleaned up first; a living one is block.ErrBusy.
func Open(cfg Config) (_ *FrontEnd, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	f := &FrontEnd{cfg: cfg, log: cfg.Log.With("res", cfg.Name, "frontend", "loop"), turn: make(chan struct{}, 1)}
	if f.place, err = makePlace(cfg.MountDir, cfg.Name); err != nil {
		return nil, err
	}
	if f.claim, err = takeClaim(f.place); err != nil {
		return nil, err
	}
	if err := f.open(); err != nil {
		f.Abort()
		return nil, fmt.Errorf("show %s as a loop device: %w", cfg.Name, err)
	}
	f.log.Info("loop device shown", "dev", f.loop.node(), "link", cfg.Link, "size", f.fs.size())
	return f, nil
}

func (c *Config) check() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.BlockSize == 0 {
		c.BlockSize = block.SectorSize
	}
	switch {
	case !nameRule.MatchString(c.Name):
		return fmt.Errorf("%q cannot be the name of a loop front end", c.Name)
	case c.Dev == nil || c.MountDir == "":
		return errors.New("loop front end without a device or a mount directory")
	case c.BlockSize < block.SectorSize || c.BlockSize > os.Getpagesize() || c.BlockSize&(c.BlockSize-1) != 0:
		return fmt.Errorf("logical block size %d is not a power of two from 512 to the page size", c.BlockSize)
	case c.Link != "" && !filepath.IsAbs(c.Link):
		return fmt.Errorf("link %q is not an absolute path", c.Link)
	}
	return nil
}

// open builds everything up. What it did when it failed is undone by Abort.
func (f *FrontEnd) open() error {
	f.loop = noLoop
	if left, err := cleanClaimed(f.place, f.claim); err != nil {
		return err
	} else if left != nil {
		f.log.Warn("dead predecessor still has users", "dev", left.Device, "users", left.Users)
	}
	f.fs = newVolumeFS(f.cfg, f.log)
	var err error
	if f.mount, err = mountVolume(f.place, f.fs, f.log); err != nil {
		return err
	}
	if f.loop, err = attachLoop(f.place.file(), f.cfg); err != nil {
		return err
	}
	f.fs.sealed.Store(true)
	if err := verifyLoop(f.loop, f.fs.size()); err != nil {
		return err
	}
	if f.cfg.Link == "" {
		return nil
	}
	if err := f.claim.record(claimState{Link: f.cfg.Link, Node: f.loop.node()}); err != nil {
		return err
	}
	return blockdev.PlaceLink(f.cfg.Link, f.loop.node())
}

// Path is the stable link, or the loop device's node when there is none.
func (f *FrontEnd) Path() string {
	if f.cfg.Link != "" {
		return f.cfg.Link
	}
	return f.loop.node()
}

// Resized tells the kernel that the Device has grown. It returns when the block device has its new size.
func (f *FrontEnd) Resized() error {
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	if f.withdrawn.Load() || f.gone.Load() {
		return fmt.Errorf("resize loop device of %s: %w", f.cfg.Name, block.ErrClosed)
	}
	size := f.fs.size()
	// The loop driver of older kernels looks at the cached inode only; this brings the inode up to date.
	if err := statSize(f.place.file(), size); err != nil {
		return err
	}
	d, err := f.loop.openBound(f.place.file(), 0)
	if err != nil {
		return fmt.Errorf("resize loop device of %s: %w", f.cfg.Name, err)
	}
	defer d.close()
	if err := d.setCapacity(); err != nil {
		return fmt.Errorf("resize loop device of %s: %w", f.cfg.Name, err)
	}
	return d.checkSize(size)
}

// Close withdraws the device unless it is in use. When ctx ends before all is gone, Close can be called again to go on.
func (f *FrontEnd) Close(ctx context.Context) error {
	select {
	case f.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-f.turn }()
	if f.gone.Load() {
		return nil
	}
	if !f.withdrawn.Load() {
		if err := f.withdraw(ctx); err != nil {
			return fmt.Errorf("withdraw loop device of %s: %w", f.cfg.Name, err)
		}
	}
	if err := f.teardown(ctx); err != nil {
		return fmt.Errorf("take down loop device of %s: %w", f.cfg.Name, err)
	}
	f.log.Info("loop device withdrawn", "dev", f.loop.node())
	return nil
}

// withdraw keeps new users out, or fails because there are some. Short-lived openers get settleTime to go away.
func (f *FrontEnd) withdraw(ctx context.Context) error {
	settled := time.Now().Add(settleTime)
	for {
		err := f.tryWithdraw()
		if _, passing := errors.AsType[*blockdev.PassingError](err); !passing || time.Now().After(settled) {
			return err
		}
		if err := blockdev.Pause(ctx); err != nil {
			return err
		}
	}
}

func (f *FrontEnd) tryWithdraw() error {
	if err := blockdev.Busy(f.users()); err != nil {
		return err
	}
	// O_EXCL fails when anybody has mounted the device, in whatever mount namespace, and keeps everybody from doing it meanwhile.
	d, err := f.loop.openBound(f.place.file(), unix.O_EXCL)
	if errors.Is(err, errForeign) {
		f.log.Warn("loop device was detached by somebody else", "dev", f.loop.node())
		f.withdrawn.Store(true)
		return blockdev.DropLink(f.cfg.Link, f.loop.node())
	}
	if err != nil {
		return err
	}
	defer d.close()
	if err := blockdev.DropLink(f.cfg.Link, f.loop.node()); err != nil {
		return err
	}
	if err := d.detach(); err != nil {
		return errors.Join(err, f.restoreLink())
	}
	f.withdrawn.Store(true)
	return nil
}

func (f *FrontEnd) restoreLink() error {
	if f.cfg.Link == "" {
		return nil
	}
	err := blockdev.PlaceLink(f.cfg.Link, f.loop.node())
	if f.gone.Load() { // Abort came in between, and may have looked for the link before it was back
		return errors.Join(err, blockdev.DropLink(f.cfg.Link, f.loop.node()))
	}
	return err
}

// teardown removes what is below the loop device once the kernel has given it up.
func (f *FrontEnd) teardown(ctx context.Context) error {
	if err := f.loop.waitDetached(ctx, f.place.file()); err != nil {
		return err
	}
	if err := f.mount.unmount(ctx); err != nil {
		return err
	}
	if f.gone.Swap(true) {
		return nil // Abort came in between and has done the rest
	}
	return f.claim.drop()
}

// Users names whoever has the loop device open.
func (f *FrontEnd) Users() []string {
	return blockdev.Names(f.users())
}

// users is empty when the loop device is not ours (any more): its users are somebody else's.
func (f *FrontEnd) users() []blockdev.User {
	if f.loop.backing() != f.place.file() {
		return nil
	}
	return f.loop.disk().Users(f.cfg.Link)
}

// Abort withdraws the device at once. Users get I/O errors; the loop device's number is free again when the last of them has closed it.
func (f *FrontEnd) Abort() {
	if f.gone.Swap(true) {
		return
	}
	f.withdrawn.Store(true)
	if f.fs != nil {
		f.fs.dead.Store(true)
	}
	err := errors.Join(blockdev.DropLink(f.cfg.Link, f.loop.node()), f.loop.forceDetach(f.place.file()))
	if f.mount != nil {
		ctx, cancel := context.WithTimeout(context.Background(), abortTimeout)
		defer cancel()
		err = errors.Join(err, f.mount.abort(ctx))
	}
	if err = errors.Join(err, f.claim.drop()); err != nil {
		f.log.Warn("loop device aborted, with errors", "dev", f.loop.node(), "err", err)
	}
}
