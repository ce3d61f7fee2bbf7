package ublk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"mars/internal/block"
	"mars/internal/device"
	"mars/internal/device/blockdev"

	"golang.org/x/sys/unix"
)

// handoverTimeout is how long a device that should be free may still be held by the process that has just died: the kernel cancels its requests
// first. Far more than it takes, except where a kernel before 6.16 has to wait for a request to time out (30 seconds).
const handoverTimeout = 45 * time.Second

// takeOver takes over what a dead process has left. It returns false when there is nothing (any more) to be taken over.
func (f *FrontEnd) takeOver() (bool, error) {
	left, err := leftovers(f.cfg.Dir)
	i := slices.IndexFunc(left, func(p *Paused) bool { return p.Resource() == f.cfg.Resource })
	if err != nil || i < 0 {
		return false, err
	}
	p := left[i]
	f.rec, f.number = p.rec, p.number()
	err = f.tryTakeOver(p)
	if err == nil || errors.Is(err, block.ErrBusy) {
		return err == nil, err
	}
	f.log.Error("cannot take over the ublk device of a former process; its users get errors", "dev", f.number.disk().Node(), "err", err, "users", p.Users())
	if f.server != nil {
		f.server.queue.fail()
	}
	err = p.Drop()
	if f.server != nil {
		err = errors.Join(err, f.server.join(abortTimeout))
		f.server = nil
	}
	return false, err
}

func (f *FrontEnd) tryTakeOver(p *Paused) error {
	shape, err := f.number.geometry()
	if err != nil {
		return err
	}
	if err := f.mayResume(p, shape); err != nil {
		return err
	}
	f.size.Store(shape.size)
	return f.resume()
}

// mayResume tells why the users of the old device must not go on with the Device.
func (f *FrontEnd) mayResume(p *Paused, shape geometry) error {
	if p.info.state == stateDead {
		return errors.New("it was never started, or is stopped")
	}
	if !f.cfg.Continues(p.rec.Tenure) {
		return errors.New("the content has changed since, on another node")
	}
	if !p.info.fits() {
		return fmt.Errorf("it was made by another version: %+v", p.info)
	}
	now := f.geometry()
	if shape.blockSize != now.blockSize || shape.size > now.size {
		return fmt.Errorf("it has %d bytes in blocks of %d, the volume %d in blocks of %d", shape.size, shape.blockSize, now.size, now.blockSize)
	}
	return nil
}

// resume serves the old device in place of the dead process. Before its users go on, the record says that they see this tenure.
func (f *FrontEnd) resume() error {
	begin := time.Now()
	if err := f.startRecovery(); err != nil {
		return err
	}
	f.rec.Tenure = f.cfg.Tenure
	if err := f.rec.save(f.cfg.Dir); err != nil {
		return err
	}
	if err := f.start(ctlEndRecovery); err != nil {
		return err
	}
	if err := f.relink(); err != nil {
		return err
	}
	f.log.Info("ublk device taken over from a former process; its users go on", "dev", f.number.disk().Node(), "took", time.Since(begin))
	if f.size.Load() != f.geometry().size { // it died between growing the volume and telling the kernel
		if err := f.Resized(); err != nil {
			f.log.Warn("ublk device is smaller than the volume", "err", err)
		}
	}
	return nil
}

// relink follows the configuration.
func (f *FrontEnd) relink() error {
	node := f.number.disk().Node()
	if f.rec.Link != f.cfg.Link {
		if err := blockdev.DropLink(f.rec.Link, node); err != nil {
			return err
		}
		f.rec.Link = f.cfg.Link
		if err := f.rec.save(f.cfg.Dir); err != nil {
			return err
		}
	}
	return blockdev.PlaceLink(f.cfg.Link, node)
}

// startRecovery makes the driver ready for a new server, as soon as the old one is gone altogether.
func (f *FrontEnd) startRecovery() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), handoverTimeout,
		fmt.Errorf("still served by another process after %v: %w", handoverTimeout, block.ErrBusy))
	defer cancel()
	return blockdev.Poll(ctx, fmt.Sprintf("take over ublk device %d", f.number), func() (bool, error) {
		err := f.number.command(ctlStartRecovery, 0, nil)
		if errors.Is(err, unix.EBUSY) {
			return false, nil
		}
		return true, err
	})
}

// Paused is a device that a former process has left; it implements device.Paused.
type Paused struct {
	dir  string
	rec  record
	info info
}

var _ device.Paused = (*Paused)(nil)

// Leftovers returns the devices that were shown from dir and not withdrawn: those that wait for a successor, and those that are shown now.
func Leftovers(dir string) ([]device.Paused, error) {
	left, err := leftovers(dir)
	out := make([]device.Paused, len(left))
	for i, p := range left {
		out[i] = p
	}
	return out, err
}

func leftovers(dir string) ([]*Paused, error) {
	recs, err := records(dir)
	if len(recs) == 0 {
		return nil, err
	}
	all, err2 := devices()
	var left []*Paused
	for _, r := range recs {
		if i, ok := all[r.Cookie]; ok {
			left = append(left, &Paused{dir: dir, rec: r, info: i})
		}
	}
	return left, errors.Join(err, err2)
}

func (p *Paused) number() number { return number(p.info.device) }

// Resource implements device.Paused.
func (p *Paused) Resource() string { return p.rec.Resource }

// Users implements device.Paused.
func (p *Paused) Users() []string { return blockdev.Names(p.number().disk().Users(p.rec.Link)) }

// Drop implements device.Paused. The device is looked up again: its number could be somebody else's by now.
func (p *Paused) Drop() error {
	all, err := devices()
	if err != nil {
		return err
	}
	if i, ok := all[p.rec.Cookie]; ok {
		n := number(i.device)
		if err := errors.Join(blockdev.DropLink(p.rec.Link, n.disk().Node()), n.remove()); err != nil {
			return err
		}
	}
	return p.rec.remove(p.dir)
}
