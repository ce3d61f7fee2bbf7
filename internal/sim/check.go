package sim

import (
	"time"

	"mars/internal/block"
	"mars/internal/history"
	"mars/internal/vfs/crashfs"
	"mars/internal/volume"
)

// check looks at what an event has done to a node.
func (w *World) check(n *node) {
	for i, r := range n.reps {
		if r == nil || r.vol == nil {
			continue
		}
		w.learn(r)
		w.checkCut(r)
		w.promiseAll(r, &n.must[i])
	}
	if w.events%4 == 0 {
		w.checkToken()
	}
	if chance(w.rng.check, 150) {
		r := n.reps[w.rng.check.IntN(len(n.reps))]
		if r != nil && r.vol != nil {
			w.checkRecovery(r, chance(w.rng.check, 3))
		}
	}
}

// promiseAll: whatever is in the log survives the process, and whatever is said to be durable survives the machine.
func (w *World) promiseAll(r *replica, p *promise) {
	l := r.vol.Log()
	if l.Err() != nil || r.n.damaged[r.res.index] {
		return
	}
	end := l.EndPosition()
	p.acked(end)
	if l.Durable() == end.LSN {
		p.power = end
	}
}

// checkCut (I6): the log never gets shorter than the data in it, but by an operator's word, by healing damage, or by a crash.
func (w *World) checkCut(r *replica) {
	now := r.vol.Log().Path()
	last := r.last
	r.last = now
	if len(last.Timelines) == 0 || now.Contains(last.Position()) || r.n.damaged[r.res.index] {
		return
	}
	rel := history.Compare(&last, &now)
	if rel.Unrelated {
		w.failf("I6", "%s/%s: the log was replaced by an unrelated one", r.n.id, r.res.id)
	}
	if r.res.truth.dataBehind(&last, rel.Fork.LSN) {
		w.failf("I6", "%s/%s: the log was cut from LSN %d to %d, and there were data", r.n.id, r.res.id, last.End, rel.Fork.LSN)
	}
	r.n.must[r.res.index].cut()
}

// checkNewTimeline (I5): who opens a timeline has the token, or an operator's --force.
func (w *World) checkNewTimeline(r *replica, tl history.Timeline) {
	t := r.res.truth
	if tl.Forced {
		if r.res.forced[r.n.index] == 0 {
			w.failf("I5", "%s/%s opens a timeline by force that no operator has asked for", r.n.id, r.res.id)
		}
		r.res.forced[r.n.index]--
		return
	}
	p := t.chapters[tl.Parent]
	if p == nil {
		if tl.Parent != 0 || len(t.chapters) > 0 {
			w.failf("I5", "%s/%s opens timeline %v behind the unknown timeline %v", r.n.id, r.res.id, tl.ID, tl.Parent)
		}
		return
	}
	if holder := tl.Passed; holder != tl.Origin && (holder != "" || p.t.Origin != tl.Origin) {
		w.failf("I5", "%s/%s opens a timeline, but the token was passed from %s to %q", r.n.id, r.res.id, p.t.Origin, holder)
	}
	for i := range p.recs {
		if x := &p.recs[i]; x.lsn >= tl.Switch && x.modifies() && !p.damaged {
			w.failf("I5", "%s/%s forks timeline %v of %s at LSN %d without force; that goes on to %d with data", r.n.id, r.res.id, p.t.ID, p.t.Origin,
				tl.Switch, p.end())
		}
	}
	w.checkSiblings(r, p, tl)
}

func (w *World) checkSiblings(r *replica, p *chapter, tl history.Timeline) {
	for _, c := range r.res.truth.order {
		if c.parent != p || c.t.Forced || c.damaged {
			continue
		}
		for i := range c.recs {
			if c.recs[i].modifies() {
				w.failf("I5", "%s/%s opens a second timeline behind %v at LSN %d without force; %s has opened %v there and written", r.n.id, r.res.id,
					p.t.ID, tl.Switch, c.t.Origin, c.t.ID)
			}
		}
	}
}

// checkToken (I5): two nodes that let writers in are on two sides of a --force.
func (w *World) checkToken() {
	for i, res := range w.resources {
		var writers []*replica
		for _, n := range w.nodes {
			if r := n.reps[i]; n.up && r != nil && r.vol != nil && r.vol.Status().Writable {
				writers = append(writers, r)
			}
		}
		for k, a := range writers {
			for _, b := range writers[k+1:] {
				pa, pb := a.vol.Log().Path(), b.vol.Log().Path()
				if !forcedApart(&pa, &pb) && !a.n.damaged[i] && !b.n.damaged[i] {
					w.failf("I5", "%s: %s and %s are both primary, and nobody has forced that", res.id, a.n.id, b.n.id)
				}
			}
		}
	}
}

// forcedApart reports whether a timeline behind the fork of the paths was forced.
func forcedApart(a, b *history.Path) bool {
	common := 0
	for common < min(len(a.Timelines), len(b.Timelines)) && a.Timelines[common].ID == b.Timelines[common].ID {
		common++
	}
	for _, p := range []*history.Path{a, b} {
		for _, t := range p.Timelines[common:] {
			if t.Forced {
				return true
			}
		}
	}
	return false
}

// clone returns what the replica would be after a death of its node right now.
func (w *World) clone(r *replica, power bool) volume.Config {
	n := r.n
	w.stats.Clones++
	fs, disk := n.fs.Clone(), n.disks[r.res.slot].Clone()
	if power {
		switch w.rng.check.IntN(3) {
		case 0:
			fs, disk = fs.Crash(w.rng.check), disk.Crash(w.rng.check)
		case 1: // the most that I2 forbids: the disk has everything, the log nothing
			fs, disk = fs.CrashLosingAll(), disk.CrashKeepingAll()
		case 2:
			fs, disk = fs.CrashLosingAll(), disk.CrashLosingAll()
		}
	}
	fs.SetQuota(1 << 40)
	c := r.config()
	c.FS, c.Disk, c.Reserve, c.Pause = fs, disk, nil, nil
	c.Stamp = func() int64 { return 0 }
	return c
}

// checkRecovery (I1, I2, I4): were the node to die now, what would come back?
func (w *World) checkRecovery(r *replica, kill bool) {
	damaged := r.n.damaged[r.res.index]
	before := r.vol.Status()
	c := w.clone(r, !kill)
	v, err := volume.Open(c)
	if err != nil {
		if !damaged {
			w.failf("I1", "%s/%s: could not be opened after a crash now (kill=%v): %v", r.n.id, r.res.id, kill, err)
		}
		return
	}
	defer v.Close()
	st := v.Status()
	if before.Consistent && before.Defect == nil && before.LogErr == nil && !damaged && (!st.Consistent || st.Defect != nil) {
		w.failf("I1", "%s/%s: is consistent, but not after a crash now (kill=%v): defect %v, applied %v, end %d", r.n.id, r.res.id, kill, st.Defect,
			st.Applied, st.Path.End)
	}
	if !damaged {
		w.checkPromise(r, &st, kill)
	}
	w.checkImage(r, v)
}

// checkAhead (I2): what is written to the disk is durable in the log here: if the power were cut now, and by luck the disk had got everything,
// the log would still tell how to become consistent. During a copy the disk is inconsistent anyway.
func (w *World) checkAhead(r *replica) {
	st := r.vol.Status()
	if !st.Consistent || st.Defect != nil || st.LogErr != nil || r.n.damaged[r.res.index] {
		return
	}
	fs := r.n.fs.Clone().CrashLosingAll()
	fs.SetQuota(1 << 40)
	c := r.config()
	c.FS, c.Disk, c.Reserve, c.Pause = fs, r.n.disks[r.res.slot].Clone().CrashKeepingAll(), nil, nil
	c.Stamp = func() int64 { return 0 }
	w.stats.Clones++
	v, err := volume.Open(c)
	if err != nil {
		w.failf("I2", "%s/%s: the disk is written, and the log could not be opened after a power cut now: %v", r.n.id, r.res.id, err)
		return
	}
	defer v.Close()
	if now := v.Status(); !now.Consistent {
		w.failf("I2", "%s/%s: the disk is written, and after a power cut now the log would end at LSN %d, before what the disk may have", r.n.id,
			r.res.id, now.Path.End)
	}
}

// checkPromise (I4): what must be there is there.
func (w *World) checkPromise(r *replica, st *volume.Status, kill bool) {
	p := r.n.must[r.res.index]
	pos, what := p.power, "durable"
	if kill {
		pos, what = p.kill, "written"
	}
	if p.known && pos.LSN > 0 && st.Defect == nil && !st.Path.Contains(pos) {
		w.failf("I4", "%s/%s: %v was %s and is lost after a crash: the log ends at %v", r.n.id, r.res.id, pos, what, st.Path.Position())
	}
}

// checkImage (I1): a replica that claims to be consistent is what the volume was at some position, once it has replayed what it has.
func (w *World) checkImage(r *replica, v *volume.Volume) {
	for range 100_000 {
		st := v.Status()
		if !st.Consistent || st.Defect != nil {
			return
		}
		worked, err := v.ApplyStep()
		if err != nil {
			if !r.n.damaged[r.res.index] {
				w.failf("I1", "%s/%s: cannot replay after a crash: %v", r.n.id, r.res.id, err)
			}
			return
		}
		if !worked {
			break
		}
	}
	st := v.Status()
	if !st.Consistent || st.Defect != nil {
		return
	}
	w.compare(r, v, st.Applied)
}

// compare compares the content with what it must be at a position.
func (w *World) compare(r *replica, dev interface{ ReadAt([]byte, int64) error }, at history.Position) {
	want, ok := r.res.truth.imageAt(at)
	if !ok {
		if !r.n.damaged[r.res.index] && r.vol.Log().Err() == nil {
			w.failf("I1", "%s/%s: is at %v, where nobody has ever been", r.n.id, r.res.id, at)
		}
		return
	}
	got, err := readImage(dev, uint32(r.res.index), int64(len(want))*block.SectorSize)
	if err != nil {
		w.failf("I1", "%s/%s: cannot read: %v", r.n.id, r.res.id, err)
		return
	}
	if i := got.differs(want); i >= 0 {
		w.failf("I1", "%s/%s: claims to be at %v, but sector %d is write %d and not %d", r.n.id, r.res.id, at, i, int64(got[i]), int64(want[i]))
	}
}

// afterShip (I3): a power cut at the sender right after it has sent loses nothing that it has sent.
func (w *World) afterShip(s *logSession) {
	r := s.r
	w.learn(r)
	if w.swarm["crash-after-send"] && w.phase == 1 && chance(w.rng.fault, 300) {
		w.logf("fault: %s loses power right after it has sent log", r.n.id)
		r.n.strike(true)
		return
	}
	if chance(w.rng.check, 12) {
		w.checkSent(r, s.srv.Next())
	}
}

func (w *World) afterSyncAnswer(n *node, res *simResource) {
	r := n.reps[res.index]
	if r != nil && r.vol != nil && !n.dying && chance(w.rng.check, 6) {
		w.checkSent(r, r.vol.Log().Durable())
	}
}

func (w *World) checkSent(r *replica, sent history.LSN) {
	if r.n.damaged[r.res.index] || r.vol.Log().Err() != nil {
		return
	}
	c := w.clone(r, false)
	c.FS = c.FS.(*crashfs.FS).CrashLosingAll()
	v, err := volume.Open(c)
	if err != nil {
		w.failf("I3", "%s/%s: could not be opened after a crash right after it has sent log: %v", r.n.id, r.res.id, err)
		return
	}
	defer v.Close()
	if end := v.Log().End(); end < sent {
		w.failf("I3", "%s/%s has sent log up to LSN %d, of which only %d would survive a power cut", r.n.id, r.res.id, sent, end)
	}
}

// beforeDeath notes how a node dies.
func (w *World) beforeDeath(n *node) {
	for i := range n.must {
		death := 1
		if n.power {
			death = 2
		}
		n.must[i].death = max(n.must[i].death, death)
	}
}

// beforeClose: what is closed in order must be there as after a kill.
func (w *World) beforeClose(r *replica) {
	w.learn(r)
	p := &r.n.must[r.res.index]
	p.death = max(p.death, 1)
}

// afterOpen compares what came back with what must have.
func (w *World) afterOpen(r *replica) {
	n, i := r.n, r.res.index
	w.stats.Recoveries++
	st := r.vol.Status()
	r.last = st.Path
	p := &n.must[i]
	if p.death != 0 && !n.damaged[i] {
		w.checkPromise(r, &st, p.death == 1)
	}
	w.settleLoss(r, &st)
	*p = promise{}
	w.learn(r)
}

// settleLoss: what the origin of a timeline has lost nobody has, because only durable bytes ever left it. What the medium has refused to return
// once may be there the next time.
func (w *World) settleLoss(r *replica, st *volume.Status) {
	if st.Defect != nil && !r.n.damaged[r.res.index] {
		return
	}
	for _, c := range r.res.truth.order {
		if c.t.Origin != r.n.id {
			continue
		}
		end := c.t.Switch
		for i, tl := range st.Path.Timelines {
			if tl.ID != c.t.ID {
				continue
			}
			end = st.Path.End
			if i+1 < len(st.Path.Timelines) {
				end = st.Path.Timelines[i+1].Switch
			}
		}
		if keep := max(end, c.durable); c.end() > keep {
			c.lose(keep)
		}
	}
}

// forget drops what is expected of a replica that is thrown away.
func (w *World) forget(r *replica) {
	r.n.must[r.res.index].cut()
}

// checkDeleted (I9): no log is deleted that a member still needs and nobody else has.
func (w *World) checkDeleted(by *replica, first history.LSN, tight bool) {
	if tight || w.swarm["log-full"] {
		return // documented: secondaries give up what only others may need
	}
	e := by.n.meta.find(by.res.id)
	for _, n := range w.nodes {
		r := n.reps[by.res.index]
		if n == by.n || !n.up || r == nil || r.vol == nil || e == nil || !e.members[n.id] || n.damaged[by.res.index] {
			continue
		}
		p, mine := r.vol.Log().Path(), by.vol.Log().Path()
		if rel := history.Compare(&p, &mine); rel.Unrelated || rel.TailA > 0 || p.End >= first {
			continue
		}
		if !w.anybodyHas(by.res, n, p.Position()) {
			w.failf("I9", "%s/%s deletes log below LSN %d; %s is at %d and nobody has it now", by.n.id, by.res.id, first, n.id, p.End)
		}
	}
}

func (w *World) anybodyHas(res *simResource, but *node, pos history.Position) bool {
	for _, n := range w.nodes {
		r := n.reps[res.index]
		if n == but {
			continue
		}
		if !n.up || r == nil || r.vol == nil {
			if e := but.meta.find(res.id); e != nil && e.members[n.id] {
				return true // it may
			}
			continue
		}
		if p := r.vol.Log().Path(); p.Contains(pos) && r.vol.Log().First() <= pos.LSN && p.End > pos.LSN {
			return true
		}
	}
	return false
}

// watch looks once a second at what needs no event to be wrong.
func (w *World) watch() {
	w.after(time.Second, w.watch)
	for _, n := range w.nodes {
		if !n.up {
			continue
		}
		if used, most := n.logUsed(), w.logLimit+int64(len(w.resources))*w.biggestSegment(); used > most {
			w.failf("I9", "%s: logs take %d bytes, the limit is %d", n.id, used, w.logLimit)
		}
		w.checkBounds(n)
		for _, r := range n.reps {
			if r != nil {
				w.checkWaits(r)
			}
		}
	}
}

// checkBounds (I9): what a node keeps in memory is bounded, whoever is dead, frozen or slow: frames for a peer, connections, metadata, and what of
// the log a primary has in its index.
func (w *World) checkBounds(n *node) {
	open := 0
	for _, e := range n.ends {
		if e.closed {
			continue
		}
		open++
		if most := window + w.biggestFrame(); e.out.bytes > most {
			w.failf("I9", "%s: %d bytes wait on a connection of class %s with %s, the bound is %d", n.id, e.out.bytes, e.class, e.peer.as, most)
		}
	}
	if most := len(w.nodes) * (4 + 6*len(w.resources)); open > most {
		w.failf("I9", "%s: has %d connections, the bound is %d", n.id, open, most)
	}
	ids := len(w.nodes)
	for _, x := range w.nodes {
		ids += x.joins
	}
	if most := (ids + 1) * (8 + 8*len(w.resources)); n.meta.tree.Len() > most {
		w.failf("I9", "%s: has %d entries of metadata, the bound is %d", n.id, n.meta.tree.Len(), most)
	}
	for _, r := range n.reps {
		if r == nil || r.vol == nil || !r.vol.Status().Writable {
			continue
		}
		if used, _ := r.vol.Backlog(); used > r.res.shape.writeback+overshoot {
			w.failf("I9", "%s/%s: %d bytes of log are to be written back, the bound is %d", n.id, r.res.id, used, r.res.shape.writeback)
		}
	}
}

// overshoot is how far a primary may get beyond its bound: the last batch that is let in.
const overshoot = 512 << 10

// biggestFrame bounds what is sent at once: a chunk of log, the digests or the content of a range of the disk, the whole metadata.
func (w *World) biggestFrame() int {
	most := int64(256 << 10)
	for _, r := range w.resources {
		most = max(most, int64(r.shape.chunk)+64<<10, 2*r.diskSize)
	}
	return int(most)
}

func (w *World) biggestSegment() int64 {
	var most int64
	for _, r := range w.resources {
		most = max(most, r.shape.segment)
	}
	return most + 256<<10
}

// silence is how long something may go on without a name.
const silence = 40 * time.Second

// checkWaits (I11): who is not what is wished says why.
func (w *World) checkWaits(r *replica) {
	in, p := &r.in, &r.plan
	l := &in.Local
	var unfulfilled string
	switch {
	case in.Self == "":
	case in.Designated == in.Self && !l.Writable:
		unfulfilled = "not primary"
	case in.Designated != in.Self && l.Writable:
		unfulfilled = "still primary"
	case !l.Open && in.Switches.Attach:
		unfulfilled = "not attached"
	case l.Sync != nil && in.Switches.Sync && in.Switches.Fetch && in.Switches.Replay:
		unfulfilled = "not consistent"
	}
	progress := [3]int64{int64(l.Path.End), int64(l.Applied.LSN), int64(len(l.Path.Timelines))}
	if l.Sync != nil {
		progress[2] += l.Sync.Done
	}
	named := p.WaitsFor != "" || l.OpenErr != "" || l.FetchErr != "" || l.SyncErr != "" || l.Orphan || l.Defect != nil || l.ApplyErr != nil ||
		l.LogErr != nil || p.Split != nil || r.join != nil || w.now-r.failedAt < silence || r.n.slow > 0
	if unfulfilled == "" || named || progress != r.progress {
		r.progress, r.quietAt = progress, w.now
		return
	}
	if w.now-r.quietAt > silence {
		w.failf("I11", "%s/%s is %s since %v and does not say why: end %d, applied %d, sync %+v, %+v", r.n.id, r.res.id, unfulfilled,
			r.quietAt, l.Path.End, l.Applied.LSN, l.Sync, *p)
	}
}
