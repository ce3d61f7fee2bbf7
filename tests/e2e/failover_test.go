package e2e

import (
	"strings"
	"testing"

	"mars/internal/control"
	"mars/tests/stamp"
)

// TestFailoverWithoutTail: the primary dies after all of its log was shipped. The other one goes on by force, and when the dead node comes back
// it follows without anybody's help: it has nothing that would get lost.
func TestFailoverWithoutTail(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	application.runs(300)
	must := application.stops()
	b.do("wait-resource", res, "fetch-reached")
	a.kill()
	b.awaitSight(a, false)

	b.refuses([]string{a.name, "unreachable", "--force"}, "primary", res)
	b.do("primary", res, "--force")
	b.checkDevice(res, j, must)
	b.writeOnce(res, j)

	a.start()
	m := a.awaitSelf(res, "alpha follows beta", func(m control.Member) bool { return m.ReplState == control.ReplReplaying })
	if hasMessage(m, "split-brain") {
		t.Errorf("nothing was lost, and yet: %+v", m)
	}
	settle(res, b, a)
	a.checkDisk(res, j, j.Now())
	checkEqual(t, res, a, b)
}

// TestFailoverWithLostTail: the primary dies with writes that nobody has fetched. The failover goes on without them; when the dead node comes
// back, both sides show a split brain and how large it is, and nothing is mixed until the operator decides.
func TestFailoverWithLostTail(t *testing.T) {
	t.Parallel()
	w, a, b := pair(t)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	application.runs(200)
	shipped := application.stops()
	b.do("wait-resource", res, "fetch-reached")
	w.net.Cut(a.name, b.name)
	a.writeOnce(res, j) // the lost tail
	a.kill()
	b.awaitSight(a, false)

	b.do("primary", res, "--force")
	j.Crashed()
	j.Adopt(b.checkDevice(res, j, shipped))
	application = b.starts(res, j)
	application.runs(100)
	w.net.Heal(a.name, b.name)
	a.start()

	for _, x := range []*node{a, b} {
		st := x.await("the split brain is shown", func(st control.Status) bool {
			r, _ := find(st, res)
			return r.SplitBrain != "" && hasMessage(member(st, res, a.name), "split-brain")
		})
		if r, _ := find(st, res); !strings.Contains(r.SplitBrain, "bytes") {
			t.Errorf("%s shows a split brain without sizes: %s", x.name, r.SplitBrain)
		}
	}
	if text := a.do("view", res); !strings.Contains(text, control.ReplSplitBrain) {
		t.Errorf("view does not show the split brain:\n%s", text)
	}
	application.runs(100) // the winner's application does not care
	a.refuses([]string{"split brain", "invalidate"}, "primary", res)

	if said := a.do("invalidate", res); !strings.Contains(said, "thrown away") {
		t.Errorf("invalidate does not say what was thrown away: %s", said)
	}
	a.do("wait-resource", res, "uptodate")
	must := application.stops()
	settle(res, b, a)
	a.checkDisk(res, j, must)
	checkEqual(t, res, a, b)
	b.await("the split brain is gone", func(st control.Status) bool { r, _ := find(st, res); return r.SplitBrain == "" })
}

// TestForceAgainstTheLiving: --force against a primary that could hand over is refused, unless the operator has switched fetch off to say that
// it is meant. Then the old primary steps down as soon as it learns of that, and its writes since are the tail that is thrown away.
func TestForceAgainstTheLiving(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	j := &stamp.Journal{}
	a.writeOnce(res, j)
	settle(res, a, b)
	b.refuses([]string{a.name, "without --force"}, "primary", res, "--force")

	b.do("pause-fetch", res)
	shipped := j.Now()
	a.writeOnce(res, j)
	b.do("primary", res, "--force")
	j.Adopt(b.checkDevice(res, j, shipped))
	b.writeOnce(res, j)
	a.awaitSelf(res, "alpha steps down", func(m control.Member) bool { return m.Device == "" })
	a.awaitSelf(res, "alpha shows the split brain", func(m control.Member) bool { return hasMessage(m, "split-brain") })

	a.do("invalidate", res)
	a.do("wait-resource", res, "uptodate")
	settle(res, b, a)
	a.checkDisk(res, j, j.Now())
	checkEqual(t, res, a, b)
	b.do("resume-fetch", res)
	a.do("primary", res)
	a.checkDevice(res, j, j.Now())
}

// TestFailoverAmongThree: with three members, the loser of a failover and the bystander both end up at the winner's history.
func TestFailoverAmongThree(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 3)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	j := &stamp.Journal{}
	a.creates(res)
	b.gets(res)
	c.gets(res)
	application := a.starts(res, j)
	application.runs(200)
	a.kill()
	application.dies()
	b.awaitSight(a, false)
	b.do("primary", res, "--force")
	// Whatever gamma had that beta lacked is a lost tail, too; so is what only alpha had.
	j.Adopt(b.checkDevice(res, j, 0))
	b.writeOnce(res, j)
	a.start()
	for _, x := range []*node{a, c} {
		x.resolves(res, b)
	}
	settle(res, b, a, c)
	for _, x := range []*node{a, b, c} {
		x.checkDisk(res, j, j.Now())
	}
	checkEqual(t, res, a, b)
	checkEqual(t, res, b, c)
}

// resolves waits until the node follows the winner by itself, or shows a split brain: then it gives its own side up.
func (x *node) resolves(res string, winner *node) {
	x.w.t.Helper()
	timeline := winner.self(res).Timeline
	m := x.awaitSelf(res, "it follows or shows a split brain", func(m control.Member) bool {
		return m.Timeline == timeline || m.ReplState == control.ReplSplitBrain
	})
	if m.ReplState == control.ReplSplitBrain {
		x.do("invalidate", res)
		x.do("wait-resource", res, "uptodate")
	}
}
