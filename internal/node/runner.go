package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"mars/internal/history"
	"mars/internal/resource"
	"mars/internal/volume"
)

// runner keeps one replica as the strategy wants it. One goroutine does all changes of the replica's state; commands pass functions to it.
type runner struct {
	n    *Node
	id   string
	kick chan struct{}
	jobs chan job
	done chan struct{} // closed when loop has ended

	ctx  context.Context
	stop context.CancelCauseFunc

	// owned by loop
	publishedAt time.Time

	mu      sync.Mutex
	rep     *replica // nil while detached
	openErr error
	missing bool
	in      resource.Input
	plan    resource.Plan
	facts   resource.Facts
	waiting waiting
	rates   rates
	changed chan struct{} // closed after every round
}

type job struct {
	f    func() error
	done chan error
}

// waiting remembers since when something is waited for (invariant I11).
type waiting struct {
	what  string
	since time.Time
}

func newRunner(n *Node, id string) *runner {
	r := &runner{n: n, id: id, kick: make(chan struct{}, 1), jobs: make(chan job), done: make(chan struct{}), changed: make(chan struct{})}
	r.ctx, r.stop = context.WithCancelCause(n.ctx)
	return r
}

func (r *runner) start() { go r.loop() } // ends with r.ctx; joined by close through r.done

// close ends the loop and releases the replica.
func (r *runner) close() {
	r.stop(errClosed)
	<-r.done
}

func (r *runner) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// do runs f on the runner's goroutine and returns its error.
func (r *runner) do(ctx context.Context, f func() error) error {
	j := job{f, make(chan error, 1)}
	select {
	case r.jobs <- j:
		return <-j.done
	case <-ctx.Done():
		return ctx.Err()
	case <-r.done:
		return errClosed
	}
}

// tick is how often a runner looks without being woken, so that progress and time-outs show.
const tick = 500 * time.Millisecond

func (r *runner) loop() {
	defer close(r.done)
	defer r.detach(true)
	t := time.NewTicker(tick)
	defer t.Stop()
	for r.ctx.Err() == nil {
		if r.round() {
			continue // something was done: look again at once
		}
		select {
		case <-r.ctx.Done():
		case <-r.kick:
		case <-t.C:
		case j := <-r.jobs:
			j.done <- j.f()
		}
	}
}

// round observes, decides, acts and publishes once. It returns true when it has changed something.
func (r *runner) round() bool {
	in, ok := r.observe()
	if !ok {
		return false
	}
	plan := resource.Decide(in)
	r.remember(in, plan)
	acted, err := r.act(in, plan)
	if err != nil {
		r.n.log.Warn("cannot do what is wished", "res", r.name(), "err", err)
		r.note(err)
	}
	if acted {
		if in, ok = r.observe(); ok {
			plan = resource.Decide(in)
			r.remember(in, plan)
		}
	}
	r.publish(in, plan)
	return acted && err == nil
}

// observe collects everything a decision depends on; false when the resource is gone.
func (r *runner) observe() (resource.Input, bool) {
	e, ok := r.n.catalog()[r.id]
	self := r.n.self()
	if !ok || e.members[self] == nil {
		return resource.Input{}, false
	}
	in := resource.Input{Self: self, Designated: e.designated, Switches: e.switchesOf(self), Former: e.former[self]}
	settled := true
	for node := range e.members {
		if node == self {
			continue
		}
		p := resource.Peer{Node: node, Facts: e.facts[node], Former: e.former[node]}
		if info, err := r.n.cluster.Node(node); err == nil {
			p.Alive = info.Alive
			settled = settled && info.Alive && !info.LastContact.IsZero()
		}
		in.Peers = append(in.Peers, p)
	}
	resource.SortPeers(in.Peers)
	in.Settled = settled || time.Since(r.n.started) > r.n.cfg.PrimaryWait
	in.Local = r.local()
	return in, true
}

// local describes the replica as it is.
func (r *runner) local() resource.Local {
	r.mu.Lock()
	rep, openErr, missing := r.rep, r.openErr, r.missing
	r.mu.Unlock()
	l := resource.Local{Missing: missing}
	if openErr != nil {
		l.OpenErr = openErr.Error()
	}
	if rep == nil {
		return l
	}
	var diskErr error
	l.DiskSize, diskErr = rep.diskSize()
	vol := r.volume()
	if vol == nil {
		return l
	}
	l.Open = true
	l.Status = vol.Status()
	l.Backlog = int64(l.Path.End-l.Applied.LSN) > r.n.cfg.WritebackLimitBytes
	l.Device, l.Users = rep.deviceAndUsers()
	l.Paused = rep.isPaused()
	rep.describe(&l)
	if diskErr != nil && l.ApplyErr == nil {
		l.ApplyErr = diskErr
	}
	return l
}

func (r *runner) remember(in resource.Input, plan resource.Plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in, r.plan = in, plan
	if plan.WaitsFor != r.waiting.what {
		r.waiting = waiting{plan.WaitsFor, time.Now()}
	}
	if r.rep != nil {
		r.rep.follow(in, plan)
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// note shows why the last action failed.
func (r *runner) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = waiting{err.Error(), time.Now()}
}

// act does the next thing that the plan asks for and that is not so.
func (r *runner) act(in resource.Input, p resource.Plan) (bool, error) {
	switch resource.Next(&in.Local, &p) {
	case resource.ActStop:
		return r.withdraw(func(v *volume.Volume) error { return v.Suspend() })
	case resource.ActDetach:
		return true, r.detach(false)
	case resource.ActAttach:
		return r.attach()
	case resource.ActGiveUp:
		return true, r.replica().giveUp()
	case resource.ActJoin:
		return true, r.join(p.Join)
	case resource.ActHandOver:
		return r.withdraw(func(v *volume.Volume) error { return v.Deactivate(p.To) })
	case resource.ActPass:
		return true, r.volume().PassToken(in.Self, p.To, r.timeline())
	case resource.ActActivate:
		return true, r.activate(in.Self, false)
	case resource.ActHeal:
		r.n.log.Warn("log is damaged; fetching the damaged part again", "res", r.name(), "pos", in.Local.Defect.At, "err", in.Local.Defect)
		return true, r.volume().Heal()
	case resource.ActStartOver:
		r.n.log.Warn("the log that the sync needs is gone; it starts over", "res", r.name())
		return true, r.reset()
	case resource.ActDropTail:
		r.n.log.Warn("dropping a tail of the log without data, replaced by another history", "res", r.name(), "pos", p.DropTail.LSN,
			"bytes", in.Local.Path.End-p.DropTail.LSN)
		return true, r.dropTail(*p.DropTail)
	case resource.ActShow:
		return true, r.show()
	}
	return false, nil
}

// dropTail must not meet sessions that read the tail.
func (r *runner) dropTail(pos history.Position) error {
	rep := r.replica()
	defer rep.session.pause()()
	return rep.vol.DropTail(pos)
}

func (r *runner) activate(self string, forced bool) error {
	v := r.volume()
	r.n.stamps.observe(v.Status().EndStamp)
	t := r.timeline()
	t.Forced = forced
	if err := v.Activate(self, t); err != nil {
		return err
	}
	r.n.log.Info("is primary now", "res", r.name(), "timeline", t.ID, "forced", forced)
	return r.show()
}

func (r *runner) timeline() history.Timeline {
	return history.Timeline{ID: newTimelineID(), Stamp: r.n.stamps.next()}
}

// withdraw closes the device, which its users can prevent, and then does end.
func (r *runner) withdraw(end func(*volume.Volume) error) (bool, error) {
	rep := r.replica()
	if err := rep.hide(r.ctx); err != nil {
		return false, err
	}
	if err := end(rep.vol); err != nil {
		return false, err
	}
	r.n.log.Info("is no longer primary", "res", r.name(), "holder", r.n.nodeName(holderOf(rep.vol)))
	return true, nil
}

func holderOf(v *volume.Volume) string {
	p := v.Log().Path()
	return p.Holder()
}

func (r *runner) replica() *replica {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rep
}

// volume returns the open volume, nil if there is none.
func (r *runner) volume() *volume.Volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rep == nil {
		return nil
	}
	return r.rep.vol
}

func (r *runner) name() string {
	if e, ok := r.n.catalog()[r.id]; ok {
		return e.name
	}
	return r.id
}

// retryAttach is how long a failed attach is not tried again.
const retryAttach = 2 * time.Second

// attach opens the disk and the volume.
func (r *runner) attach() (bool, error) {
	r.mu.Lock()
	fresh := r.openErr == nil || time.Since(r.waiting.since) > retryAttach
	r.mu.Unlock()
	if !fresh {
		return false, nil
	}
	e := r.n.catalog()[r.id]
	m := e.members[r.n.self()]
	if m == nil {
		return false, nil
	}
	rep, err := openReplica(r, m.Disk)
	missing := errors.Is(err, volume.ErrNoReplica)
	if missing {
		err = r.n.noteFacts(e)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rep, r.openErr, r.missing = rep, err, missing
	r.waiting.since = time.Now()
	if err != nil {
		r.rep = nil
		return false, fmt.Errorf("attach: %w", err)
	}
	return true, nil
}

// detach stops everything that uses the replica. final: also when the device is in use, whose users get errors then.
func (r *runner) detach(final bool) error {
	rep := r.replica()
	if rep == nil {
		return nil
	}
	if !final {
		if err := rep.hide(r.ctx); err != nil {
			return err
		}
	}
	err := rep.close()
	r.mu.Lock()
	r.rep, r.missing = nil, false
	r.mu.Unlock()
	if err != nil {
		r.n.log.Error("error while detaching", "res", r.name(), "err", err)
	}
	return nil
}
