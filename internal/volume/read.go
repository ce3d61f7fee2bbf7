package volume

import (
	"errors"
	"fmt"
	"sync"

	"mars/internal/block"
	"mars/internal/extent"
	"mars/internal/history"
	"mars/internal/translog"
)

// plan is what a read finds in the index: parts in the log and, implicitly, the rest on the disk.
type plan struct{ ext, tmp []extent.Extent }

var plans = sync.Pool{New: func() any { return new(plan) }}

// lookup fills pl with the logged parts of the range, the newest of each, in order.
func (v *Volume) lookup(pl *plan, off, n int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	pl.ext = v.cur.Lookup(pl.ext[:0], off, n)
	if v.frozen == nil || v.frozen.Len() == 0 {
		return
	}
	pl.tmp = append(pl.tmp[:0], pl.ext...)
	pl.ext = pl.ext[:0]
	at := off
	for _, e := range pl.tmp {
		pl.ext = v.frozen.Lookup(pl.ext, at, e.Off-at)
		pl.ext = append(pl.ext, e)
		at = e.Off + e.Len
	}
	pl.ext = v.frozen.Lookup(pl.ext, at, off+n-at)
}

// ReadAt implements block.Device: the newest version of every block, from the log or from the disk. On a secondary it reads the disk.
func (v *Volume) ReadAt(p []byte, off int64) error {
	if err := block.Check(off, int64(len(p)), v.Size()); err != nil {
		return err
	}
	pl := plans.Get().(*plan)
	defer plans.Put(pl)
	v.lookup(pl, off, int64(len(p)))
	return v.readPlan(pl, p, off)
}

func (v *Volume) readPlan(pl *plan, p []byte, off int64) error {
	at := off
	for _, e := range pl.ext {
		if err := v.readDisk(p[at-off:e.Off-off], at); err != nil {
			return err
		}
		if err := v.readExtent(p[e.Off-off:e.Off-off+e.Len], e); err != nil {
			return err
		}
		at = e.Off + e.Len
	}
	return v.readDisk(p[at-off:], at)
}

func (v *Volume) readDisk(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if err := v.cfg.Disk.ReadAt(p, off); err != nil {
		return fmt.Errorf("read disk at %d: %w", off, err)
	}
	return nil
}

func (v *Volume) readExtent(p []byte, e extent.Extent) error {
	if e.Src.Zero {
		clear(p)
		return nil
	}
	err := v.log.ReadData(p, e.Src.Data)
	if errors.Is(err, translog.ErrGone) && e.Src.Data < v.appliedPosition().LSN {
		return v.readDisk(p, e.Off) // applied and deleted meanwhile: the disk has it, or something newer
	}
	return err
}

// ReadAtNowait implements block.NowaitReader: what is in the log was written or will be needed soon, so it is taken to be in the page
// cache; for the rest the disk decides.
func (v *Volume) ReadAtNowait(p []byte, off int64) (bool, error) {
	disk, ok := v.cfg.Disk.(block.NowaitReader)
	if !ok {
		return false, nil
	}
	if err := block.Check(off, int64(len(p)), v.Size()); err != nil {
		return false, err
	}
	pl := plans.Get().(*plan)
	defer plans.Put(pl)
	v.lookup(pl, off, int64(len(p)))
	switch {
	case len(pl.ext) == 0:
		return disk.ReadAtNowait(p, off)
	case len(pl.ext) == 1 && pl.ext[0].Off == off && pl.ext[0].Len == int64(len(p)):
		err := v.readExtent(p, pl.ext[0])
		return err == nil, err
	}
	return false, nil
}

// Extents implements block.ExtentMapper: holes are what the disk knows as holes minus what is logged.
func (v *Volume) Extents(off, n int64, max int) ([]block.Extent, error) {
	disk, ok := v.cfg.Disk.(block.ExtentMapper)
	if err := block.Check(off, n, v.Size()); err != nil {
		return nil, err
	}
	if !ok {
		return []block.Extent{{Len: n}}, nil
	}
	pl := plans.Get().(*plan)
	defer plans.Put(pl)
	v.lookup(pl, off, n)
	var out []block.Extent
	at := off
	for _, e := range append(pl.ext, extent.Extent{Off: off + n}) {
		for at < e.Off && len(out) < max {
			gap, err := disk.Extents(at, e.Off-at, max-len(out))
			if err != nil || len(gap) == 0 {
				return out, err
			}
			for _, g := range gap {
				out = joinExtent(out, g)
				at += g.Len
			}
		}
		if at < e.Off || len(out) >= max {
			break
		}
		out = joinExtent(out, block.Extent{Len: e.Len, Hole: e.Src.Zero && !e.Src.Keep})
		at += e.Len
	}
	return out, nil
}

func joinExtent(out []block.Extent, e block.Extent) []block.Extent {
	if e.Len == 0 {
		return out
	}
	if n := len(out); n > 0 && out[n-1].Hole == e.Hole {
		out[n-1].Len += e.Len
		return out
	}
	return append(out, e)
}

// ReadStable reads for a sync target: what is returned is durable here (invariant I3), and the target is consistent once it has replayed the
// log up to the position returned.
func (v *Volume) ReadStable(p []byte, off int64) (history.Position, error) {
	if err := v.ReadAt(p, off); err != nil {
		return history.Position{}, err
	}
	return v.StablePosition()
}

// StablePosition makes everything that a read may have returned so far durable and returns the position behind it.
func (v *Volume) StablePosition() (history.Position, error) {
	pos := v.log.EndPosition()
	if err := v.log.SyncTo(pos.LSN); err != nil {
		return history.Position{}, err
	}
	return pos, nil
}
