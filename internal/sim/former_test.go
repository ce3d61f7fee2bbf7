package sim

import (
	"slices"
	"strings"
	"testing"
	"time"

	"mars/internal/history"
	"mars/internal/volume"
)

// TestUsedTokenOfAThrownAwayLog: b hands over to a and is cut off from it before it hears that a has the token. Then b is invalidated, and c is the only
// source, which stands where the token was still b's own. b must not become primary by that token; with the bug built in, the checker notices.
func TestUsedTokenOfAThrownAwayLog(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ canary, found string }{{"", ""}, {"forget-logs", "I5"}} {
		t.Run(c.canary, func(t *testing.T) {
			t.Parallel()
			w := threeNodes(c.canary)
			defer func() {
				if p := recover(); p != nil && w.failure == nil {
					panic(p)
				}
				if found := w.failure; (found == nil) != (c.found == "") || found != nil && found.Checker != c.found {
					t.Errorf("found %v, want %q", found, c.found)
				}
			}()
			useTokenTwice(t, w)
		})
	}
}

func useTokenTwice(t *testing.T, w *World) {
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	res := w.resources[0]
	w.reach(t, "all are members", func() bool {
		return !slices.ContainsFunc(w.nodes, func(n *node) bool { return !w.of(n).Consistent })
	})
	w.issue(b, res, "primary")
	w.reach(t, "b writes", func() bool { return w.hasWritten(b) })
	w.phase = 2 // the application stops
	clear(res.app.open)
	w.reach(t, "all have the same log, and know it", func() bool {
		known := b.meta.find(res.id).facts[a.id]
		return w.at(a) == w.at(b) && w.at(c) == w.at(b) && known.Path.Position() == w.at(b)
	})
	w.issue(c, res, "pause-fetch")
	w.cut(c, a, true)
	w.cut(c, b, true)
	w.issue(a, res, "primary")
	w.reach(t, "a has the token", func() bool { return w.holder(a) == a.id })
	w.cut(a, b, true)
	w.phase = 1
	w.reach(t, "a writes", func() bool { return w.hasWritten(a) })

	w.cut(b, c, false)
	w.reach(t, "b sees c only", func() bool { return b.gossip[c.index].alive() && !b.gossip[a.index].alive() })
	w.issue(b, res, "invalidate")
	w.reach(t, "b is filled", func() bool { return w.stats.Resets == 1 && w.of(b).Consistent })
	if w.holder(b) != b.id {
		t.Fatalf("the scenario is not what it should be: the token is at %s", w.holder(b))
	}
	w.issue(b, res, "primary")
	if err := w.said(b, "primary"); w.opt.Canary == "" && !strings.Contains(err, "--force") {
		t.Errorf("primary says %q", err)
	}
	w.runUntil(w.now+20*time.Second, nil)
	if w.of(b).Writable {
		t.Error("b writes")
	}

	// When a is back, b gets the rest, and then takes over as ever.
	w.cut(a, b, false)
	w.cut(a, c, false)
	w.issue(c, res, "resume-fetch")
	w.reach(t, "b follows a", func() bool { return w.at(b).Timeline == w.at(a).Timeline })
	w.reach(t, "b writes again", func() bool {
		if b.gossip[a.index].alive() && w.now%time.Second < 10*time.Millisecond {
			w.issue(b, res, "primary")
		}
		return w.of(b).Writable
	})
}

// threeNodes is a cluster with one resource, without faults and operators.
func threeNodes(canary string) *World {
	for seed := uint64(1); ; seed++ {
		w := newWorld(Options{Seed: seed, Off: features, Canary: canary})
		if w.nodeCount != 3 || len(w.resources) != 1 {
			continue
		}
		w.build()
		for _, n := range w.nodes { // the one that has made it refuses
			w.after(12*time.Second, func() { w.issue(n, w.resources[0], "join-resource") })
		}
		return w
	}
}

// of returns the status of a node's replica; the zero Status when there is none.
func (w *World) of(n *node) volume.Status {
	if r := n.reps[0]; r != nil && r.vol != nil {
		return r.vol.Status()
	}
	return volume.Status{}
}

// at returns where the log of a node ends.
func (w *World) at(n *node) history.Position {
	st := w.of(n)
	return st.Path.Position()
}

func (w *World) holder(n *node) string {
	st := w.of(n)
	return st.Path.Holder()
}

// hasWritten reports whether a node is primary, and its timeline has data.
func (w *World) hasWritten(n *node) bool {
	st := w.of(n)
	return st.Writable && st.Path.LastData > st.Path.Tip().Switch
}

// reach runs until a condition holds.
func (w *World) reach(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := w.now + 2*time.Minute; !cond(); w.runUntil(w.now+10*time.Millisecond, cond) {
		if w.now > end {
			lines := w.trace.tail()
			t.Fatalf("not reached: %s; %s\n%s", what, w.converged(), strings.Join(lines[max(0, len(lines)-30):], "\n"))
		}
	}
}

// cut breaks or restores the lines between two nodes.
func (w *World) cut(x, y *node, cut bool) {
	w.net.setCut(w.net.line(x, y), cut)
	w.net.setCut(w.net.line(y, x), cut)
}

// said returns the last line of the trace about a command at a node.
func (w *World) said(n *node, verb string) string {
	lines := w.trace.tail()
	for _, l := range slices.Backward(lines) {
		if strings.Contains(l, n.id+": "+verb) {
			return l
		}
	}
	return ""
}
