package resource

import (
	"slices"
	"strings"
	"testing"

	"mars/internal/history"
)

// A token counts unless a log that was thrown away here went on from it (found by the model in model/).
func TestFormerVoids(t *testing.T) {
	t.Parallel()
	root, second, third := timeline(1, "a", 0), timeline(2, "b", 20), timeline(3, "a", 30)
	lost := timeline(4, "b", 25)
	long := walk(40, root, second, third)
	for _, c := range []struct {
		name string
		gone []history.Path
		at   history.Path
		void bool
	}{
		{"nothing was thrown away", nil, walk(20, root), false},
		{"in the middle of a timeline", []history.Path{long}, walk(15, root), true},
		{"where it went on to another timeline", []history.Path{long}, walk(20, root), true},
		{"likewise, later", []history.Path{long}, walk(30, root, second), true},
		{"on its last timeline", []history.Path{long}, walk(39, root, second, third), true},
		{"as long as it was", []history.Path{long}, long, false},
		{"longer", []history.Path{long}, walk(50, root, second, third), false},
		{"a timeline goes on that it left by force", []history.Path{walk(40, root, lost)}, walk(26, root), false},
		{"a timeline that it never had", []history.Path{walk(400, root, lost)}, walk(30, root, second), false},
		{"thrown away twice, shorter the second time", []history.Path{long, walk(10, root)}, walk(20, root), true},
		{"a long one, then one of another history", []history.Path{walk(400, root, lost), walk(30, root, second)}, walk(35, root, second), false},
	} {
		var f Former
		for _, p := range c.gone {
			f = f.With(&p, 0)
		}
		if got := f.Voids(&c.at); got != c.void {
			t.Errorf("%s: void %v, want %v; %v", c.name, got, c.void, f)
		}
	}
}

// Of a defective log only a part can be read.
func TestFormerOfADefectiveLog(t *testing.T) {
	t.Parallel()
	p := walk(20, timeline(1, "a", 0))
	f := Former(nil).With(&p, 30)
	for end, void := range map[history.LSN]bool{20: true, 29: true, 30: false} {
		at := walk(end, timeline(1, "a", 0))
		if f.Voids(&at) != void {
			t.Errorf("at %d: void %v, want %v", end, !void, void)
		}
	}
}

// However often a replica is thrown away, what is remembered is bounded, and the newest is remembered.
func TestFormerIsBounded(t *testing.T) {
	t.Parallel()
	var f Former
	for i := range 10 * history.MaxTimelines {
		p := walk(history.LSN(10*i+10), timeline(history.TimelineID(i+1), "a", history.LSN(10*i)))
		before := slices.Clone(f)
		now := f.With(&p, 0)
		if !slices.Equal(before, f) {
			t.Fatal("With has changed what it was called on")
		}
		if again := now.With(&p, 0); !slices.Equal(again, now) {
			t.Fatal("the same log again makes a difference")
		}
		f = now
	}
	last := walk(10*10*history.MaxTimelines-1, timeline(10*history.MaxTimelines, "a", 0))
	if len(f) != history.MaxTimelines || !f.Voids(&last) {
		t.Errorf("%d timelines are remembered, the last one: %v", len(f), f.Voids(&last))
	}
}

// b handed over to a long ago, got the token back and used it, and was invalidated; the only source was c, which stands where the token was
// still unused. Nobody becomes primary by that token, neither b nor c waits for it in silence, and both say what to do.
func TestUsedTokenDoesNotCount(t *testing.T) {
	t.Parallel()
	old := walk(20, timeline(1, "a", 0))
	old.Successor = "b"
	gone := walk(40, timeline(1, "a", 0), timeline(2, "b", 20))
	former := Former(nil).With(&gone, 0)
	c := at("c", 20, func(f *Facts) { f.Path = old })
	a := at("a", 40, func(f *Facts) { f.Path = gone })
	a.Alive = false
	input := func(self string, peers ...Peer) Input {
		in := self2(self, old)
		in.Peers = peers
		if self == "b" {
			in.Former = former
		}
		return in
	}
	b := at("b", 20, func(f *Facts) { f.Path = old })
	b.Former = former
	unheard := a
	unheard.Facts = nil
	for _, x := range []struct {
		name string
		in   Input
	}{
		{"on b, a was never heard", input("b", unheard, c)},
		{"on b, a is known to have the rest and dead", input("b", a, c)},
		{"on c", input("c", unheard, b)},
	} {
		p := Decide(x.in)
		if p.Role != RoleKeep || !strings.Contains(p.WaitsFor, "--force") {
			t.Errorf("%s: role %v, waits for %q", x.name, p.Role, p.WaitsFor)
		}
		if err := MayWish(&x.in); err == nil || !strings.Contains(err.Error(), "--force") || !strings.Contains(err.Error(), "LSN 20") {
			t.Errorf("%s: primary is refused with %v", x.name, err)
		}
		if !OpensByForce(&x.in) {
			t.Errorf("%s: what is opened here is not called forced", x.name)
		}
		if HoldsToken(&x.in) {
			t.Errorf("%s: the used token keeps it from leaving", x.name)
		}
		x.in.Designated = "nobody"
		if p := Decide(x.in); p.Role != RoleKeep {
			t.Errorf("%s: the used token is passed on: %+v", x.name, p)
		}
	}

	a.Alive = true
	if in := input("b", a, c); MayWish(&in) != nil || Decide(in).Fetch != "a" {
		t.Errorf("b does not fetch the rest from a: %v, %+v", MayWish(&in), Decide(in))
	}
	again := gone
	again.End, again.Successor = 60, "b"
	in := input("b", c)
	in.Local.Path = again
	if p := Decide(in); p.Role != RoleActivate || OpensByForce(&in) {
		t.Errorf("b has everything again, and a new token, and does not count: %+v", p)
	}
}

// self2 is a healthy member whose log is p, designated and heard of everybody.
func self2(node string, p history.Path) Input {
	in := self(p.End)
	in.Self, in.Designated, in.Local.Path = node, node, p
	return in
}
