package knbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"mars/internal/device/blockdev"

	"golang.org/x/sys/unix"
)

// connOf makes a connection of a descriptor, which it takes over.
func connOf(fd int) (net.Conn, error) {
	file := os.NewFile(uintptr(fd), "nbd")
	defer file.Close() // FileConn has its own
	return net.FileConn(file)
}

// Close withdraws the device unless it is in use.
func (f *FrontEnd) Close(ctx context.Context) error {
	select {
	case f.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-f.turn }()
	settled := time.Now().Add(settleTime)
	for !f.gone.Load() {
		err := f.withdraw()
		if err == nil {
			break
		}
		if _, passing := errors.AsType[*blockdev.PassingError](err); passing && time.Now().Before(settled) {
			err = blockdev.Pause(ctx)
		}
		if err != nil {
			return fmt.Errorf("withdraw nbd device of %s: %w", f.cfg.Name, err)
		}
	}
	return nil
}

// withdraw disconnects the device if nobody uses it.
func (f *FrontEnd) withdraw() error {
	if _, ok := find(f.rec.Backend); !ok {
		f.log.Warn("nbd device was disconnected by somebody else", "dev", f.disk().Node())
		f.stopServing()
		f.gone.Store(true)
		return errors.Join(blockdev.DropLink(f.cfg.Link, f.disk().Node()), f.rec.remove(f.cfg.Dir))
	}
	if err := blockdev.Busy(f.users()); err != nil {
		return err
	}
	// O_EXCL fails when anybody has mounted the device, in whatever mount namespace, and keeps everybody from doing it meanwhile. And while it
	// is open here the kernel gives its number to nobody else.
	fd, err := unix.Open(f.disk().Node(), unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return &blockdev.PassingError{Who: "an exclusive opener (perhaps a mount in another mount namespace)"}
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", f.disk().Node(), err)
	}
	err = f.withdrawHeld(fd)
	_ = unix.Close(fd) // was opened for reading
	if err != nil {
		return err
	}
	return f.rec.forget(f.cfg.Dir)
}

// withdrawHeld does it while fd keeps others out.
func (f *FrontEnd) withdrawHeld(fd int) error {
	if err := blockdev.Busy(f.users()); err != nil {
		return err
	}
	if err := blockdev.DropLink(f.cfg.Link, f.disk().Node()); err != nil {
		return err
	}
	// What a program wrote through the page cache and left there when it closed the device; we may have been the last to have it open.
	err := unix.Fsync(fd)
	if err == nil {
		f.rec.Abandoned = true
		err = f.rec.save(f.cfg.Dir)
	}
	if err != nil {
		f.rec.Abandoned = false
		return errors.Join(fmt.Errorf("flush %s: %w", f.disk().Node(), err), blockdev.PlaceLink(f.cfg.Link, f.disk().Node()))
	}
	f.end()
	if err := f.driver.release(f.index, f.rec.Backend); err != nil {
		f.log.Warn("nbd device withdrawn, with errors", "dev", f.disk().Node(), "err", err)
	}
	f.stopServing()
	f.gone.Store(true)
	f.log.Info("nbd device withdrawn", "dev", f.disk().Node())
	return nil
}

// stopServing ends the connection, whatever is under way, and the goroutines.
func (f *FrontEnd) stopServing() {
	f.end()
	f.server.Abort()
	f.keeper.Wait()
}

// Abort withdraws the device at once. Users get I/O errors; its number is free again when the last of them has closed it.
func (f *FrontEnd) Abort() {
	if f.gone.Swap(true) {
		return
	}
	f.end()
	// The kernel says goodbye over the connection, and that could wait for a server that waits for its Device.
	cut := time.AfterFunc(cutTimeout, f.server.Abort)
	err := f.rec.abandon(f.cfg.Dir)
	cut.Stop()
	f.stopServing()
	if err != nil {
		f.log.Warn("nbd device aborted, with errors", "dev", f.disk().Node(), "err", err)
	}
}

// hasten makes the driver look soon after those requests that will be under way when the connection ends. The older ones have the usual timer,
// and are served meanwhile.
func (f *FrontEnd) hasten() {
	if setTimer(f.index, resendHasty) != nil {
		return // as it was all the time
	}
	t := time.NewTimer(leaveDelay)
	defer t.Stop()
	<-t.C
}

// Leave ends serving because the process ends. A device that is in use stays: its requests wait for a process that takes it over. What has been
// received is carried out and answered, as far as that is possible in a moment.
func (f *FrontEnd) Leave() {
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	if f.gone.Load() || f.withdraw() == nil {
		return
	}
	f.hasten()
	f.end()
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	f.server.Drain(ctx)
	f.stopServing()
	f.gone.Store(true)
	f.log.Info("nbd device left to a successor", "dev", f.disk().Node(), "users", f.Users())
}
