package volume

import (
	"errors"
	"fmt"

	"mars/internal/block"
	"mars/internal/extent"
	"mars/internal/history"
	"mars/internal/replay"
	"mars/internal/translog"
)

// opResize travels through the queue like a write, so that it has its place in the log.
const opResize block.Op = 0xff

// Activate opens a timeline for the node self and lets writers in. Without the token it refuses (ErrNoToken) unless t.Forced is set.
// It refuses an inconsistent or defective replica in any case, and a backlog that the index cannot hold: replay first.
func (v *Volume) Activate(self string, t history.Timeline) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	v.logMu.Lock()
	defer v.logMu.Unlock()
	if err := v.mayActivate(self, t.Forced); err != nil {
		return err
	}
	if err := v.indexBacklog(); err != nil {
		return err
	}
	if err := v.openTimeline(self, t); err != nil {
		return err
	}
	if err := v.saveState(); err != nil {
		return err
	}
	v.mu.Lock()
	v.indexed = v.log.EndPosition()
	v.writable, v.tenure = true, true
	v.mu.Unlock()
	v.queue.letIn()
	return nil
}

// openTimeline starts one. applyMu and logMu are held.
func (v *Volume) openTimeline(self string, t history.Timeline) error {
	t.Origin = self
	if _, err := v.log.StartTimeline(t); err != nil {
		return fmt.Errorf("open timeline: %w", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.opened, v.st.Tenure = t.ID, t.ID
	v.endStamp = t.Stamp
	return nil
}

func (v *Volume) mayActivate(self string, forced bool) error {
	if err := v.checkOpen(); err != nil {
		return err
	}
	s := v.Status()
	holder := s.Path.Holder()
	switch {
	case s.Writable:
		return errors.New("is primary already")
	case s.LogErr != nil:
		return s.LogErr
	case s.Defect != nil:
		return s.Defect
	case !s.Consistent:
		return fmt.Errorf("%w: a sync must complete first", ErrInconsistent)
	case holder != "" && holder != self && !forced:
		return fmt.Errorf("%w: node %s holds it", ErrNoToken, holder)
	}
	return nil
}

// indexBacklog makes the unapplied part of the log readable.
func (v *Volume) indexBacklog() error {
	start, end := v.appliedPosition(), v.log.EndPosition()
	if n := int64(end.LSN - start.LSN); n > v.cfg.WritebackLimit {
		return fmt.Errorf("%d bytes of log are to be replayed first: %w", n, ErrBacklog)
	}
	index, size := extent.New(), v.Size()
	_, err := v.log.Scan(start, end.LSN, func(r *translog.Record) bool {
		if index.Len() > maxExtents {
			return false
		}
		if x, ok := replay.Extent(&r.Header, r.Data); ok {
			index.Insert(x)
		}
		if r.Kind == translog.KindResize {
			size = r.Len
		}
		return true
	})
	if err != nil {
		return err
	}
	if index.Len() > maxExtents {
		return fmt.Errorf("more than %d scattered changes are to be replayed first: %w", maxExtents, ErrBacklog)
	}
	v.mu.Lock()
	v.cur, v.frozen, v.indexed, v.size = index, nil, end, size
	v.mu.Unlock()
	return nil
}

func (v *Volume) appliedPosition() history.Position {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.st.Applied.Position()
}

// Deactivate ends the tenure: no writer is let in any more, what is queued is written, and the end record passes the token to successor.
// On an error the token is still here and the volume no longer writable; it can be called again. It refuses to end a timeline that was not
// opened here since the volume is open (ErrNotPrimary), and to pass on a token that is gone (ErrNoToken).
func (v *Volume) Deactivate(successor string) error {
	v.logMu.Lock()
	defer v.logMu.Unlock()
	v.stopWriting(errShut)
	p := v.log.Path()
	switch {
	case p.Tip().ID == 0 || p.Tip().ID != v.opened:
		return fmt.Errorf("close timeline: %w", ErrNotPrimary)
	case p.Successor == successor && successor != "":
		return nil
	case p.Successor != "":
		return fmt.Errorf("close timeline: %w: it was passed to %s", ErrNoToken, p.Successor)
	}
	if err := v.log.EndTimeline(successor, v.cfg.Stamp()); err != nil {
		return fmt.Errorf("close timeline: %w", err)
	}
	return nil
}

// stopWriting lets no writer in any more and returns when those that are in have ended: nothing of the tenure is appended after that.
func (v *Volume) stopWriting(why error) {
	v.mu.Lock()
	v.writable = false
	v.progress.Broadcast()
	v.mu.Unlock()
	v.queue.stop(why)
	v.mu.Lock()
	v.tenure = false
	v.mu.Unlock()
}

// Suspend ends the tenure without a word in the log, as a crash would: the token stays here.
func (v *Volume) Suspend() error {
	v.logMu.Lock()
	defer v.logMu.Unlock()
	v.stopWriting(errShut)
	return v.log.SyncTo(v.log.End())
}

// PassToken hands the token on without a tenure: it opens a timeline and closes it at once.
func (v *Volume) PassToken(self, successor string, t history.Timeline) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	v.logMu.Lock()
	defer v.logMu.Unlock()
	if successor == "" {
		return errors.New("pass the token: to nobody")
	}
	if err := v.mayActivate(self, false); err != nil {
		return err
	}
	if err := v.openTimeline(self, t); err != nil {
		return err
	}
	if err := v.log.EndTimeline(successor, v.cfg.Stamp()); err != nil {
		return fmt.Errorf("close timeline: %w", err)
	}
	return nil
}

// Resize grows the volume. The new room reads as zeroes on every replica. Durable when nil is returned; needs somebody to call SyncStep.
func (v *Volume) Resize(size int64) error {
	old := v.Size()
	switch {
	case size%block.SectorSize != 0:
		return fmt.Errorf("size %d: %w", size, block.ErrAlign)
	case size < old:
		return fmt.Errorf("cannot shrink from %d to %d bytes", old, size)
	case size == old:
		return nil
	case size > v.cfg.Disk.Size():
		return fmt.Errorf("size %d is more than the disk's %d bytes: %w", size, v.cfg.Disk.Size(), block.ErrNoSpace)
	}
	return v.call(ResizeRequest(size, nil))
}

// ResizeRequest makes the request of a Resize for Submit. The caller has checked the size.
func ResizeRequest(size int64, done func(error)) *block.Request {
	return &block.Request{Op: opResize, Len: size, Flags: block.FUA, Done: done}
}
