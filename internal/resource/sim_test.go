package resource

import (
	"testing"

	"mars/internal/history"
	"mars/internal/translog"
	"mars/internal/volume"
)

// The cases of this file were found by package sim; the seeds are in its list of bugs.

// at is a member that follows the timeline root up to end.
func at(node string, end history.LSN, change func(*Facts)) Peer {
	f := &Facts{Attached: true, Consistent: true, Path: walk(end, timeline(1, "a", 0)), Durable: end, Applied: end, Switches: AllOn}
	if change != nil {
		change(f)
	}
	return Peer{Node: node, Alive: true, Facts: f}
}

func writable(f *Facts) { f.Writable = true }

// self is node b, which has the log up to end.
func self(end history.LSN, peers ...Peer) Input {
	return Input{Self: "b", Designated: "a", Switches: AllOn, Settled: true, Peers: peers,
		Local: Local{Open: true, Status: volume.Status{Path: walk(end, timeline(1, "a", 0)), Durable: end, Consistent: true,
			Applied: history.Position{Timeline: 1, LSN: end}}}}
}

// Who may have to ship the log to everybody keeps it, also when space is tight and nobody writes yet after a restart (seed 25).
func TestLogNeededWhenTight(t *testing.T) {
	t.Parallel()
	slow := at("c", 10, nil)
	for _, c := range []struct {
		name string
		in   Input
		need history.LSN
	}{
		{"a secondary keeps for the primary", self(100, at("a", 40, writable), slow), 40},
		{"a secondary keeps for who is to be primary", self(100, at("a", 40, nil), slow), 40},
		{"who is to be primary keeps for everybody", func() Input {
			in := self(100, at("a", 40, nil), slow)
			in.Designated = "b"
			return in
		}(), 10},
		{"who has the token keeps for everybody", func() Input {
			in := self(100, at("a", 40, nil), slow)
			in.Designated, in.Local.Path.Successor = "", "b"
			return in
		}(), 10},
	} {
		if got := LogNeededWhenTight(c.in); got != c.need {
			t.Errorf("%s: %d, want %d", c.name, got, c.need)
		}
		if got := LogNeeded(c.in); got != 10 {
			t.Errorf("%s, with space: %d, want 10", c.name, got)
		}
	}
}

// A damaged log is cut only when somebody has all that was ever durable here (seed 110).
func TestHealOnlyFromACompleteCopy(t *testing.T) {
	t.Parallel()
	for end, heal := range map[history.LSN]bool{60: false, 99: false, 100: true, 200: true} {
		in := self(50, at("a", end, writable))
		in.Local.Defect, in.Local.KnownDurable = &translog.DefectError{At: 50}, 100
		p := Decide(in)
		if p.Heal != heal || (p.WaitsFor == "") != heal {
			t.Errorf("with a copy up to %d: heal %v, waits for %q", end, p.Heal, p.WaitsFor)
		}
	}
}

// Who lacks the log, or has it damaged, is asked again only when there is nobody else (seeds 2, 17, 78).
func TestFetchFromWhoHasIt(t *testing.T) {
	t.Parallel()
	in := self(50, at("a", 100, writable), at("c", 80, nil))
	if p := Decide(in); p.Fetch != "a" {
		t.Errorf("fetches from %q", p.Fetch)
	}
	in.Local.Lacking = []string{"a"}
	if p := Decide(in); p.Fetch != "c" {
		t.Errorf("fetches from %q although it could from c", p.Fetch)
	}
	in.Local.Lacking = []string{"a", "c"}
	if p := Decide(in); p.Fetch != "a" || p.StartOver {
		t.Errorf("fetches from %q, starts over: %v; a consistent replica must stay", p.Fetch, p.StartOver)
	}
	in.Local.Sync = &volume.SyncState{}
	if p := Decide(in); !p.StartOver {
		t.Error("a sync whose log is gone everywhere does not start over") // seed 161
	}
}

// Who is designated and detached says what is missing (seed 43).
func TestDetachedDesignatedWaits(t *testing.T) {
	t.Parallel()
	in := Input{Self: "b", Designated: "b"}
	if p := Decide(in); p.WaitsFor == "" {
		t.Error("waits for nothing")
	}
}

// An empty timeline that was forced off a primary that writes gives way (seed 20228).
func TestForcedInVain(t *testing.T) {
	t.Parallel()
	forced := timeline(2, "b", 50)
	forced.Forced, forced.Parent = true, 1
	for name, c := range map[string]struct {
		peer     Peer
		lastData history.LSN
		drop     bool
	}{
		"without data":                   {at("a", 50, writable), 50, true},
		"with data":                      {at("a", 50, writable), 60, false},
		"the other one is not primary":   {at("a", 50, nil), 50, false},
		"the other one is behind a fork": {at("a", 40, writable), 50, false},
	} {
		in := self(60, c.peer)
		in.Local.Path = walk(60, timeline(1, "a", 0), forced)
		in.Local.Path.LastData = c.lastData
		if p := Decide(in); (p.DropTail != nil) != c.drop {
			t.Errorf("%s: drops the tail: %v", name, p.DropTail)
		}
	}
}

// In a split brain nobody replays what others have written, but who shall be primary does: a primary --force waits for the backlog (seed 230).
func TestReplayInASplit(t *testing.T) {
	t.Parallel()
	for designated, want := range map[string]bool{"a": false, "b": true} {
		theirs := at("a", 60, func(f *Facts) { f.Path = walk(60, timeline(1, "a", 0), timeline(2, "a", 40)); f.Path.LastData = 60 })
		in := self(60, theirs)
		in.Local.Path = walk(60, timeline(1, "a", 0), timeline(3, "c", 40))
		in.Local.Path.LastData, in.Designated = 60, designated
		if p := Decide(in); p.Split == nil || p.Replay != want {
			t.Errorf("with %s designated: split %v, replay %v", designated, p.Split, p.Replay)
		}
	}
}

// The right to write does not leave with a replica that cannot tell who has it (seeds 291, 10358), nor is it passed to somebody who has left since
// (seed 21328: a passed it to b, died before it could tell anybody, and b left), nor does a log
// leave that whoever it was passed to still waits for (seed 1393).
func TestMayLeave(t *testing.T) {
	t.Parallel()
	mine := func(f *Facts) { f.Path.Successor = "b" }
	away := func(in Input) Input {
		in.Local = Local{}
		return in
	}
	syncing := func(in Input) Input {
		in.Local.Sync, in.Local.Consistent = &volume.SyncState{}, false
		return in
	}
	dead := func(p Peer) Peer {
		p.Alive = false
		return p
	}
	passed := func(in Input) Input {
		in.Local.Path.Successor = "a"
		return in
	}
	knows := func(f *Facts) { f.Path.Successor = "a" }
	failedOver := func(in Input, peers ...Peer) Input {
		p := walk(60, timeline(1, "a", 0), timeline(2, "c", 40))
		in.Designated, in.Local.Path, in.Peers = "c", p, append(peers, at("c", 60, func(f *Facts) { f.Path = p }))
		return in
	}
	for _, c := range []struct {
		name string
		in   Input
		may  bool
	}{
		{"a secondary", self(50, at("a", 50, writable)), true},
		{"the last one", self(50), false},
		{"detached, another one has the token", away(self(50, at("a", 50, writable))), true},
		{"detached, the others say that the token is here", away(self(50, at("a", 50, mine))), false},
		{"detached, the others know nothing", away(self(50, Peer{Node: "a"})), false},
		{"syncing, the others say that the token is here", syncing(self(50, at("a", 50, mine))), false},
		{"syncing, another one has the token", syncing(self(50, at("a", 50, writable))), true},
		{"the others say that the token is here, in log that is not here yet", self(40, at("a", 50, mine)), false},
		{"who was primary is not heard", self(50, dead(at("a", 50, writable)), at("c", 50, nil)), false},
		{"who was primary and nothing is known of is not heard", self(50, Peer{Node: "a"}, at("c", 50, nil)), false},
		{"who has the token by log that is not here yet is not heard", self(40, at("a", 50, func(f *Facts) { f.Path.Successor = "c" }), dead(at("c", 40, nil))), false},
		{"syncing, who was primary is not heard", syncing(self(50, dead(at("a", 50, writable)), at("c", 50, nil))), false},
		{"a secondary that has no token is not heard", self(50, at("a", 50, writable), dead(at("c", 50, nil))), true},
		{"who was primary is not heard, but another one was forced", failedOver(self(50), dead(at("a", 50, writable))), true},
		{"who was primary has left", failedOver(self(50)), true},
		{"has passed the token, by log that nobody else has", passed(self(50, at("a", 40, nil), at("c", 40, nil))), false},
		{"has passed the token, by log that somebody else has", passed(self(50, at("a", 40, nil), at("c", 50, knows))), true},
		{"has passed the token, and its holder has that", passed(self(50, at("a", 50, knows), at("c", 40, nil))), true},
	} {
		if err := MayLeave(&c.in, false); (err == nil) != c.may {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	in := self(50, dead(at("a", 50, writable)), at("c", 50, nil))
	if err := MayLeave(&in, true); err != nil {
		t.Errorf("with --force: %v", err)
	}
}

func TestNext(t *testing.T) {
	t.Parallel()
	open := Local{Open: true}
	for _, c := range []struct {
		l    Local
		p    Plan
		want Action
	}{
		{open, Plan{Attach: true}, ActNone},
		{open, Plan{}, ActDetach},
		{Local{}, Plan{}, ActNone},
		{Local{}, Plan{Attach: true}, ActAttach},
		{Local{Missing: true}, Plan{Attach: true, Join: "a"}, ActJoin},
		{open, Plan{Role: RoleStop}, ActStop},
		{open, Plan{Attach: true, Role: RoleActivate, Device: true}, ActActivate},
		{open, Plan{Attach: true, Heal: true, StartOver: true}, ActHeal},
		{Local{Open: true, Status: volume.Status{Writable: true}}, Plan{Attach: true, Device: true}, ActShow},
	} {
		if got := Next(&c.l, &c.p); got != c.want {
			t.Errorf("%+v on %+v: %d, want %d", c.p, c.l, got, c.want)
		}
	}
}
