package sim

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"mars/internal/history"
	"mars/internal/resource"
	"mars/internal/volume"
)

// replica is one node's replica of one resource with what works on it: package node's runner, replica, mover and fetcher, as steps.
type replica struct {
	n    *node
	res  *simResource
	disk *simDisk
	vol  *volume.Volume // nil while detached or missing

	missing  bool
	openErr  string
	openedAt time.Duration

	in       resource.Input
	plan     resource.Plan
	facts    resource.Facts
	pubAt    time.Duration
	waits    string
	waitsAt  time.Duration
	queued   bool // a round is planned
	seenMeta uint64
	shown    bool // the device is there
	failedAt time.Duration
	said     string

	join    *joining
	mover   mover
	fetch   fetcher
	serving []*logSession
	copying []*end // sync sessions served
	syncing bool   // a SyncStep is planned
	leaving bool   // the content is about to be thrown away: nobody may count on it
	pausing bool   // a writer waits in the middle of a request

	last     history.Path // of the log, after the event before
	progress [3]int64
	quietAt  time.Duration
}

func newReplica(n *node, res *simResource) *replica {
	r := &replica{n: n, res: res, failedAt: -time.Hour, openedAt: -time.Hour, quietAt: n.w.now}
	r.disk = &simDisk{Disk: n.disks[res.slot], r: r}
	return r
}

func (r *replica) config() volume.Config {
	n, s := r.n, &r.res.shape
	return volume.Config{
		FS: simFS{n.fs, r}, Dir: dirOf(r.res), Resource: r.res.raw, Disk: r.disk, Stamp: n.nextStamp, Pause: r.pause,
		SegmentSize: s.segment, Reserve: n.reserve, WritebackLimit: s.writeback, WindowSize: s.window,
		StallTimeout: 100 * time.Millisecond, WriteThrough: s.writeThrough,
	}
}

func dirOf(res *simResource) string { return "mars/" + res.id }

// wake plans a round.
func (r *replica) wake() {
	if r.queued {
		return
	}
	r.queued = true
	r.n.after(between(r.n.w.rng.disk, 0, 5*time.Millisecond), func() {
		r.queued = false
		if r.alive() {
			r.round()
		}
	})
}

// alive reports whether this is still the node's replica.
func (r *replica) alive() bool { return r.n.reps[r.res.index] == r }

const tick = 500 * time.Millisecond

// round observes, decides, acts and publishes once.
func (r *replica) round() {
	if r.join != nil {
		return // the real runner waits for the answer
	}
	in, ok := r.observe()
	if !ok {
		return
	}
	plan := resource.Decide(in)
	r.remember(in, plan)
	acted, err := false, error(nil)
	if r.n.w.now-r.failedAt >= tick/5 {
		acted, err = r.act(in, plan)
	}
	if err != nil {
		r.failedAt = r.n.w.now
		r.complain("", err)
	}
	if acted {
		if in, ok = r.observe(); ok {
			plan = resource.Decide(in)
			r.remember(in, plan)
		}
	}
	r.publish(in)
	if acted && err == nil {
		r.wake()
	}
}

// complain logs an error unless it was the last one already.
func (r *replica) complain(what string, err error) {
	if text := what + err.Error(); text != r.said {
		r.said = text
		r.n.w.logf("%s/%s: %s%v", r.n.id, r.res.id, what, err)
	}
}

// ticking keeps the rounds going.
func (n *node) ticking() {
	for _, r := range n.reps {
		if r != nil {
			r.wake()
		}
	}
	n.after(tick, n.ticking)
}

func (r *replica) observe() (resource.Input, bool) {
	n := r.n
	e := n.meta.find(r.res.id)
	if e == nil || !e.members[n.id] {
		return resource.Input{}, false
	}
	in := resource.Input{Self: n.id, Designated: e.designated, Switches: e.switchesOf(n.id), Former: e.formerOf(n.id)}
	settled := true
	for _, p := range n.members(e) {
		if p.Node != n.id {
			in.Peers = append(in.Peers, p)
			settled = settled && p.Alive
		}
	}
	in.Settled = settled || n.w.now-n.started > primaryWait
	in.Local = r.local()
	return in, true
}

// primaryWait is how long a restarted node listens for its peers.
const primaryWait = 8 * time.Second

func (r *replica) local() resource.Local {
	l := resource.Local{Missing: r.missing, OpenErr: r.openErr}
	if r.vol == nil {
		return l
	}
	l.Open = true
	l.DiskSize = r.disk.Size()
	l.Status = r.vol.Status()
	l.Backlog = int64(l.Path.End-l.Applied.LSN) > r.res.shape.writeback
	if r.shown {
		l.Device = "dev"
		l.Users = r.res.app.usersAt(r.n)
	}
	l.FetchFrom, l.FetchErr, l.PrimaryEnd = r.fetch.from(), r.fetch.err, r.fetch.primaryEnd
	l.Orphan, l.Lacking = r.fetch.orphan(), r.fetch.lacking
	l.SyncErr = r.mover.err
	return l
}

func (r *replica) remember(in resource.Input, plan resource.Plan) {
	if r.n.w.canary("silent-wait") {
		plan.WaitsFor = ""
	}
	old := r.plan
	r.in, r.plan = in, plan
	if plan.WaitsFor != r.waits {
		r.waits, r.waitsAt = plan.WaitsFor, r.n.w.now
	}
	if plan.Split != nil && old.Split == nil {
		r.n.w.stats.Splits++
		r.n.w.logf("%s/%s: split brain with %s from LSN %d on", r.n.id, r.res.id, plan.Split.With, plan.Split.Fork)
	}
	r.fetch.retarget()
	r.mover.kick()
}

// act does the next thing that the plan asks for, as package node's runner does.
func (r *replica) act(in resource.Input, p resource.Plan) (bool, error) {
	w := r.n.w
	if p.Split != nil && !in.Local.Writable && w.canary("drop-data") {
		r.dropSide(p.Split)
	}
	action := resource.Next(&in.Local, &p)
	switch action {
	case resource.ActStop:
		return r.withdraw((*volume.Volume).Suspend)
	case resource.ActDetach:
		return true, r.detach(false)
	case resource.ActAttach:
		return r.attach()
	case resource.ActJoin:
		r.startJoin(p.Join)
		return false, nil
	case resource.ActHandOver:
		return r.withdraw(func(v *volume.Volume) error { return v.Deactivate(p.To) })
	case resource.ActPass:
		w.logf("%s/%s: passes the token to %s", r.n.id, r.res.id, p.To)
		return true, r.vol.PassToken(in.Self, p.To, r.timeline())
	case resource.ActActivate:
		return true, r.activate(false)
	case resource.ActHeal:
		w.logf("%s/%s: heals its log at LSN %d: %v", r.n.id, r.res.id, in.Local.Defect.At, in.Local.Defect)
		w.stats.Heals++
		r.pauseSessions()
		r.n.must[r.res.index].cut()
		r.last = history.Path{}
		return true, r.vol.Heal()
	case resource.ActStartOver:
		w.logf("%s/%s: starts its sync over: the log it needs is gone", r.n.id, r.res.id)
		return true, r.reset()
	case resource.ActDropTail:
		w.logf("%s/%s: drops its tail of %d bytes behind LSN %d", r.n.id, r.res.id, in.Local.Path.End-p.DropTail.LSN, p.DropTail.LSN)
		w.stats.DropTails++
		r.pauseSessions()
		r.n.must[r.res.index].cut() // whether there were data is checked when the event is over
		return true, r.dropTail(*p.DropTail)
	case resource.ActShow:
		r.show()
		return true, nil
	}
	return false, nil
}

func (r *replica) timeline() history.Timeline {
	return history.Timeline{ID: history.TimelineID(r.n.w.rng.id.Uint64()>>1 + 1), Stamp: r.n.nextStamp()}
}

func (r *replica) activate(forced bool) error {
	r.n.observeStamp(r.vol.Status().EndStamp)
	t := r.timeline()
	t.Forced = forced || r.n.w.canary("steal-token")
	if err := r.vol.Activate(r.n.id, t); err != nil {
		return err
	}
	r.n.w.logf("%s/%s: is primary on timeline %v from LSN %d on, forced=%v", r.n.id, r.res.id, t.ID, r.vol.Log().End(), forced)
	r.n.w.stats.Handovers++
	r.show()
	return nil
}

func (r *replica) show() { r.shown = true }

// withdraw closes the device, which its users can prevent, and ends the tenure.
func (r *replica) withdraw(end func(*volume.Volume) error) (bool, error) {
	if !r.hide() {
		return false, errors.New("the device is in use")
	}
	if err := end(r.vol); err != nil {
		return false, err
	}
	p := r.vol.Log().Path()
	r.n.w.logf("%s/%s: is no longer primary, the token is at %s", r.n.id, r.res.id, p.Holder())
	return true, nil
}

func (r *replica) hide() bool {
	if !r.shown {
		return true
	}
	if len(r.res.app.usersAt(r.n)) > 0 {
		return false
	}
	r.shown = false
	return true
}

const retryAttach = 2 * time.Second

func (r *replica) attach() (bool, error) {
	if r.openErr != "" && r.n.w.now-r.openedAt < retryAttach {
		return false, nil
	}
	r.openedAt = r.n.w.now
	r.disk = &simDisk{Disk: r.n.openDisk(r.res.slot), r: r}
	v, err := volume.Open(r.config())
	r.missing = errors.Is(err, volume.ErrNoReplica)
	r.openErr = ""
	switch {
	case r.missing:
		return true, r.n.noteFacts(r.res)
	case err != nil:
		r.openErr = err.Error()
		return false, err
	}
	r.opened(v)
	return true, nil
}

// opened takes a volume into use.
func (r *replica) opened(v *volume.Volume) {
	r.vol = v
	r.n.observeStamp(v.Status().EndStamp)
	r.n.w.afterOpen(r)
	r.mover.start(r)
	r.fetch.start(r)
}

// detach closes the volume. final: also when the device is in use.
func (r *replica) detach(final bool) error {
	if !final && !r.hide() {
		return errors.New("the device is in use")
	}
	if r.shown {
		r.shown = false
		r.res.app.deviceLost(r.n)
	}
	r.fetch.stop()
	r.mover.stop()
	r.pauseSessions()
	if r.vol != nil {
		r.n.w.beforeClose(r)
		if err := r.vol.Close(); err != nil {
			r.n.w.logf("%s/%s: error while detaching: %v", r.n.id, r.res.id, err)
		}
	}
	r.vol, r.missing, r.leaving = nil, false, false
	return nil
}

// end tears the replica down: this node is no member any more.
func (r *replica) end() {
	r.n.w.logf("%s/%s: leaves", r.n.id, r.res.id)
	r.noteOpen() // if it fails, the leftovers are noted
	r.join = nil
	r.detach(true)
	r.n.w.forget(r)
	r.res.truth.disown(r.n.id)
}

// removeLeftovers deletes state and log of a former membership.
func (n *node) removeLeftovers(res *simResource) {
	if n.cluster == "" || n.evicted() || n.meta.has(key(res.id, "member", n.id)) {
		return
	}
	n.quiet++
	names, err := n.fs.ReadDir("mars")
	n.quiet--
	if err != nil {
		return
	}
	if slices.Contains(names, res.id) && res.maker != n && n.noteClosed(res) == nil && n.meta.batch() == nil { // durable before it is acted upon
		n.removeAll(dirOf(res))
	}
}

// removeAll removes a file or a directory with all that is in it.
func (n *node) removeAll(name string) {
	names, err := n.fs.ReadDir(name)
	if err == nil {
		for _, x := range names {
			n.removeAll(name + "/" + x)
		}
	}
	n.fs.Remove(name) // what cannot be removed is tried again
}

// reset throws the replica's log and state away, so that it is filled anew.
func (r *replica) reset() error {
	if err := r.noteOpen(); err != nil {
		return err
	}
	if err := r.detach(false); err != nil {
		return err
	}
	cfg := r.config()
	r.n.w.stats.Resets++
	r.n.w.forget(r)
	r.res.truth.disown(r.n.id)
	if err := volume.Wipe(cfg); err != nil {
		return err
	}
	_, err := r.attach()
	return err
}

// pauseSessions ends all sessions through which others read this replica.
func (r *replica) pauseSessions() {
	for _, s := range r.serving {
		s.end.close()
		s.over()
	}
	for _, e := range r.copying {
		e.close()
	}
	r.serving, r.copying = nil, nil
}

func (r *replica) dropTail(pos history.Position) error { return r.vol.DropTail(pos) }

// dropSide is the bug behind a canary: one side of a split brain gives way although it has data.
func (r *replica) dropSide(s *resource.Split) {
	p := r.vol.Log().Path()
	if t, ok := p.At(s.Fork); ok {
		if pos, ok := r.res.truth.chapters[t.ID].positionAt(s.Fork); ok {
			r.vol.Log().TruncateTo(pos)
		}
	}
}

const publishEvery = 250 * time.Millisecond

// publish tells the others how the replica is.
func (r *replica) publish(in resource.Input) {
	f := r.makeFacts(in)
	before := r.facts
	r.facts = f
	urgent := f.Writable != before.Writable || f.Attached != before.Attached || f.Consistent != before.Consistent || f.Device != before.Device ||
		len(f.Path.Timelines) != len(before.Path.Timelines) || f.Path.Successor != before.Path.Successor || f.Switches != before.Switches
	if !urgent && r.n.w.now-r.pubAt < publishEvery {
		return
	}
	b, k := encode(f), key(r.res.id, "facts", r.n.id)
	if now, ok := r.n.meta.tree.Get(k); ok && bytes.Equal(now.Value, b) {
		return
	}
	r.n.meta.putVolatile(k, b)
	r.pubAt = r.n.w.now
}

func (r *replica) makeFacts(in resource.Input) resource.Facts {
	l := &in.Local
	f := resource.Facts{Attached: l.Open, Switches: in.Switches, DiskSize: l.DiskSize, Device: l.Device, Users: l.Users, Disk: "disk"}
	if !l.Open {
		before := r.facts
		if len(before.Path.Timelines) == 0 && !l.Missing {
			if e := r.n.meta.find(r.res.id); e != nil && e.facts[r.n.id] != nil {
				before = *e.facts[r.n.id]
			}
		}
		f.Path, f.Durable, f.Applied, f.Size, f.Sync = before.Path, before.Durable, before.Applied, before.Size, before.Sync
		return f
	}
	f.Path, f.Durable, f.Applied, f.Stamp, f.EndStamp = l.Path, l.Durable, l.Applied.LSN, l.AppliedStamp, l.EndStamp
	f.Size, f.Consistent, f.Writable, f.Sync = l.Size, l.Consistent && l.Defect == nil, l.Writable, l.Sync
	return f
}
