package e2e

import (
	"testing"

	"mars/internal/control"
	"mars/tests/stamp"
)

// TestKillPrimary: kill -9 of the primary under load, again and again. Whatever was acknowledged is there after each restart, the role comes
// back by itself, and the secondary follows.
func TestKillPrimary(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	j := &stamp.Journal{}
	for range 3 {
		application := a.starts(res, j)
		application.runs(250)
		a.kill()
		application.dies()
		must := j.Now()
		a.start()
		a.awaitSelf(res, "alpha is primary again", isPrimary)
		a.checkDevice(res, j, must)
	}
	a.writeOnce(res, j)
	settle(res, a, b)
	b.checkDisk(res, j, j.Now())
	checkEqual(t, res, a, b)
}

// TestKillSecondary: kill -9 of the secondary in the middle of fetch and replay does not hurt the application, and what its disk shows once it
// claims to be consistent is a state the primary had: also when nobody helps it.
func TestKillSecondary(t *testing.T) {
	t.Parallel()
	w, a, b := pair(t)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	for range 3 {
		application.runs(250)
		b.kill()
		w.net.Isolate(b.name)
		application.runs(100)
		b.start()
		b.awaitSelf(res, "beta is consistent from what it has", func(m control.Member) bool { return m.Consistent && m.AppliedLSN == m.EndLSN })
		b.checkDisk(res, j, 0)
		w.net.Rejoin(b.name)
	}
	must := application.stops()
	settle(res, a, b)
	b.checkDisk(res, j, must)
	checkEqual(t, res, a, b)
}

// TestKillBoth: both at once, restarted in either order.
func TestKillBoth(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	j := &stamp.Journal{}
	for _, order := range [][]*node{{a, b}, {b, a}} {
		application := a.starts(res, j)
		application.runs(250)
		a.kill()
		b.kill()
		application.dies()
		must := j.Now()
		order[0].start()
		order[1].start()
		a.awaitSelf(res, "alpha is primary again", isPrimary)
		a.checkDevice(res, j, must)
		settle(res, a, b)
		checkEqual(t, res, a, b)
	}
}

// TestPrimaryAloneComesBack: a primary whose peers are dead takes its role again, after it has listened for them in vain.
func TestPrimaryAloneComesBack(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	j := &stamp.Journal{}
	a.writeOnce(res, j)
	b.kill()
	a.kill()
	a.start()
	a.awaitSelf(res, "alpha is primary without beta", isPrimary)
	a.checkDevice(res, j, j.Now())
	a.writeOnce(res, j)
	b.start()
	settle(res, a, b)
	checkEqual(t, res, a, b)
}

// TestStopUnderLoad: SIGTERM of both while the application writes: nothing acknowledged is lost, both stop with status 0, and the disk alone has
// everything.
func TestStopUnderLoad(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	application.runs(250)
	a.stop()
	application.dies()
	must := j.Now()
	a.checkDisk(res, j, must)
	b.stop()
	b.start()
	a.start()
	a.awaitSelf(res, "alpha is primary again", isPrimary)
	a.checkDevice(res, j, must)
	settle(res, a, b)
	checkEqual(t, res, a, b)
}

// TestFrozenSecondary: a secondary that hangs (SIGSTOP) is not waited for, and catches up when it goes on.
func TestFrozenSecondary(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	application.runs(100)
	b.freeze()
	application.runs(500)
	b.thaw()
	must := application.stops()
	b.awaitSelf(res, "beta follows again", func(m control.Member) bool { return m.ReplState == control.ReplReplaying })
	settle(res, a, b)
	b.checkDisk(res, j, must)
}
