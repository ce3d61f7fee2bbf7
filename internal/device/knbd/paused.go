package knbd

import (
	"errors"

	"mars/internal/device"
	"mars/internal/device/blockdev"
)

// Paused is a device that a former process has left behind. Its users' requests wait for Open to take it over.
type Paused struct {
	dir   string
	rec   record
	index uint32
}

var _ device.Paused = (*Paused)(nil)

// Leftovers returns the devices that are recorded in dir and could be taken over, also those that this process itself shows, and tidies up
// what could not.
func Leftovers(dir string) ([]device.Paused, error) {
	found, err := leftovers(dir)
	out := make([]device.Paused, 0, len(found))
	for _, p := range found {
		out = append(out, p)
	}
	return out, err
}

func leftovers(dir string) ([]*Paused, error) {
	making.Lock()
	defer making.Unlock()
	recs, err := records(dir)
	errs := []error{err}
	var out []*Paused
	for _, r := range recs {
		index, ok := find(r.Backend)
		if ok && !r.Abandoned {
			out = append(out, &Paused{dir: dir, rec: r, index: index})
			continue
		}
		errs = append(errs, r.abandon(dir))
	}
	return out, errors.Join(errs...)
}

// Resource is the identity of the resource whose device it is.
func (p *Paused) Resource() string { return p.rec.Resource }

// Users names whoever has the device open.
func (p *Paused) Users() []string { return blockdev.Names(diskOf(p.index).Users(p.rec.Link)) }

// Drop gives the device up. Its users get I/O errors.
func (p *Paused) Drop() error { return p.rec.abandon(p.dir) }

// abandon disconnects the device for ever. It can be done again. As long as somebody has it open the kernel remembers the device, and the record
// stays, so that nobody takes it over.
func (r *record) abandon(dir string) error {
	index, ok := find(r.Backend)
	if !ok {
		return r.remove(dir)
	}
	if r.Disconnected {
		return nil
	}
	if !r.Abandoned {
		r.Abandoned = true
		if err := r.save(dir); err != nil {
			return err
		}
	}
	drv, err := findDriver()
	if err != nil {
		return err
	}
	if err := blockdev.DropLink(r.Link, diskOf(index).Node()); err != nil {
		return err
	}
	if err := drv.release(index, r.Backend); err != nil {
		if _, ok := find(r.Backend); ok {
			return err
		}
	}
	return r.forget(dir)
}

// forget removes the record of a disconnected device, when the kernel does not know that any more.
func (r *record) forget(dir string) error {
	if _, ok := find(r.Backend); !ok {
		return r.remove(dir)
	}
	r.Disconnected = true
	return r.save(dir)
}
