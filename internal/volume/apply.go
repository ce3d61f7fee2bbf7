package volume

import (
	"errors"
	"fmt"
	"math"

	"mars/internal/block"
	"mars/internal/extent"
	"mars/internal/history"
	"mars/internal/replay"
	"mars/internal/translog"
)

// Work is signalled when ApplyStep should run soon: the backlog is large.
func (v *Volume) Work() <-chan struct{} { return v.queue.work }

// ApplyStep brings the next window of the log onto the disk. It returns false when there is nothing to do, after having saved where it
// stands. The order of its steps is the contract of the package:
//
//	log durable up to the window's end  ->  state file says Dirty = end  ->  disk written  ->  disk flushed  ->  Applied = end
func (v *Volume) ApplyStep() (bool, error) { return v.apply(math.MaxInt64) }

// FinishStep goes on with a step that a crash or an error has interrupted, and does nothing else: until that is at its end the disk alone is a mixture,
// which it shall not be while replay is paused. It returns false when there is nothing to finish, or the log for it is not here.
func (v *Volume) FinishStep() (bool, error) {
	path := v.log.Path()
	v.mu.Lock()
	dirty, begun := v.st.Dirty, v.st.Sync == nil && v.st.Dirty.LSN > v.st.Applied.End && v.st.recoverable(&path)
	v.mu.Unlock()
	if !begun {
		return false, nil
	}
	return v.apply(dirty.LSN)
}

// apply is one step, not beyond end.
func (v *Volume) apply(end history.LSN) (bool, error) {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if err := v.checkOpen(); err != nil {
		return false, err
	}
	worked, err := v.applyWindow(end)
	v.mu.Lock()
	v.applyErr = err
	v.progress.Broadcast()
	v.mu.Unlock()
	return worked, err
}

func (v *Volume) applyWindow(end history.LSN) (bool, error) {
	v.mu.Lock()
	broken := v.defect
	v.mu.Unlock()
	start, lim := v.nextWindow()
	lim.End = min(lim.End, end)
	if broken != nil {
		lim.End = min(lim.End, broken.At)
	}
	if start.LSN >= lim.End {
		err := errors.Join(v.endSyncIfReached(), v.checkpoint())
		if broken != nil {
			err = errors.Join(err, broken)
		}
		return false, err
	}
	if err := v.log.SyncTo(lim.End); err != nil {
		return false, err
	}
	w, err := replay.Gather(v.log, start, lim)
	var defect *translog.DefectError
	if errors.As(err, &defect) {
		v.mu.Lock()
		v.defect = defect
		v.mu.Unlock()
	}
	if err != nil && w.End.LSN == start.LSN {
		return false, err
	}
	return true, errors.Join(v.applyGathered(&w), err)
}

// nextWindow freezes what was written so far, so that the index can be dropped as a whole once that is on the disk.
func (v *Volume) nextWindow() (history.Position, replay.Limit) {
	end := v.log.End()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.thaw()
	if v.frozen == nil && v.cur.Len() > 0 {
		v.frozen, v.frozenEnd = v.cur, v.indexed.LSN
		v.cur = extent.New()
		v.thaw()
	}
	lim := replay.Limit{End: end, Log: v.cfg.WindowSize, Clip: -1}
	switch {
	case v.frozen != nil:
		lim.End = v.frozenEnd
	case v.tenure:
		lim.End = v.indexed.LSN // what is in the log but not in the index yet would be applied behind the index's back
	}
	if s := v.st.Sync; s != nil && !s.Copied {
		lim.Clip = s.Done
	}
	return v.st.Applied.Position(), lim
}

// thaw drops the frozen index when all of it is on the disk. mu is held.
func (v *Volume) thaw() {
	if v.frozen != nil && v.st.Applied.End >= v.frozenEnd {
		v.frozen = nil
	}
}

func (v *Volume) applyGathered(w *replay.Window) error {
	if w.Size > v.cfg.Disk.Size() {
		return fmt.Errorf("the volume grows to %d bytes but the disk here has %d; enlarge it: %w", w.Size, v.cfg.Disk.Size(), block.ErrNoSpace)
	}
	applied := v.log.Path()
	if err := v.checkDirty(&applied); err != nil {
		return err
	}
	applied, err := applied.TruncateTo(w.End)
	if err != nil {
		return err
	}
	if err := v.saveDirty(w.End); err != nil {
		return err
	}
	if err := w.Write(v.log, v.cfg.Disk); err != nil {
		return err
	}
	if err := v.cfg.Disk.Flush(); err != nil {
		return fmt.Errorf("flush disk: %w", err)
	}
	v.moveApplied(applied, w)
	return v.endSyncIfReached()
}

// checkDirty refuses to replay a history that does not contain what an interrupted window may have left on the disk, which happens after the
// log was cut (Heal) and continued differently: the result would be a mixture.
func (v *Volume) checkDirty(p *history.Path) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.st.Sync == nil && v.st.Dirty.LSN <= p.End && !v.st.recoverable(p) {
		return fmt.Errorf("%w: the disk may have changes up to %v, which the history here does not contain", ErrInconsistent, v.st.Dirty)
	}
	return nil
}

// saveDirty records, before the disk is touched, how far replay must go after a crash. It also saves what the windows before have reached.
func (v *Volume) saveDirty(end history.Position) error {
	v.mu.Lock()
	if end.LSN > v.st.Dirty.LSN {
		v.st.Dirty = end
	}
	v.mu.Unlock()
	return v.saveState()
}

// saveState writes the state file. applyMu is held.
func (v *Volume) saveState() error {
	durable := v.log.Durable()
	v.mu.Lock()
	v.st.Durable = max(v.st.Durable, durable) // a defective log may be shorter than what was known to be durable; that must not be forgotten
	v.mu.Unlock()
	return v.writeState()
}

// writeState writes the state file as the state is. applyMu is held.
func (v *Volume) writeState() error {
	v.mu.Lock()
	st := v.st.clone()
	v.mu.Unlock()
	if err := st.save(v.cfg); err != nil {
		return err
	}
	v.mu.Lock()
	v.saved = st.Applied.End
	v.mu.Unlock()
	return nil
}

func (v *Volume) moveApplied(applied history.Path, w *replay.Window) {
	v.mu.Lock()
	defer v.mu.Unlock()
	applied.LastData = max(v.st.Applied.LastData, w.LastData)
	v.st.Applied = applied
	if w.Stamp != 0 {
		v.st.AppliedStamp = w.Stamp
	}
	if w.Size != 0 {
		v.st.Size = w.Size
		v.size = max(v.size, w.Size)
	}
	v.thaw()
}

// checkpoint saves the state if it has moved since. applyMu is held.
func (v *Volume) checkpoint() error {
	v.mu.Lock()
	clean := v.saved == v.st.Applied.End
	v.mu.Unlock()
	if clean {
		return nil
	}
	return v.saveState()
}

// NoteDurable saves how far the log is durable when that is a segment more than what is saved: what is not known to be durable Open writes once more,
// which takes longer than to read it. While something else is done to the disk it does nothing: that saves it, too.
func (v *Volume) NoteDurable() error {
	if !v.applyMu.TryLock() {
		return nil
	}
	defer v.applyMu.Unlock()
	if err := v.checkOpen(); err != nil {
		return err
	}
	durable := v.log.Durable()
	v.mu.Lock()
	little := durable-v.st.Durable < history.LSN(v.cfg.SegmentSize)
	v.mu.Unlock()
	if little {
		return nil
	}
	return v.saveState()
}

// endSyncIfReached declares the replica consistent when the copy is complete and everything that it may contain has been replayed.
func (v *Volume) endSyncIfReached() error {
	v.mu.Lock()
	s := v.st.Sync
	if s == nil || !s.reached(&v.st.Applied) {
		v.mu.Unlock()
		return nil
	}
	strange := s.strange(&v.st.Applied)
	v.mu.Unlock()
	if strange != nil {
		return fmt.Errorf("the copy may contain changes up to %v, which the history here does not contain: %w", *strange, translog.ErrDiverged)
	}
	return v.endSync()
}

// endSync ends it in the file first: nobody may hear of a consistent replica that a crash could take back. applyMu is held.
func (v *Volume) endSync() error {
	durable := v.log.Durable()
	v.mu.Lock()
	v.st.Durable = max(v.st.Durable, durable)
	st := v.st.clone()
	v.mu.Unlock()
	st.Sync = nil
	if err := st.save(v.cfg); err != nil {
		return err
	}
	v.mu.Lock()
	v.st.Sync, v.saved = nil, st.Applied.End
	v.mu.Unlock()
	return nil
}
