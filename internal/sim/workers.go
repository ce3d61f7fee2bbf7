package sim

import (
	"errors"
	"fmt"
	"time"

	"mars/internal/fullsync"
	"mars/internal/history"
	"mars/internal/resource"
	"mars/internal/translog"
)

// settle does what the workers of the real replica do when a channel of the volume is ready.
func (r *replica) settle() {
	if r.vol == nil {
		return
	}
	select {
	case <-r.vol.Waiters():
		r.planSync()
	default:
	}
	select {
	case <-r.vol.Work():
		r.mover.kick()
	default:
	}
	durable := r.vol.Log().Durable()
	if durable != r.mover.durable {
		r.mover.durable = durable
		if !r.in.Local.Writable {
			r.mover.kick()
		}
		for _, s := range r.serving {
			s.wake(0)
		}
	}
}

// planSync makes the log durable soon.
func (r *replica) planSync() {
	if r.syncing {
		return
	}
	r.syncing = true
	v := r.vol
	w := r.n.w
	r.n.after(between(w.rng.disk, 0, 2*time.Millisecond)+r.n.slow, func() {
		r.syncing = false
		if r.vol == v {
			v.SyncStep()
		}
	})
}

// mover brings the log onto the disk and copies the disk from another member.
type mover struct {
	r         *replica
	run       int // of the volume that it works on
	planned   bool
	at        time.Duration
	kept      time.Duration
	retry     time.Duration
	holdUntil time.Duration // no step before: the last one has failed
	err       string
	durable   history.LSN
	copy      *copySession
}

const (
	writebackEvery = time.Second
	retryAfter     = time.Second
	housekeepEvery = time.Second
)

func (m *mover) start(r *replica) {
	m.r, m.err, m.retry, m.holdUntil = r, "", 0, 0
	m.planned = false
	m.run++
	m.plan(0)
}

func (m *mover) stop() {
	m.run++
	m.planned = false
	if m.copy != nil {
		m.copy.abort()
	}
}

// plan makes the next step happen in d.
func (m *mover) plan(d time.Duration) {
	if m.r == nil || m.r.vol == nil {
		return
	}
	at := max(m.r.n.w.now+d, m.holdUntil)
	if m.planned && m.at <= at {
		return
	}
	m.planned, m.at = true, at
	run := m.run
	m.r.n.after(at-m.r.n.w.now, func() {
		if m.run == run && m.planned && m.at == at {
			m.planned = false
			m.step()
		}
	})
}

func (m *mover) kick() {
	if m.r != nil {
		m.plan(between(m.r.n.w.rng.disk, 0, 5*time.Millisecond))
	}
}

// step is moveOnce of package node.
func (m *mover) step() {
	r := m.r
	w := r.n.w
	if w.now-m.kept >= housekeepEvery {
		m.kept = w.now
		r.housekeep()
	}
	if m.copy.active() {
		return // the copy holds off replay; its end goes on
	}
	if !r.plan.Replay {
		m.finishOnly()
		return
	}
	worked, err := r.vol.ApplyStep()
	if err != nil {
		r.complain("cannot bring the log onto the disk: ", err)
		r.applyFailed(err)
		m.holdUntil = w.now + retryAfter
		m.plan(retryAfter)
		return
	}
	if worked {
		r.wake()
	}
	switch {
	case r.plan.Sync != "":
		m.copySome(r.plan.Sync)
	default:
		m.endSession()
		m.next(worked)
	}
}

// finishOnly is what the mover does while replay is paused. When nothing is left to finish, the disk alone is what the volume was (I1).
func (m *mover) finishOnly() {
	r, w := m.r, m.r.n.w
	worked, err := false, error(nil)
	if !w.canary("leave-mixture") {
		worked, err = r.vol.FinishStep()
	}
	if err != nil {
		r.complain("cannot bring the log onto the disk: ", err)
		r.applyFailed(err)
	}
	if st := r.vol.Status(); err == nil && !worked && !r.n.dying && !st.Writable && st.Consistent && st.Defect == nil {
		disk := r.n.disks[r.res.slot].Clone()
		disk.ClearFaults()
		w.compare(r, disk.Kill(), st.Applied)
	}
	m.plan(time.Second)
}

func (m *mover) next(worked bool) {
	pause := m.r.n.slow + between(m.r.n.w.rng.disk, 100*time.Microsecond, 5*time.Millisecond)
	switch {
	case m.r.in.Local.Writable:
		m.plan(between(m.r.n.w.rng.disk, writebackEvery/10, writebackEvery))
	case worked:
		m.plan(pause)
	default:
		m.plan(time.Second)
	}
}

func (r *replica) applyFailed(err error) {
	if s := r.vol.Status(); s.Sync != nil && errors.Is(err, translog.ErrDiverged) {
		r.startOver(err)
	}
	r.wake()
}

// startOver begins the sync of an inconsistent replica from the beginning.
func (r *replica) startOver(why error) {
	v := r.vol
	r.n.w.logf("%s/%s: sync must start over: %v", r.n.id, r.res.id, why)
	r.n.after(time.Millisecond, func() {
		if r.vol == v && v.Status().Sync != nil {
			r.reset()
		}
	})
}

// housekeep deletes log that nobody needs, and notes how far it is durable.
func (r *replica) housekeep() {
	if err := r.vol.NoteDurable(); err != nil {
		r.n.w.logf("%s/%s: cannot save how far the log is durable: %v", r.n.id, r.res.id, err)
	}
	if r.in.Self == "" {
		return
	}
	need, tight := resource.LogNeeded(r.in), r.n.tight()
	if tight {
		need = resource.LogNeededWhenTight(r.in)
	}
	need = min(need, r.vol.Checkpointed())
	if r.n.w.canary("delete-needed") {
		need = r.vol.Checkpointed()
	}
	spares := r.n.w.rng.disk.IntN(4)
	if tight {
		spares = 0
	}
	r.vol.Log().KeepSpares(spares)
	before := r.vol.Log().First()
	if _, err := r.vol.Log().DeleteBelow(need); err != nil {
		r.n.w.logf("%s/%s: cannot delete old log: %v", r.n.id, r.res.id, err)
	}
	if after := r.vol.Log().First(); after != before {
		r.n.w.logf("%s/%s: deletes log below LSN %d", r.n.id, r.res.id, after)
		r.n.w.gaveUp = r.n.w.gaveUp || after > resource.LogNeeded(r.in)
		r.n.w.checkDeleted(r, after, tight)
	}
}

// logUsed is what all logs of the node take.
func (n *node) logUsed() int64 {
	var sum int64
	for _, r := range n.reps {
		if r != nil && r.vol != nil {
			sum += r.vol.Log().SpaceUsed()
		}
	}
	return sum
}

func (n *node) reserve(bytes int64) error {
	if used := n.logUsed(); used+bytes > n.w.logLimit {
		return fmt.Errorf("logs take %d bytes, log_limit is %d: %w", used, n.w.logLimit, errNoSpace)
	}
	return nil
}

func (n *node) tight() bool { return n.logUsed() > n.w.logLimit/10*8 }

// pause is what a slowed writer does: meanwhile the others of the node go on.
func (r *replica) pause(time.Duration) {
	if r.n.dying || r.vol == nil || r.disk.inside {
		return
	}
	r.pausing = true
	defer func() { r.pausing = false }()
	if r.plan.Replay && !r.mover.copy.active() {
		r.vol.ApplyStep()
	}
	r.housekeep()
}

// copySession is the sync of a newcomer in progress.
type copySession struct {
	m     *mover
	from  string
	end   *end // nil while dialing
	sess  *fullsync.Session
	ready bool
	step  *copyStep
}
