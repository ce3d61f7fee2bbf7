package volume

import (
	"errors"
	"fmt"

	"mars/internal/block"
	"mars/internal/history"
	"mars/internal/translog"
)

// Ingest verifies fetched log and appends it; see translog.Log.AppendRaw. It is durable after Log().SyncTo.
func (v *Volume) Ingest(b []byte) error {
	v.mu.Lock()
	writable := v.writable
	v.mu.Unlock()
	if writable {
		return errors.New("a primary fetches nothing")
	}
	h, err := v.log.AppendRaw(b)
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.endStamp = h.Stamp
	v.mu.Unlock()
	v.waiters.kick.signal() // the sooner it is durable, the sooner it is replayed and passed on
	return nil
}

// Heal cuts a defective log off at the damage, so that the rest can be fetched again. Only the log's owner by history (the primary) has
// nobody to fetch from; that is for the caller to decide.
func (v *Volume) Heal() error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
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
	// The file must stop claiming that more was durable, else the shorter log would be taken for a defective one again.
	if err := v.log.TruncateTo(pos); err != nil {
		return err
	}
	v.mu.Lock()
	v.defect = nil
	v.mu.Unlock()
	return v.saveState()
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
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
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
	v.st.DirtyEnd = max(v.st.Applied.End, min(v.st.DirtyEnd, pos.LSN))
	if v.indexed.LSN > pos.LSN {
		v.indexed = pos
	}
	v.mu.Unlock()
	if err := v.log.TruncateTo(pos); err != nil {
		return err
	}
	return v.saveState()
}

// Reflects returns the position up to which what ReadAt returns is certain to contain everything.
func (v *Volume) Reflects() history.Position {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.writable {
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
	Off, Len int64
}

// StartCopy begins the next step of at most n bytes; nil when everything is copied.
func (v *Volume) StartCopy(n int64) (*Copy, error) {
	v.applyMu.Lock()
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
