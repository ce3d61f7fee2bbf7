package ublk

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
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
	// abortTimeout bounds how long Abort and Leave wait for the Device, or for the kernel.
	abortTimeout = 2 * time.Second
)

// Config says what to show and where.
type Config struct {
	// Resource is its identity for ever, in hexadecimal digits. There is one device of a resource at a time.
	Resource string
	// Dev is what is shown. It must stay usable until Close, Abort or Leave has returned; after that it may still be called by requests that
	// had begun before, and must then fail.
	Dev block.Device
	// Dir is a directory that this package has for itself.
	Dir string
	// Link is the stable symlink that applications use (/dev/mars/NAME).
	Link string
	// BlockSize is the logical block size in bytes; 0 means 512.
	BlockSize int
	// Tenure names the time during which Dev changes by what its users write, and by nothing else.
	Tenure string
	// Continues tells whether Dev has the content that the users of a device of a former tenure expect: all that was answered there, and
	// nothing else.
	Continues func(tenure string) bool
	Log       *slog.Logger
}

// FrontEnd is one Device shown as a ublk device. It implements device.Survivor.
type FrontEnd struct {
	cfg    Config
	log    *slog.Logger
	rec    record
	number number
	size   atomic.Int64 // as the kernel has it
	server *server

	// turn is a lock with a deadline: it serialises Close and Resized. Abort does not take it, because it must get through while Close waits.
	turn chan struct{}
	gone atomic.Bool // nothing is left; the number may belong to somebody else
}

var _ device.Survivor = (*FrontEnd)(nil)

// Available tells why this front end cannot be used on this machine; nil when it can.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("ublk front end needs root")
	}
	got, err := kernelFeatures()
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("ublk front end needs the driver (modprobe ublk_drv?): %w", err)
	}
	if err != nil {
		return fmt.Errorf("ublk front end needs Linux 6.5 or later: %w", err)
	}
	if got&features != features {
		return fmt.Errorf("ublk front end needs Linux 6.5 or later: the driver can %#x of %#x", got&features, features)
	}
	return nil
}

// Open shows cfg.Dev. A device that a dead process has left of the same resource is taken over, with all who have it open, or, when that must not or
// cannot be, taken away; one that a living process serves is block.ErrBusy.
func Open(cfg Config) (*FrontEnd, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	f := &FrontEnd{cfg: cfg, log: cfg.Log.With("link", cfg.Link, "frontend", "ublk"), turn: make(chan struct{}, 1)}
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("show %s as a ublk device: %w", cfg.Link, err)
	}
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
	case !isID(c.Resource):
		return fmt.Errorf("%q is not the identity of a resource", c.Resource)
	case c.Dev == nil || c.Dir == "" || c.Tenure == "" || c.Continues == nil:
		return errors.New("ublk front end without a device, a directory or a tenure")
	case c.BlockSize < block.SectorSize || c.BlockSize > pageSize || c.BlockSize&(c.BlockSize-1) != 0:
		return fmt.Errorf("logical block size %d is not a power of two from 512 to %d", c.BlockSize, pageSize)
	case !filepath.IsAbs(c.Link):
		return fmt.Errorf("link %q is not an absolute path", c.Link)
	}
	return nil
}

// geometry is that of the Device: whole logical blocks, since the kernel could not address the rest.
func (f *FrontEnd) geometry() geometry {
	bs := f.cfg.BlockSize
	return geometry{size: f.cfg.Dev.Size() &^ int64(bs-1), blockSize: bs}
}

func (f *FrontEnd) open() error {
	taken, err := f.takeOver()
	if err != nil || taken {
		return err
	}
	return f.create()
}

// create makes a new device.
func (f *FrontEnd) create() error {
	f.rec = record{Cookie: newCookie(), Resource: f.cfg.Resource, Tenure: f.cfg.Tenure, Link: f.cfg.Link}
	if err := f.rec.save(f.cfg.Dir); err != nil {
		return err
	}
	g := f.geometry()
	n, err := addDevice(f.rec.Cookie, g)
	if err != nil {
		return errors.Join(err, f.rec.remove(f.cfg.Dir))
	}
	f.number = n
	err = f.start(ctlStart)
	if err == nil {
		err = blockdev.PlaceLink(f.cfg.Link, n.disk().Node())
	}
	if err != nil {
		f.Abort()
		return err
	}
	f.size.Store(g.size)
	f.log.Info("ublk device shown", "dev", n.disk().Node(), "size", g.size)
	return nil
}

func newCookie() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:])
		if c := binary.LittleEndian.Uint64(b[:]); c != 0 {
			return c
		}
	}
}

// start serves the device and then tells the driver so, by the command that starts it or the one that ends its recovery.
func (f *FrontEnd) start(op uint32) error {
	s, err := startServer(f.number, f.cfg.Dev, f.log)
	if err != nil {
		return err
	}
	f.server = s
	if err := f.number.command(op, uint64(os.Getpid()), nil); err != nil {
		return fmt.Errorf("start ublk device %d: %w", f.number, err)
	}
	dev, err := f.number.disk().Number()
	if err != nil {
		return err
	}
	if err := blockdev.EnsureNode(f.number.disk().Node(), dev); err != nil {
		return err
	}
	if err := f.number.tune(); err != nil {
		f.log.Warn("ublk device is not set up as it should be", "err", err)
	}
	return nil
}

// tune sets what the driver has no parameters for. The volume puts writes in an order of its own, so sorting them costs time only. One request
// less than there are tags means that there is always a command that waits in the driver: when the process dies, kernels before 6.16 notice it by
// that command at once, else only when a request times out.
func (n number) tune() error {
	for _, x := range []struct{ file, value string }{
		{"scheduler", "none"},
		{"nr_requests", fmt.Sprint(depth - 1)},
	} {
		if err := os.WriteFile(n.disk().Sys("queue", x.file), []byte(x.value), 0); err != nil {
			return fmt.Errorf("set up ublk device %d: %w", n, err)
		}
	}
	return nil
}

// Path is the stable link.
func (f *FrontEnd) Path() string { return f.cfg.Link }

// Users names whoever has the device or a partition of it open.
func (f *FrontEnd) Users() []string { return blockdev.Names(f.users()) }

func (f *FrontEnd) users() []blockdev.User {
	if f.gone.Load() {
		return nil
	}
	return f.number.disk().Users(f.cfg.Link)
}

// Resized tells the kernel that the Device has grown. Kernels before 6.16 cannot change the size of a ublk device: then it says so, and the
// device keeps its size until it is shown anew.
func (f *FrontEnd) Resized() error {
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	if f.gone.Load() {
		return fmt.Errorf("resize %s: %w", f.cfg.Link, block.ErrClosed)
	}
	size := f.geometry().size
	if size == f.size.Load() {
		return nil
	}
	got, err := kernelFeatures()
	if err == nil && got&featUpdateSize == 0 {
		err = fmt.Errorf("%w: this needs Linux 6.16; the volume has grown, but %s shows %d bytes until no one uses it and it is shown anew",
			errors.ErrUnsupported, f.cfg.Link, f.size.Load())
	}
	if err == nil {
		err = f.number.command(ctlUpdateSize, uint64(size)>>9, nil)
	}
	if err != nil {
		return fmt.Errorf("resize ublk device %d: %w", f.number, err)
	}
	f.size.Store(size)
	return nil
}

// Close withdraws the device unless it is in use.
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
	settled := time.Now().Add(settleTime)
	for {
		err := f.tryClose()
		if err == nil {
			f.log.Info("ublk device withdrawn", "dev", f.number.disk().Node())
			return nil
		}
		if _, passing := errors.AsType[*blockdev.PassingError](err); !passing || time.Now().After(settled) {
			return fmt.Errorf("withdraw %s: %w", f.cfg.Link, err)
		}
		if err := blockdev.Pause(ctx); err != nil {
			return err
		}
	}
}

func (f *FrontEnd) tryClose() error {
	if err := blockdev.Busy(f.users()); err != nil {
		return err
	}
	// O_EXCL fails when anybody has mounted the device, in whatever mount namespace, and keeps everybody from doing it meanwhile.
	fd, err := unix.Open(f.number.disk().Node(), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return &blockdev.PassingError{Who: "an exclusive opener (perhaps a mount in another mount namespace)"}
	}
	if err != nil {
		return err
	}
	err = f.quiet(fd)
	_ = unix.Close(fd) // opened for reading, there is nothing to lose
	if err != nil {
		return err
	}
	return f.withdraw()
}

// quiet makes sure that nobody writes any more, and that what was written through the page cache has arrived. Who opens the device from now on
// finds it read-only, so whoever could write is among the users that are looked for after that.
func (f *FrontEnd) quiet(fd int) error {
	if err := setReadOnly(fd, true); err != nil {
		return err
	}
	err := blockdev.Busy(f.users())
	if err == nil {
		err = unix.Fsync(fd)
	}
	if err != nil {
		return errors.Join(err, setReadOnly(fd, false))
	}
	return nil
}

func setReadOnly(fd int, on bool) error {
	value := 0
	if on {
		value = 1
	}
	if err := unix.IoctlSetPointerInt(fd, unix.BLKROSET, value); err != nil {
		return fmt.Errorf("make read-only: %w", err)
	}
	return nil
}

// withdraw takes the device away, whoever uses it.
func (f *FrontEnd) withdraw() error {
	if f.gone.Swap(true) {
		return nil
	}
	err := blockdev.DropLink(f.cfg.Link, f.number.disk().Node())
	err = errors.Join(err, f.number.remove())
	if f.server != nil {
		err = errors.Join(err, f.server.join(abortTimeout))
	}
	return errors.Join(err, f.rec.remove(f.cfg.Dir))
}

// Abort withdraws the device at once. Users get errors; the number is free again when the last of them has closed it.
func (f *FrontEnd) Abort() {
	if f.server != nil {
		f.server.queue.fail()
	}
	done := make(chan error, 1)
	go func() { done <- f.withdraw() }() // ends when the kernel has got its answers, which the Device can delay
	t := time.NewTimer(2 * abortTimeout)
	defer t.Stop()
	select {
	case err := <-done:
		if err != nil {
			f.log.Warn("ublk device aborted, with errors", "dev", f.number.disk().Node(), "err", err)
		}
	case <-t.C:
		f.log.Warn("ublk device aborted, but the kernel still waits for requests", "dev", f.number.disk().Node())
	}
}

// Leave implements device.Survivor. A device that nobody uses is withdrawn: there is nobody to wait for it.
func (f *FrontEnd) Leave() {
	if len(f.users()) == 0 {
		f.Abort()
		return
	}
	if f.gone.Swap(true) {
		return
	}
	f.server.queue.leave()
	if err := f.server.join(abortTimeout); err != nil {
		f.log.Warn("ublk device left, with errors", "err", err)
	}
	f.log.Info("ublk device left to the next marsd; its users wait", "dev", f.number.disk().Node())
}

// server is what serves one device: its file and its queue with the goroutines that work there.
type server struct {
	file  int
	queue *queue
	ended chan struct{} // closed when the goroutines have ended and everything is closed
	err   error         // of the queue; read it when ended is closed
}

// startServer returns when the queue is ready for requests.
func startServer(n number, dev block.Device, log *slog.Logger) (*server, error) {
	file, err := openChar(n)
	if err != nil {
		return nil, err
	}
	s := &server{file: file, ended: make(chan struct{})}
	ready := make(chan error, 1)
	go s.run(dev, log, ready) // ends when the device is taken away or left; joined by join
	if err := <-ready; err != nil {
		<-s.ended
		return nil, fmt.Errorf("serve ublk device %d: %w", n, err)
	}
	return s, nil
}

// openChar opens the file of the device, which udev may just be making.
func openChar(n number) (file int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), abortTimeout)
	defer cancel()
	err = blockdev.Poll(ctx, "open "+n.char(), func() (bool, error) {
		file, err = unix.Open(n.char(), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return true, err
	})
	return file, err
}

// run is the queue's goroutine. It keeps its thread, and ends it with itself, since to the driver the thread is the queue.
func (s *server) run(dev block.Device, log *slog.Logger, ready chan<- error) {
	runtime.LockOSThread()
	if left := s.serve(dev, log, ready); left {
		close(s.ended)
		select {} // the thread, its ring and its file end with the process, all at once: the driver knows that case best
	}
	close(s.ended)
}

// serve is all that run does; it returns true when the queue was left, and then nothing is closed.
func (s *server) serve(dev block.Device, log *slog.Logger, ready chan<- error) (left bool) {
	c, err := openChannel(s.file)
	if err == nil {
		s.queue = newQueue(c, dev, log)
		err = s.queue.offer()
	}
	ready <- err
	if err == nil {
		s.err = s.queue.serve()
		left = s.queue.isLeft()
	}
	if left {
		s.queue.workers.wg.Wait() // they use the volume
		return true
	}
	if c != nil {
		s.err = errors.Join(s.err, c.close())
	}
	if s.queue != nil {
		s.queue.workers.wg.Wait() // they use the file
	}
	s.err = errors.Join(s.err, unix.Close(s.file))
	return false
}

// join waits until nothing runs any more.
func (s *server) join(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.ended:
		return s.err
	case <-t.C:
		return errors.New("requests to the device are still running")
	}
}
