package knbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"mars/internal/block"
	"mars/internal/device"
	"mars/internal/device/blockdev"
	"mars/internal/device/nbd"

	"golang.org/x/sys/unix"
)

const (
	// deadTimeout is how long requests wait for a successor of a dead process before they fail.
	deadTimeout = 5 * time.Minute
	// resendAfter is how long a request in flight waits before the driver looks whether its connection has been replaced, and sends it again
	// then. The kernel rounds it up by a second.
	resendAfter = time.Second
	// resendHasty is the same for the last requests before Leave, whose fate is known, and leaveDelay how long Leave takes to have only such.
	resendHasty = 100 * time.Millisecond
	leaveDelay  = 100 * time.Millisecond
	// takeOverTimeout bounds the wait for the kernel to notice the end of the former process.
	takeOverTimeout = 10 * time.Second
	// settleTime is how long Close retries while only short-lived openers are seen: udev probes a device whenever a writer closes it.
	settleTime = 500 * time.Millisecond
	// drainTimeout bounds how long Leave waits for requests under way.
	drainTimeout = 5 * time.Second
	// cutTimeout is how long Abort waits for the kernel to end the connection before it does so itself.
	cutTimeout = time.Second
	// sendBuffer is how much may wait in the socket for the server, in bytes: some large requests.
	sendBuffer = 4 << 20
)

// Config says what to show and where.
type Config struct {
	// Name of the resource.
	Name string
	// Resource is its identity for ever. There is one device of a resource at a time.
	Resource string
	// Dev is what is shown. It must stay usable until Close, Abort or Leave has returned.
	Dev block.Device
	// Dir is a directory on a local file system that this package has for itself. One process at a time may use it.
	Dir string
	// Link is the stable symlink that applications use (/dev/mars/NAME).
	Link string
	// BlockSize is the logical block size in bytes.
	BlockSize int
	// Tenure names the time during which Dev changes by what its users write, and by nothing else.
	Tenure string
	// Continues tells whether Dev has the content that the users of a device of a former tenure expect: all that was answered there, and
	// nothing else.
	Continues func(tenure string) bool
	Log       *slog.Logger
}

// FrontEnd is one Device shown as an nbd device. It implements device.Survivor.
type FrontEnd struct {
	cfg    Config
	log    *slog.Logger
	driver driver
	rec    record
	index  uint32
	server *nbd.Server

	turn   chan struct{} // a lock with a deadline: Close, Resized and Leave do not overlap
	gone   atomic.Bool   // nothing is left to do
	ending context.Context
	end    context.CancelFunc
	keeper sync.WaitGroup
}

var _ device.Survivor = (*FrontEnd)(nil)

// Available tells why this front end cannot be used on this machine; nil when it can.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("nbd front end needs root")
	}
	if _, err := os.Stat("/sys/block"); err != nil {
		return fmt.Errorf("nbd front end needs sysfs: %w", err)
	}
	_, err := findDriver()
	return err
}

// Open shows cfg.Dev. The device of a former process is taken over if cfg.Continues its tenure, and disconnected else.
func Open(cfg Config) (*FrontEnd, error) {
	f := &FrontEnd{cfg: cfg, log: cfg.Log.With("res", cfg.Name, "frontend", "nbd"), turn: make(chan struct{}, 1)}
	f.ending, f.end = context.WithCancel(context.Background())
	f.server = nbd.New(nbd.Config{Export: cfg.Name, Dev: cfg.Dev, Log: f.log})
	err := f.open()
	if err != nil {
		f.stopServing()
		return nil, fmt.Errorf("show %s as an nbd device: %w", cfg.Name, err)
	}
	return f, nil
}

func (f *FrontEnd) open() error {
	var err error
	if f.driver, err = findDriver(); err != nil {
		return err
	}
	if err := os.MkdirAll(f.cfg.Dir, 0o700); err != nil {
		return err
	}
	left, err := leftovers(f.cfg.Dir)
	if err != nil {
		return err
	}
	for _, p := range left {
		if p.Resource() != f.cfg.Resource {
			continue
		}
		if err := f.takeOver(p); !errors.Is(err, errNotContinued) {
			return err
		}
		f.log.Warn("the nbd device of a former process is given up; its users get errors", "dev", diskOf(p.index).Node(), "users", p.Users())
		if err := p.Drop(); err != nil {
			return err
		}
	}
	return f.create()
}

// errNotContinued: a device of a former process cannot or must not be served.
var errNotContinued = errors.New("device is not continued")

// takeOver goes on with the device of a former process.
func (f *FrontEnd) takeOver(p *Paused) error {
	granularity, err := sysUint(p.index, "queue", "logical_block_size")
	if err != nil || granularity < int64(f.cfg.BlockSize) || !f.cfg.Continues(p.rec.Tenure) {
		return errNotContinued
	}
	f.rec, f.index = p.rec, p.index
	f.rec.Tenure, f.rec.Link = f.cfg.Tenure, f.cfg.Link
	if err := f.rec.save(f.cfg.Dir); err != nil {
		return err
	}
	if p.rec.Link != f.cfg.Link {
		if err := blockdev.DropLink(p.rec.Link, f.disk().Node()); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(f.ending, takeOverTimeout)
	defer cancel()
	ended, err := f.reconnect(ctx)
	if errors.Is(err, unix.EINVAL) { // somebody has disconnected it
		return errors.Join(errNotContinued, err)
	}
	if err != nil {
		return err
	}
	f.serve(ended)
	f.log.Info("nbd device taken over from a former process", "dev", f.disk().Node(), "link", f.cfg.Link)
	return f.finishOpen()
}

// create makes a new device.
func (f *FrontEnd) create() error {
	p, err := newPair()
	if err != nil {
		return err
	}
	defer p.close()
	ended, err := f.attach(&p)
	if err != nil {
		return err
	}
	f.rec = newRecord(&f.cfg)
	s := settings{size: f.cfg.Dev.Size(), blockSize: f.cfg.BlockSize, backend: f.rec.Backend, sock: p.kernel}
	f.index, err = f.rec.make(f.cfg.Dir, func() (uint32, error) { return f.driver.connect(s) })
	if err != nil {
		return err
	}
	f.serve(ended)
	if err := f.finishOpen(); err != nil {
		return errors.Join(err, f.rec.abandon(f.cfg.Dir))
	}
	f.log.Info("nbd device shown", "dev", f.disk().Node(), "link", f.cfg.Link)
	return nil
}

// finishOpen is what can be done when the device is served.
func (f *FrontEnd) finishOpen() error {
	if err := setTimer(f.index, resendAfter); err != nil {
		f.log.Warn("after a restart of marsd requests will wait for half a minute: cannot set the request timer", "dev", f.disk().Node(), "err", err)
	}
	if err := f.grow(); err != nil {
		return err
	}
	number, err := f.disk().Number()
	if err == nil {
		err = blockdev.EnsureNode(f.disk().Node(), number)
	}
	if err == nil {
		err = blockdev.PlaceLink(f.cfg.Link, f.disk().Node())
	}
	return err
}

// pair is a connection that has yet to be given away: one end to the kernel, one to the server.
type pair struct{ kernel, ours int }

func newPair() (pair, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return pair{}, fmt.Errorf("socket pair: %w", err)
	}
	_ = unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) // the default works too
	return pair{kernel: fds[0], ours: fds[1]}, nil
}

func (p *pair) close() {
	for _, fd := range []*int{&p.kernel, &p.ours} {
		if *fd >= 0 {
			_ = unix.Close(*fd) // a socket has nothing to lose
			*fd = -1
		}
	}
}

// attach gives our end of the pair to the server.
func (f *FrontEnd) attach(p *pair) (<-chan error, error) {
	nc, err := connOf(p.ours)
	p.ours = -1
	if err != nil {
		return nil, err
	}
	return f.server.Attach(nc, "kernel")
}

// reconnect gives the device a new connection, when the kernel has noticed that the old one is broken. Everything that came over the old one
// must have ended.
func (f *FrontEnd) reconnect(ctx context.Context) (ended <-chan error, err error) {
	err = blockdev.Poll(ctx, "reconnect "+f.disk().Node(), func() (bool, error) {
		p, err := newPair()
		if err != nil {
			return false, err
		}
		defer p.close()
		if err := f.driver.reconnect(f.index, f.rec.Backend, p.kernel); err != nil {
			return false, err
		}
		_ = unix.Close(p.kernel) // the kernel has its own reference, or has refused the socket
		p.kernel = -1
		if hungUp(p.ours) {
			return false, nil
		}
		ended, err = f.attach(&p)
		return true, err
	})
	return ended, err
}

// serve keeps the device connected.
func (f *FrontEnd) serve(ended <-chan error) {
	f.keeper.Go(func() { // ends with f.ending and the connection, or when the device is lost
		for {
			err := <-ended
			if f.ending.Err() != nil {
				return
			}
			f.log.Error("the kernel's connection has ended; trying to replace it", "dev", f.disk().Node(), "err", err)
			if ended, err = f.reconnect(f.ending); err != nil {
				if f.ending.Err() == nil {
					f.log.Error("nbd device is lost: somebody has disconnected it", "dev", f.disk().Node(), "err", err)
				}
				return
			}
		}
	})
}

func (f *FrontEnd) disk() blockdev.Disk { return diskOf(f.index) }

// Path is the stable link.
func (f *FrontEnd) Path() string { return f.cfg.Link }

// Users names whoever has the device open.
func (f *FrontEnd) Users() []string { return blockdev.Names(f.users()) }

// users is empty when the device is not ours (any more).
func (f *FrontEnd) users() []blockdev.User {
	if index, ok := find(f.rec.Backend); !ok || index != f.index {
		return nil
	}
	return f.disk().Users(f.cfg.Link)
}

// Resized tells the kernel that the Device has grown. It returns when the block device has its new size.
func (f *FrontEnd) Resized() error {
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	if f.gone.Load() {
		return fmt.Errorf("resize nbd device of %s: %w", f.cfg.Name, block.ErrClosed)
	}
	return f.grow()
}

// grow makes the block device as large as the Device. The kernel waits for requests in flight; they are being served meanwhile.
func (f *FrontEnd) grow() error {
	size := f.cfg.Dev.Size()
	sectors, err := sysUint(f.index, "size")
	if err != nil {
		return fmt.Errorf("size of %s: %w", f.disk().Node(), err)
	}
	if sectors*block.SectorSize >= size {
		return nil
	}
	return f.driver.resize(f.index, f.rec.Backend, size)
}
