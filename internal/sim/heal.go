package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"mars/internal/history"
	"mars/internal/lamport"
	"mars/internal/meta"
	"mars/internal/resource"
)

// Budgets of the second phase in simulated time.
const (
	aloneFor  = 120 * time.Second
	helpedFor = 300 * time.Second
)

// heal repairs everything but the data, and demands that the cluster converges: by itself if nobody has forced or thrown away anything and
// nothing was damaged, else with the word of an operator.
func (w *World) heal() {
	w.repair()
	if w.converge(aloneFor) {
		return
	}
	if why := w.needsHelp(); why == "" {
		w.failf("I8", "no convergence within %v, and nothing that needs an operator: %s", aloneFor, w.state())
	}
	w.phase = 3
	w.logf("operators help")
	if w.hopeless() {
		w.logf("the only copy is damaged: nobody can help")
		return
	}
	end := w.now + helpedFor
	for w.now < end {
		w.help()
		if w.converge(10 * time.Second) {
			return
		}
	}
	w.failf("I8", "no convergence within %v although operators helped: %s", helpedFor, w.state())
}

func (w *World) repair() {
	w.phase = 2
	w.logLimit *= 8 // orphaning the slowest member, and emergency mode, are not built yet: a full log store needs more space
	w.logf("everything is repaired")
	for _, n := range w.nodes {
		n.opsTo, n.slow = -1, 0
		w.setClock(n)
		n.fs.SetQuota(1 << 40)
		n.fs.ClearFaults()
		for _, d := range n.disks {
			d.ClearFaults()
		}
		for _, o := range w.nodes {
			l := w.net.line(n, o)
			l.repair(w)
			w.net.setCut(l, false)
		}
		for _, res := range w.resources {
			res.app.open[n.index] = false
		}
	}
	for _, n := range w.nodes {
		if n.up && n.mustReopen() {
			w.strike(n, false)
		}
		n.restart()
		n.armDeath()
	}
	w.after(2*time.Second, w.switchOn)
	w.after(30*time.Second, w.switchOn)
}

// mustReopen: a log or a disk whose sync has failed stays so until it is opened again, and so does a log that could not be read.
func (n *node) mustReopen() bool {
	if slices.Contains(n.sick, true) {
		return true
	}
	for _, r := range n.reps {
		if r == nil || r.vol == nil {
			continue
		}
		if st := r.vol.Status(); st.LogErr != nil || st.Defect != nil {
			return true
		}
	}
	return false
}

func (w *World) switchOn() {
	for _, res := range w.resources {
		for _, n := range w.nodes {
			if e := n.meta.find(res.id); n.up && e != nil && e.members[n.id] && e.switchesOf(n.id) != resource.AllOn {
				w.issue(n, res, "up")
			}
		}
	}
}

// converge runs for at most d, until all is equal.
func (w *World) converge(d time.Duration) bool {
	end := w.now + d
	for w.now < end {
		w.runUntil(w.now+time.Second, nil)
		if w.converged() == "" {
			w.runUntil(w.now+3*time.Second, nil)
			if w.converged() == "" {
				w.checkFinal()
				return true
			}
		}
	}
	return false
}

// converged returns what is not equal yet; empty when everything is.
func (w *World) converged() string {
	ref := w.ref()
	if ref == nil {
		return ""
	}
	first := ref.meta.tree.Digest()
	for _, n := range w.nodes {
		if !n.up {
			return n.id + " is down"
		}
		if !w.inside(n) {
			continue
		}
		if n.meta.tree.Digest() != first {
			return fmt.Sprintf("%s has other metadata than %s: %s", n.id, ref.id, differences(n.meta.tree, ref.meta.tree))
		}
	}
	for _, res := range w.resources {
		if why := w.unequal(res); why != "" {
			return res.id + ": " + why
		}
	}
	return ""
}

// differences names the keys whose entries differ.
func differences(a, b *meta.Tree) string {
	var out []string
	for _, e := range append(a.Differing(b.Digest()), b.Differing(a.Digest())...) {
		x, _ := a.Get(e.Key)
		y, _ := b.Get(e.Key)
		if d := fmt.Sprintf("%s at %v or %v", e.Key, x.Stamp, y.Stamp); x.Stamp != y.Stamp && !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return strings.Join(out, "; ")
}

func (w *World) unequal(res *simResource) string {
	e := w.ref().meta.find(res.id)
	if e == nil {
		return w.remains(res)
	}
	if res.deleted && !w.unheard() {
		return "was deleted and exists"
	}
	var ref *history.Path
	for _, n := range w.nodes {
		if !e.members[n.id] || !w.inside(n) {
			if w.inside(n) && n.holds(res) {
				return n.id + " is no member and has a log"
			}
			continue
		}
		r := n.reps[res.index]
		if r == nil || r.vol == nil {
			return n.id + " is not attached"
		}
		st := r.vol.Status()
		switch {
		case !st.Consistent || st.Defect != nil || st.LogErr != nil:
			return n.id + " is not consistent"
		case st.Applied.LSN != st.Path.End:
			return n.id + " has not replayed everything"
		case e.designated == n.id && !st.Writable:
			return n.id + " shall be primary and is not"
		case e.designated != n.id && st.Writable:
			return n.id + " is primary and shall not be"
		}
		if ref == nil {
			ref = &st.Path
		}
		if st.Path.Position() != ref.Position() {
			return fmt.Sprintf("%s ends at %v, others at %v", n.id, st.Path.Position(), ref.Position())
		}
	}
	return ""
}

// hasCompany reports whether another member is there.
func (w *World) hasCompany(n *node) bool {
	return slices.ContainsFunc(w.nodes, func(o *node) bool { return o != n && w.inside(o) })
}

// checkFinal compares all images, with each other and with the truth. No wrong clock has left a mark (I8): all clocks are right within hours now.
// Who is in contact with nobody has nobody whom it could hurt, and who could tell it.
func (w *World) checkFinal() {
	for _, n := range w.nodes {
		if late := n.meta.tree.Newest(); w.inside(n) && w.hasCompany(n) && late > n.wall().Add(lamport.MaxAhead).UnixNano() {
			w.failf("I8", "%s: has metadata of %v, and it is %v", n.id, time.Unix(0, late).UTC(), n.wall().UTC())
		}
	}
	for _, res := range w.resources {
		if w.ref() == nil {
			break
		}
		e := w.ref().meta.find(res.id)
		for _, n := range w.nodes {
			if r := n.reps[res.index]; e != nil && e.members[n.id] && w.inside(n) {
				w.compare(r, n.disks[res.slot], r.vol.Status().Applied)
				w.checkRecovery(r, false)
			}
		}
	}
	w.logf("converged")
}

// needsHelp names what only an operator can decide.
func (w *World) needsHelp() string {
	for _, n := range w.nodes {
		for _, r := range n.reps {
			if r == nil {
				continue
			}
			l := &r.in.Local
			switch {
			case w.stats.Forced > 0:
				return "a failover was forced"
			case w.stats.Evicted > 0 || w.unheard():
				return "a node was removed"
			case w.stats.Resets > 0:
				return "a replica was thrown away"
			case n.damaged[r.res.index]:
				return "a log is damaged"
			case l.Orphan && w.gaveUp:
				return "log was given up for want of space"
			}
		}
	}
	return ""
}

// hopeless: of some resource there is no intact replica, because bits have rotted in the only copy of the log, or an operator has removed the only
// member that had one.
func (w *World) hopeless() bool {
	for i, res := range w.resources {
		if e := w.entry(res); e != nil && w.survivor(res, e) == nil {
			for _, n := range w.nodes {
				if n.damaged[i] || w.stats.Evicted > 0 {
					return true
				}
			}
		}
	}
	return false
}

// help does what an operator does who looks at the states.
func (w *World) help() {
	for _, res := range w.resources {
		e := w.entry(res)
		if e == nil {
			continue
		}
		if w.buryGhosts(res, e) {
			continue
		}
		keep := w.survivor(res, e)
		if keep == nil {
			continue
		}
		if e.designated != keep.n.id || !keep.vol.Status().Writable {
			w.issue(keep.n, res, "primary")
			w.runUntil(w.now+25*time.Second, nil)
			if keep.alive() && keep.vol != nil && !keep.vol.Status().Writable {
				w.issue(keep.n, res, "primary --force")
			}
			continue
		}
		w.invalidateOthers(res, e, keep)
	}
}

// survivor chooses the replica whose history shall win.
func (w *World) survivor(res *simResource, e *entry) *replica {
	var best *replica
	rank := func(r *replica) int64 {
		st := r.vol.Status()
		k := int64(st.Path.End)
		if st.Writable {
			k += 1 << 40
		}
		if e.designated == r.n.id {
			k += 1 << 41
		}
		return k
	}
	for _, n := range w.nodes {
		r := n.reps[res.index]
		if r == nil || r.vol == nil || !w.inside(n) {
			continue
		}
		if st := r.vol.Status(); !st.Consistent || st.Defect != nil || st.Sync != nil || st.LogErr != nil {
			continue
		}
		if best == nil || rank(r) > rank(best) {
			best = r
		}
	}
	return best
}

func (w *World) invalidateOthers(res *simResource, e *entry, keep *replica) {
	kp := keep.vol.Log().Path()
	for _, n := range w.nodes {
		r := n.reps[res.index]
		if r == nil || r == keep || r.vol == nil || !w.inside(n) {
			continue
		}
		st := r.vol.Status()
		rel := history.Compare(&st.Path, &kp)
		stuck := st.Sync == nil && (!st.Consistent || st.Defect != nil || r.in.Local.Orphan)
		if rel.Unrelated || rel.TailA > 0 && rel.ModifiedA || stuck || st.Sync != nil && r.in.Local.Orphan || w.phase == 3 && st.ApplyErr != nil {
			w.issue(n, res, "invalidate")
		}
	}
}

// state describes everything for the report.
func (w *World) state() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", w.converged())
	for _, n := range w.nodes {
		for _, g := range n.gossip {
			if g.peer != n {
				fmt.Fprintf(&b, "\n    %s -> %s: alive=%v conn=%v dialing=%v sent=%d of %d heard=%v", n.id, g.peer.id, g.alive(), g.conn != nil, g.dialing,
					g.sent, n.meta.tree.Seq(), g.heard)
			}
		}
	}
	for _, res := range w.resources {
		for _, n := range w.nodes {
			r := n.reps[res.index]
			if r == nil {
				continue
			}
			fmt.Fprintf(&b, "\n    %s/%s: designated %q", n.id, res.id, r.in.Designated)
			if r.vol == nil {
				fmt.Fprintf(&b, " not attached, missing=%v err=%q plan=%+v", r.missing, r.openErr, r.plan)
				continue
			}
			st := r.vol.Status()
			fmt.Fprintf(&b, " end %v applied %d durable %d holder %s consistent=%v writable=%v sync=%+v defect=%v apply=%v log=%v orphan=%v fetch=%q/%q sync-err=%q switches=%+v waits=%q plan=%+v",
				st.Path.Position(), st.Applied.LSN, st.Durable, st.Path.Holder(), st.Consistent, st.Writable, st.Sync, st.Defect, st.ApplyErr, st.LogErr,
				r.in.Local.Orphan, r.fetch.from(), r.fetch.err, r.mover.err, r.in.Switches, r.plan.WaitsFor, r.plan)
		}
	}
	return b.String()
}
