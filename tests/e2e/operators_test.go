package e2e

import (
	"strings"
	"sync"
	"testing"

	"mars/internal/control"
	"mars/tests/stamp"
)

// TestTwoOperators: two operators make their node primary at the same time, many times. Each time both commands end with a true verdict, exactly
// one node is primary in the end, and no write is ever lost.
func TestTwoOperators(t *testing.T) {
	t.Parallel()
	w, a, b := pair(t)
	j := &stamp.Journal{}
	a.writeOnce(res, j)
	for round := range 12 {
		answers := atOnce(w.nodes, func(x *node) answer { return x.admIn(10*shortly, "primary", res) })
		winner := w.awaitOnePrimary(res)
		if answers[0].code != 0 && answers[1].code != 0 {
			t.Errorf("round %d: both were refused, yet %s is primary:\n%s\n%s", round, winner.name, answers[0].err, answers[1].err)
		}
		for i, x := range w.nodes {
			if x == winner && answers[i].code != 0 {
				t.Errorf("round %d: %s was refused and is primary: %s", round, x.name, answers[i].err)
			}
		}
		winner.checkDevice(res, j, j.Now())
		winner.writeOnce(res, j)
	}
	winner := w.awaitOnePrimary(res)
	settle(res, winner, a, b)
	checkEqual(t, res, a, b)
}

// TestPrimaryAgainstSecondary: one operator gives the role up while another one takes it. "primary" wins.
func TestPrimaryAgainstSecondary(t *testing.T) {
	t.Parallel()
	w, a, b := pair(t)
	j := &stamp.Journal{}
	from, to := a, b
	for range 6 {
		from.writeOnce(res, j)
		atOnce([]*node{from, to}, func(x *node) answer {
			if x == from {
				return x.admIn(10*shortly, "secondary", res)
			}
			return x.admIn(10*shortly, "primary", res)
		})
		to.await("primary has won", func(st control.Status) bool { return isPrimary(member(st, res, to.name)) })
		w.awaitOnePrimary(res)
		to.checkDevice(res, j, j.Now())
		from, to = to, from
	}
}

// atOnce runs f for all nodes at the same time.
func atOnce(nodes []*node, f func(*node) answer) []answer {
	answers := make([]answer, len(nodes))
	var wg sync.WaitGroup
	for i, x := range nodes {
		wg.Go(func() { answers[i] = f(x) })
	}
	wg.Wait()
	return answers
}

// TestCommandsRightAfterStart: a command may be given as soon as marsd answers. It waits for what a start takes - the disk, the other nodes - instead of
// being refused because of that; and --force is refused while the primary can be reached also when that is not known yet.
func TestCommandsRightAfterStart(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	j := &stamp.Journal{}
	a.writeOnce(res, j)
	settle(res, a, b)
	for range 5 {
		b.kill()
		b.start()
		b.do("primary", res)
		a.kill()
		a.start()
		a.refuses([]string{b.name, "without --force"}, "primary", res, "--force")
		a.do("primary", res)
	}
	a.checkDevice(res, j, j.Now())
	b.kill()
	b.start()
	b.do("invalidate", res)
	settle(res, a, b)
	checkEqual(t, res, a, b)
}

// TestDeviceInUse: a planned handover does not take the device from under the application: it waits, says for whom, and gives up without having
// changed anything; or it goes on when the application is done.
func TestDeviceInUse(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	checkRefusal(t, "handover while in use", b.admIn(shortly, "primary", res), a.name, "NBD client")
	checkRefusal(t, "secondary while in use", a.admIn(shortly, "secondary", res), "NBD client")
	checkRefusal(t, "wait-umount while in use", b.admIn(shortly, "wait-umount", res), "NBD client")
	application.runs(100)
	a.awaitSelf(res, "nothing has changed", isPrimary)

	done := make(chan answer, 1)
	go func() { done <- b.adm("primary", res) }() // ends with the command
	b.await("the handover waits", func(st control.Status) bool { return member(st, res, b.name).WaitsFor != "" })
	a.awaitSelf(res, "the primary says for whom", func(m control.Member) bool { return strings.Contains(m.WaitsFor, "NBD client") })
	application.runs(50)
	must := application.stops()
	if got := <-done; got.code != 0 {
		t.Fatalf("the handover that has waited fails: %s", got.err)
	}
	b.checkDevice(res, j, must)
	b.do("wait-umount", res)
}
