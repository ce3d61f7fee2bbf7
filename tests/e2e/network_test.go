package e2e

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"mars/internal/control"
	"mars/tests/stamp"
)

// TestCutDuringFetch: the network breaks again and again in the middle of whatever is being sent, in both directions, and once for longer. The
// application never notices, and in the end the secondary has everything.
func TestCutDuringFetch(t *testing.T) {
	t.Parallel()
	w, a, b := pair(t)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	for range 10 {
		w.net.Link(a.name, b.name).BreakAfter(rand.Int64N(300 << 10))
		w.net.Link(b.name, a.name).BreakAfter(rand.Int64N(3 << 10))
		application.runs(50)
	}
	w.net.Cut(a.name, b.name)
	application.runs(200)
	a.awaitSight(b, false)
	w.net.Heal(a.name, b.name)
	must := application.stops()
	settle(res, a, b)
	b.checkDisk(res, j, must)
	checkEqual(t, res, a, b)
}

// TestCutDuringSync: the first sync of a newcomer breaks again and again while the application writes. It goes on where it was, and the
// newcomer is consistent only when it is complete.
func TestCutDuringSync(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	j := &stamp.Journal{}
	a.creates(res)
	application := a.starts(res, j)
	application.runs(800)
	link := w.net.Link(a.name, b.name)
	link.Limit(8 * mib) // else it is over before anything can happen to it
	b.joinsResource(res)
	for range 5 {
		link.BreakAfter(rand.Int64N(mib))
		application.runs(50)
		if m := b.self(res); m.Consistent && m.DiskState == control.DiskInconsistent {
			t.Errorf("claims to be consistent while it is not: %+v", m)
		}
	}
	b.kill()
	b.start()
	link.Heal()
	b.do("wait-resource", res, "uptodate")
	must := application.stops()
	settle(res, a, b)
	b.checkDisk(res, j, must)
	checkEqual(t, res, a, b)
}

// TestCutDuringHandover: the network fails at some point of a handover. Whatever the command says is true, at no time are there two primaries,
// and once the network is back a handover works. Nothing is lost.
func TestCutDuringHandover(t *testing.T) {
	t.Parallel()
	w, a, b := pair(t)
	j := &stamp.Journal{}
	from, to := a, b
	for range 6 {
		from.writeOnce(res, j)
		w.net.Link(from.name, to.name).BreakAfter(rand.Int64N(6 << 10))
		w.net.Link(to.name, from.name).BreakAfter(rand.Int64N(3 << 10))
		answer := to.admIn(10*shortly, "primary", res)
		w.net.Heal(a.name, b.name)
		if answer.code == 0 && !isPrimary(to.self(res)) {
			t.Errorf("%s was told to be primary and is not", to.name)
		}
		w.awaitOnePrimary(res)
		to.awaitSight(from, true)
		from.awaitSight(to, true)
		to.do("primary", res)
		to.checkDevice(res, j, j.Now())
		from, to = to, from
	}
	settle(res, from, to)
	checkEqual(t, res, a, b)
}

// awaitOnePrimary waits until all nodes agree on who is designated and it is the only one with a device; it fails when there are ever two.
func (w *world) awaitOnePrimary(res string) *node {
	w.t.Helper()
	var found *node
	until(w.t, "exactly one node is primary, as designated", func() bool {
		found = nil
		active := 0
		agreed := map[string]bool{}
		for _, x := range w.nodes {
			st, err := x.tryStatus()
			if err != nil {
				return false
			}
			r, _ := find(st, res)
			agreed[r.DesignatedPrimary] = true
			if m := member(st, res, x.name); m.Device != "" {
				active++
				if r.DesignatedPrimary == x.name {
					found = x
				}
			}
		}
		return active == 1 && len(agreed) == 1 && found != nil
	})
	return found
}

// TestOneWayStall: the primary's packets vanish without a sign while the others' arrive. The application goes on; the secondary finds out that
// it hears nothing, and catches up afterwards.
func TestOneWayStall(t *testing.T) {
	t.Parallel()
	w, a, b := pair(t)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	application.runs(50)
	w.net.Link(a.name, b.name).Stall()
	b.awaitSight(a, false)
	application.runs(50)
	w.net.Heal(a.name, b.name)
	b.awaitSight(a, true)
	must := application.stops()
	settle(res, a, b)
	b.checkDisk(res, j, must)
}

// TestSlowLine: a line that is slower than the application makes the secondary old, not the application slow; and old, it is consistent.
func TestSlowLine(t *testing.T) {
	t.Parallel()
	w, a, b := pair(t)
	j := &stamp.Journal{}
	w.net.Link(a.name, b.name).Limit(64 << 10)
	application := a.starts(res, j)
	application.runs(500)
	m := b.awaitSelf(res, "the lag is shown in bytes and seconds", func(m control.Member) bool { return m.LagBytes > mib && m.LagSeconds > 0 })
	if !m.Consistent {
		t.Errorf("old, but not consistent: %+v", m)
	}
	must := application.stops()
	b.kill()
	w.net.Isolate(b.name)
	b.start()
	b.awaitSelf(res, "beta is consistent from what it has", func(m control.Member) bool { return m.Consistent && m.AppliedLSN == m.EndLSN })
	b.checkDisk(res, j, 0)
	w.net.Rejoin(b.name)
	settle(res, a, b)
	b.checkDisk(res, j, must)
}

// segments counts the files of the log, of 1 MiB each; those that are kept to be used again do not count.
func (x *node) segments(t *testing.T) int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(x.dir, "resource", "*", "log", "seg-*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// TestLongAbsence: while a secondary is away its log is kept, however long that is; when it has caught up the log is deleted, by itself.
func TestLongAbsence(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t, "--segment-size", "1MiB")
	j := &stamp.Journal{}
	b.stop()
	application := a.starts(res, j)
	const away = 8 * mib
	grown := func(st control.Status) bool { return st.LogStore.UsedBytes > away }
	a.await("much log is kept for beta", grown)
	must := application.stops()
	a.stop()
	a.start()
	a.await("much log is still kept", grown)
	a.awaitSelf(res, "alpha is primary again", isPrimary)
	b.start()
	settle(res, a, b)
	b.checkDisk(res, j, must)
	for _, x := range []*node{a, b} {
		until(t, "old log is deleted on "+x.name, func() bool { return x.segments(t) < away/2/mib })
	}
}
