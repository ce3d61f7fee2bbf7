package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mars/internal/block"
	"mars/internal/fullsync"
	"mars/internal/history"
	"mars/internal/resource"
	"mars/internal/ship"
	"mars/internal/translog"
	"mars/internal/transport"
)

// Log syncs that nobody but a peer waits for have a distance, and take at most a quarter of the time: they cost the application bandwidth.
const (
	shipInterval    = 2 * time.Millisecond
	maxShipInterval = 50 * time.Millisecond
)

// syncLog makes the log durable: at once when somebody waits for it, else now and then. It ends with rep.ctx.
func (rep *replica) syncLog() {
	var next time.Time // earliest sync without waiters
	for {
		select {
		case <-rep.ctx.Done():
			return
		case <-rep.vol.Waiters():
		case <-rep.vol.Soon():
			rep.holdSync(max(time.Until(next), rep.r.n.syncs.take()))
		}
		start := time.Now()
		rep.vol.SyncStep()
		end := time.Now()
		next = end.Add(min(max(3*end.Sub(start), shipInterval), maxShipInterval)) // a quarter of the time at most
	}
}

// holdSync waits for d unless somebody needs a sync now.
func (rep *replica) holdSync(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-rep.ctx.Done():
	case <-rep.vol.Waiters():
	case <-t.C:
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// mover brings the log onto the disk and, on a newcomer, copies the disk from another member. Both write to the disk, so one goroutine does
// them in turn.
type mover struct {
	target *fullsync.Target
	conn   *transport.Conn
	from   string

	mu    sync.Mutex
	err   string
	retry time.Time

	applying atomic.Bool // a window is being applied, or it is being decided whether to

	// owned by the mover's goroutine
	next  time.Time   // earliest next window on a secondary that keeps up
	end   history.LSN // of the log when last looked at
	quiet time.Time   // since when it has not moved
	dirty time.Time   // since when something is unapplied; zero if nothing is
	peak  float64     // how many segments the log had lately, at most
	kept  time.Time   // when housekeep ran last
}

func (m *mover) syncErr() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *mover) setErr(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = ""
	if err != nil {
		m.err = err.Error()
	}
}

// Intervals of the mover.
const (
	writebackAge   = 5 * time.Second        // how old a change gets on the primary before it is written back
	writebackIdle  = 500 * time.Millisecond // without new writes it is written back at once
	replayGap      = 20 * time.Millisecond  // between two windows on a secondary that keeps up, at least: so they grow under load
	maxReplayGap   = 200 * time.Millisecond // else it takes a quarter of the time
	keepsUp        = 16 << 20               // bytes of log that wait for replay; with more there is no gap
	retryAfter     = time.Second            // after an error
	housekeepEvery = time.Second
	// What is written in large runs is seldom overwritten soon, and its log is best written again while it is cached.
	largeRun   = 128 << 10
	largeLimit = 256 << 20

	copyStep = 64 << 20 // bytes of disk that a sync copies between two replays
)

// move is the mover's goroutine. It ends with rep.ctx.
func (rep *replica) move() {
	defer rep.endCopySession()
	for rep.ctx.Err() == nil {
		changed := rep.vol.Log().Changed()
		worked := rep.moveOnce()
		if now := time.Now(); worked == nil || now.Sub(rep.mover.kept) > housekeepEvery {
			rep.housekeep(now)
		}
		if worked == nil {
			continue
		}
		rep.idle(changed, *worked)
	}
}

// moveOnce does one step. It returns nil when it should be called again at once, else how long to wait.
func (rep *replica) moveOnce() *time.Duration {
	rep.awaitTurn()
	w, worked, wait := rep.applyOnce()
	if wait != nil {
		return wait
	}
	if s := rep.vol.Status().Sync; w.plan.Sync != "" && s != nil && !s.Copied {
		return rep.copySome(w)
	}
	rep.endCopySession()
	if worked {
		return nil
	}
	return after(time.Second)
}

// awaitTurn keeps windows apart where there is no backlog.
func (rep *replica) awaitTurn() {
	w, n := rep.wish.Load(), rep.vol.Unapplied()
	if w == nil || !w.plan.Replay || w.plan.Sync != "" || w.in.Local.Writable || n == 0 || n >= keepsUp {
		return
	}
	t := time.NewTimer(max(time.Until(rep.mover.next), rep.r.n.replays.take()))
	defer t.Stop()
	select {
	case <-rep.ctx.Done():
	case <-rep.vol.Work(): // there is a backlog now
	case <-t.C:
	}
}

// applyOnce applies a window if that is wished and due. If it is not, or fails, wait says how long to wait.
func (rep *replica) applyOnce() (w *wish, worked bool, wait *time.Duration) {
	rep.mover.applying.Store(true) // before the wish is looked at: who finds neither set knows that the disk is left alone
	defer rep.mover.applying.Store(false)
	w = rep.wish.Load()
	if w == nil {
		return w, false, after(time.Second)
	}
	if !w.plan.Replay {
		return rep.finishOnly(w)
	}
	if w.in.Local.Writable && !rep.writebackDue() {
		return w, false, after(writebackIdle / 2)
	}
	start := time.Now()
	worked, err := rep.vol.ApplyStep()
	if err != nil {
		rep.applyFailed(err)
		return w, false, after(retryAfter)
	}
	if worked {
		end := time.Now()
		rep.mover.next = end.Add(min(max(3*end.Sub(start), replayGap), maxReplayGap))
		rep.r.wake()
	}
	return w, worked, nil
}

// finishOnly is applyOnce while replay is paused.
func (rep *replica) finishOnly(w *wish) (_ *wish, worked bool, wait *time.Duration) {
	worked, err := rep.vol.FinishStep()
	if err != nil {
		rep.applyFailed(err)
	}
	if err != nil || !worked {
		return w, false, after(time.Second)
	}
	rep.r.wake()
	return w, true, nil
}

func after(d time.Duration) *time.Duration { return &d }

// writebackDue decides when a primary writes back: when much is waiting, when it is old, or when the application is quiet. Until then what is
// overwritten never reaches the disk, and the disk is free for reads.
func (rep *replica) writebackDue() bool {
	m, now := &rep.mover, time.Now()
	if end := rep.vol.Log().End(); end != m.end {
		m.end, m.quiet = end, now
	}
	waiting, run := rep.vol.Backlog()
	if waiting == 0 {
		m.dirty = time.Time{}
		return true // saves the checkpoint
	}
	if m.dirty.IsZero() {
		m.dirty = now
	}
	limit := rep.r.n.cfg.WritebackLimitBytes / 2
	if run >= largeRun {
		limit = min(limit, largeLimit)
	}
	due := waiting > limit || rep.r.n.store.tight() || now.Sub(m.dirty) > writebackAge || now.Sub(m.quiet) > writebackIdle
	if due {
		m.dirty = now
	}
	return due
}

// applyFailed handles what replay cannot get over.
func (rep *replica) applyFailed(err error) {
	if errors.Is(err, block.ErrClosed) {
		return // the replica ends
	}
	rep.r.n.log.Warn("cannot bring the log onto the disk", "res", rep.r.name(), "err", err)
	if s := rep.vol.Status(); s.Sync != nil && errors.Is(err, translog.ErrDiverged) {
		rep.startOver(err)
	}
	rep.r.wake()
}

// idle waits for work: on a primary for the backlog to become large, on a secondary for more durable log.
func (rep *replica) idle(changed <-chan struct{}, d time.Duration) {
	w := rep.wish.Load()
	if w != nil && w.in.Local.Writable {
		changed = nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-rep.ctx.Done():
	case <-rep.vol.Work():
	case <-changed:
	case <-t.C:
	case <-rep.kickIfIdle(w):
	}
}

// kickIfIdle returns the channel of new decisions when one of them could change what the mover does.
func (rep *replica) kickIfIdle(w *wish) <-chan struct{} {
	if w != nil && w.in.Local.Writable {
		return nil
	}
	return rep.wishKick
}

// copySome runs one step of the full sync.
func (rep *replica) copySome(w *wish) *time.Duration {
	m := &rep.mover
	if time.Now().Before(m.retry) {
		return after(time.Until(m.retry))
	}
	err := rep.copyStep(w.plan.Sync)
	m.setErr(err)
	if err == nil {
		rep.r.wake()
		return nil
	}
	rep.endCopySession()
	m.retry = time.Now().Add(retryAfter)
	rep.r.n.log.Warn("sync is interrupted; it will be continued", "res", rep.r.name(), "peer", rep.r.n.nodeName(w.plan.Sync), "err", err)
	var ref *fullsync.Refusal
	if errors.As(err, &ref) && ref.Code == fullsync.CodeDiverged {
		rep.startOver(err)
	}
	return after(retryAfter)
}

func (rep *replica) copyStep(from string) error {
	t, err := rep.copySession(from)
	if err != nil {
		return err
	}
	c, err := rep.vol.StartCopy(copyStep)
	if err != nil {
		return err
	}
	if c == nil {
		return rep.endCopy(t)
	}
	if err := t.Copy(c.Disk(), fullsync.Range{Off: c.Off, Len: c.Len, Reflected: rep.vol.Reflects().LSN}); err != nil {
		c.Abort()
		return err
	}
	seen, err := t.Finish()
	if err != nil {
		c.Abort()
		return err
	}
	c.Saw(seen)
	return c.Commit()
}

func (rep *replica) endCopy(t *fullsync.Target) error {
	until, err := t.Finish()
	if err != nil {
		return err
	}
	if err := rep.vol.EndCopy(until); err != nil {
		return err
	}
	rep.r.n.log.Info("copy is complete; the replica is consistent when the log is replayed", "res", rep.r.name(), "pos", until.LSN)
	rep.endCopySession()
	return nil
}

// copySession returns the session with the source, opening one if need be.
func (rep *replica) copySession(from string) (*fullsync.Target, error) {
	m := &rep.mover
	if m.target != nil && m.from == from {
		return m.target, nil
	}
	rep.endCopySession()
	conn, err := rep.r.n.cluster.DialNode(rep.ctx, transport.Sync, from)
	if err != nil {
		return nil, err
	}
	pos := rep.vol.Reflects()
	t, _, err := fullsync.Open(conn, fullsync.OpenRequest{Resource: rep.r.id, From: &pos})
	if err != nil {
		conn.Close()
		return nil, err
	}
	m.target, m.conn, m.from = t, conn, from
	rep.r.n.log.Info("sync runs", "res", rep.r.name(), "peer", rep.r.n.nodeName(from), "pos", rep.vol.Status().Sync)
	return t, nil
}

func (rep *replica) endCopySession() {
	if rep.mover.conn != nil {
		rep.mover.conn.Close()
	}
	rep.mover.conn, rep.mover.target, rep.mover.from = nil, nil, ""
}

// startOver begins the sync of an inconsistent replica from the beginning: the history it was filled from is not the one that goes on. Nothing
// is lost by that: it was inconsistent.
func (rep *replica) startOver(why error) {
	rep.r.n.log.Warn("sync must start over", "res", rep.r.name(), "err", why)
	rep.r.n.wg.Go(func() { // not on this goroutine, which it joins; ends when the job is done or the replica closed
		rep.r.do(rep.ctx, func() error {
			if s := rep.vol.Status(); s.Sync == nil || rep.r.replica() != rep {
				return nil
			}
			return rep.r.reset()
		})
	})
}

// housekeep deletes log that nobody needs, and notes how far it is durable.
func (rep *replica) housekeep(now time.Time) {
	if err := rep.vol.NoteDurable(); err != nil && rep.ctx.Err() == nil {
		rep.r.n.log.Warn("cannot save how far the log is durable", "res", rep.r.name(), "err", err)
	}
	w, l := rep.wish.Load(), rep.vol.Log()
	if w == nil {
		return
	}
	need, spares := resource.LogNeeded(w.in), rep.mover.spares(l.Segments(), now)
	if rep.r.n.store.tight() {
		need, spares = resource.LogNeededWhenTight(w.in), 0
	}
	l.KeepSpares(spares)
	if _, err := l.DeleteBelow(min(need, rep.vol.Checkpointed())); err != nil {
		rep.r.n.log.Warn("cannot delete old log", "res", rep.r.name(), "err", err)
	}
}

// spareMemory is how long it takes until a peak of the log's length is mostly forgotten.
const spareMemory = 3 * time.Minute

// spares returns how many deleted segments are worth keeping for later ones: with those in use as many as there were at the last peak.
func (m *mover) spares(live int, now time.Time) int {
	if !m.kept.IsZero() {
		m.peak *= math.Exp(-float64(now.Sub(m.kept)) / float64(spareMemory))
	}
	m.kept = now
	m.peak = max(m.peak, float64(live))
	return int(m.peak) - live
}

// fetcher keeps one fetching session.
type fetcher struct {
	kick chan struct{}

	mu         sync.Mutex
	from       string
	err        string
	lacking    []string // nodes that do not have what is needed next, or not intact
	primaryEnd history.LSN
	caughtUp   int64 // Lamport time up to which everything of the primary is known to be here
	cancel     context.CancelFunc
}

func (f *fetcher) state() (from, err string, lacking []string, end history.LSN) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.from, f.err, slices.Clone(f.lacking), f.primaryEnd
}

// retarget ends a session with another node than from.
func (f *fetcher) retarget(from string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cancel != nil && f.from != from {
		f.cancel()
	}
	if f.kick != nil {
		select {
		case f.kick <- struct{}{}:
		default:
		}
	}
}

// fetchLog keeps a session with whomever the plan names. It ends with rep.ctx.
func (rep *replica) fetchLog() {
	f := &rep.fetch
	f.mu.Lock()
	f.kick = make(chan struct{}, 1)
	kick := f.kick
	f.mu.Unlock()
	for rep.ctx.Err() == nil {
		w := rep.wish.Load()
		if w == nil || w.plan.Fetch == "" {
			f.finish(nil)
			select {
			case <-rep.ctx.Done():
			case <-kick:
			}
			continue
		}
		err := rep.fetchFrom(w.plan.Fetch)
		f.finish(err)
		rep.r.wake()
		if err != nil && rep.ctx.Err() == nil {
			sleep(rep.ctx, retryAfter/4)
		}
	}
}

func (f *fetcher) finish(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ship.Lacks(err) && !slices.Contains(f.lacking, f.from) {
		f.lacking = append(f.lacking, f.from)
	}
	f.from, f.cancel = "", nil
	f.err = ""
	if err != nil && !errors.Is(err, context.Canceled) {
		f.err = err.Error()
	}
}

// fetchFrom runs one session.
func (rep *replica) fetchFrom(node string) error {
	ctx, cancel := context.WithCancel(rep.ctx)
	defer cancel()
	f := &rep.fetch
	f.mu.Lock()
	f.from, f.cancel = node, cancel
	f.mu.Unlock()
	conn, err := rep.r.n.cluster.DialNode(ctx, transport.Log, node)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	req := ship.Request{Resource: rep.r.id, From: rep.vol.Log().EndPosition()}
	err = ship.Fetch(ctx, conn, req, ingester{rep}, rep.heard)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("fetch from %s: %w", rep.r.n.nodeName(node), err)
}

// heard takes note of what the server says about its log; a zero Info follows every chunk.
func (rep *replica) heard(i ship.Info) {
	f := &rep.fetch
	f.mu.Lock()
	f.err = ""
	if i == (ship.Info{}) {
		f.lacking = nil // the log has grown
	}
	f.primaryEnd = max(f.primaryEnd, i.End)
	if i.Stamp != 0 && rep.vol.Log().End() >= i.Durable {
		f.caughtUp = max(f.caughtUp, i.Stamp)
	}
	f.mu.Unlock()
	if i.Stamp != 0 {
		rep.r.n.stamps.observe(i.Stamp)
	}
}

// ingester stores what was fetched, and wakes the strategy when the token may have come with it.
type ingester struct{ rep *replica }

func (i ingester) Ingest(records []byte) error {
	if err := i.rep.vol.Ingest(records); err != nil {
		return err
	}
	if i.rep.vol.Log().Successor() != "" {
		i.rep.r.wake()
	}
	return nil
}
