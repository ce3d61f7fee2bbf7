package volume

import (
	"errors"
	"fmt"

	"mars/internal/block"
	"mars/internal/extent"
	"mars/internal/history"
	"mars/internal/translog"
)

// Ingest verifies fetched log and appends it; see translog.Log.AppendRaw. It is durable after Log().SyncTo.
func (v *Volume) Ingest(b []byte) error {
	v.logMu.Lock()
	defer v.logMu.Unlock()
	if err := v.mayIngest(); err != nil {
		return err
	}
	if len(b) == 0 {
		return nil
	}
	h, err := v.log.AppendRaw(b)
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.endStamp = h.Stamp
	v.mu.Unlock()
	v.waiters.soon.signal() // the sooner it is durable, the sooner it is replayed and passed on
	return nil
}

func (v *Volume) mayIngest() error {
	if err := v.checkOpen(); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.tenure:
		return errors.New("a primary fetches nothing")
	case v.defect != nil:
		return v.defect // to append behind damage would hide it; Heal first
	}
	return nil
}

// Heal cuts a defective log off at the damage, so that the rest can be fetched again. Only the log's owner by history (the primary) has
// nobody to fetch from; that is for the caller to decide. If changes behind the cut may be on the disk already, the replica is inconsistent
// until they are fetched again.
func (v *Volume) Heal() error {
	unlock, err := v.lockIdle()
	if err != nil {
		return err
	}
	defer unlock()
	v.mu.Lock()
	d := v.defect
	v.mu.Unlock()
	if d == nil {
		return nil
	}
	pos, err := v.positionAt(d.At)
	if err != nil {
		return err
	}
	if err := v.log.TruncateTo(pos); err != nil {
		return err
	}
	v.mu.Lock()
	v.defect, v.applyErr = nil, nil
	v.cur, v.frozen, v.indexed = extent.New(), nil, v.st.Applied.Position() // it may refer to what is cut off
	// The file must stop claiming that more was durable, else the shorter log would be taken for a defective one again.
	v.st.Durable = min(v.st.Durable, pos.LSN)
	v.mu.Unlock()
	return v.writeState()
}

// lockIdle takes the locks under which the log may be cut and returns how to release them. It fails while this is a primary.
func (v *Volume) lockIdle() (unlock func(), err error) {
	v.applyMu.Lock()
	v.logMu.Lock()
	unlock = func() {
		v.logMu.Unlock()
		v.applyMu.Unlock()
	}
	err = v.checkOpen()
	v.mu.Lock()
	if err == nil && v.tenure {
		err = errors.New("the log of a primary is not cut")
	}
	v.mu.Unlock()
	if err != nil {
		unlock()
	}
	return unlock, err
}

// positionAt finds the digest at a record boundary between Applied and the end.
func (v *Volume) positionAt(lsn history.LSN) (history.Position, error) {
	end := v.log.EndPosition()
	if lsn == end.LSN {
		return end, nil
	}
	start := v.appliedPosition()
	pos, err := v.log.Scan(start, lsn, func(*translog.Record) bool { return true })
	if err == nil && pos.LSN != lsn {
		err = fmt.Errorf("LSN %d is no record boundary", lsn)
	}
	return pos, err
}

// DropTail forgets what was logged behind pos: a tail without data that another history has replaced. It refuses if data would be lost.
func (v *Volume) DropTail(pos history.Position) error {
	unlock, err := v.lockIdle()
	if err != nil {
		return err
	}
	defer unlock()
	if err := v.log.CheckPosition(pos); err != nil && !errors.Is(err, translog.ErrGone) {
		return err
	}
	p := v.log.Path()
	if p.LastData > pos.LSN {
		return fmt.Errorf("the tail behind %v has data up to LSN %d", pos, p.LastData)
	}
	cut, err := p.TruncateTo(pos)
	if err != nil {
		return err
	}
	v.mu.Lock()
	if v.st.Applied.End > pos.LSN {
		v.st.Applied = cut
	}
	// Nothing behind pos changes the disk, so it is as clean as it was.
	if v.st.Dirty.LSN > pos.LSN && p.Contains(v.st.Dirty) {
		v.st.Dirty = pos
	}
	if v.indexed.LSN > pos.LSN {
		v.indexed = pos
	}
	v.frozenEnd = min(v.frozenEnd, pos.LSN)
	v.st.Durable = min(v.st.Durable, pos.LSN)
	v.mu.Unlock()
	// First the file: after a crash it must not speak of what the log has no more. If the tail comes back, it is dropped again.
	if err := v.writeState(); err != nil {
		return err
	}
	return v.log.TruncateTo(pos)
}

// Reflects returns the position up to which what ReadAt returns is certain to contain everything.
func (v *Volume) Reflects() history.Position {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.tenure {
		return v.indexed
	}
	return v.st.Applied.Position()
}

// CopyStart returns what a newcomer that is going to be filled from here needs to know: where its log must begin, and the size.
func (v *Volume) CopyStart() (history.Path, int64, error) {
	if s := v.Status(); !s.Consistent || s.Defect != nil {
		return history.Path{}, 0, ErrInconsistent
	}
	pos, size := v.Reflects(), v.Size()
	if err := v.log.SyncTo(pos.LSN); err != nil {
		return history.Path{}, 0, err
	}
	p := v.log.Path()
	p, err := p.TruncateTo(pos)
	return p, size, err
}

// Copy is one step of a full sync: a range of the disk that is being overwritten with the source's content. Replay is held off until it is
// committed or aborted: changes that replay leaves out because the range is not copied yet must be in the copy.
type Copy struct {
	v        *Volume
	seen     *history.Position
	Off, Len int64
}

// Saw tells, before Commit, up to which position of the source's history the step may contain changes. Without it a copy that is
// interrupted, and completed from a source with another history, could be taken for consistent.
func (c *Copy) Saw(pos history.Position) { c.seen = &pos }

// StartCopy begins the next step of at most n bytes; nil when everything is copied.
func (v *Volume) StartCopy(n int64) (*Copy, error) {
	v.applyMu.Lock()
	if err := v.checkOpen(); err != nil {
		v.applyMu.Unlock()
		return nil, err
	}
	v.mu.Lock()
	s, size := v.st.Sync, v.size
	v.mu.Unlock()
	if s == nil || s.Copied || s.Done >= size {
		v.applyMu.Unlock()
		return nil, nil
	}
	return &Copy{v: v, Off: s.Done, Len: min(n, size-s.Done)}, nil
}

// Disk is where the copy goes; ranges outside of the step must not be touched.
func (c *Copy) Disk() block.Device { return c.v.cfg.Disk }

// Commit makes the step durable.
func (c *Copy) Commit() error {
	defer c.v.applyMu.Unlock()
	if err := c.v.cfg.Disk.Flush(); err != nil {
		return fmt.Errorf("flush disk: %w", err)
	}
	c.v.mu.Lock()
	c.v.st.Sync.Done = c.Off + c.Len
	if c.seen != nil {
		c.v.st.Sync.saw(*c.seen)
	}
	c.v.mu.Unlock()
	return c.v.saveState()
}

// Abort ends the step without having advanced; it will be done again.
func (c *Copy) Abort() { c.v.applyMu.Unlock() }

// EndCopy says that everything is copied and that the copy may contain changes up to until: the replica becomes consistent when it has
// replayed that far.
func (v *Volume) EndCopy(until history.Position) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	if err := v.checkOpen(); err != nil {
		return err
	}
	v.mu.Lock()
	if s := v.st.Sync; s == nil || s.Done < v.size {
		v.mu.Unlock()
		return errors.New("the copy is not complete")
	}
	v.st.Sync.Copied = true
	v.st.Sync.Until = &until
	v.mu.Unlock()
	if err := v.saveState(); err != nil {
		return err
	}
	return v.endSyncIfReached()
}
