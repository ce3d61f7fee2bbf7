package resource

import (
	"testing"

	"mars/internal/history"
	"mars/internal/volume"
)

// walk returns a path over the timelines ts, root first, that ends at end.
func walk(end history.LSN, ts ...history.Timeline) history.Path {
	return history.Path{Timelines: ts, End: end, EndDigest: history.Digest{byte(end)}}
}

func timeline(id history.TimelineID, origin string, from history.LSN) history.Timeline {
	return history.Timeline{ID: id, Origin: origin, Switch: from, Digest: history.Digest{byte(from)}}
}

// A tail without data gives way to the history of the designated primary, but only to what is durable there (found by the model in model/).
func TestDropTailOnlyForADurableHistory(t *testing.T) {
	t.Parallel()
	root := timeline(1, "a", 0)
	mine := walk(30, root, timeline(2, "b", 20)) // b opened a timeline behind LSN 20 and wrote nothing
	mine.LastData = 20
	for _, c := range []struct {
		name    string
		path    history.Path
		durable history.LSN
		drop    bool
	}{
		{"a's own record behind the fork was never durable", walk(25, root), 20, false},
		{"a's own record behind the fork is durable", walk(25, root), 25, true},
		{"a has opened a timeline by force", walk(28, root, timeline(3, "a", 20)), 28, true},
		{"a is behind", walk(15, root), 15, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := Decide(Input{
				Self: "b", Designated: "a", Switches: AllOn, Settled: true,
				Local: Local{Open: true, Status: volume.Status{Path: mine, Durable: 30, Consistent: true}},
				Peers: []Peer{{Node: "a", Alive: true, Facts: &Facts{
					Attached: true, Consistent: true, Writable: true, Path: c.path, Durable: c.durable, Switches: AllOn,
				}}},
			})
			if got := p.DropTail != nil; got != c.drop {
				t.Fatalf("DropTail = %v, want %v; plan %+v", p.DropTail, c.drop, p)
			}
			if c.drop && p.DropTail.LSN != 20 {
				t.Errorf("dropped back to LSN %d, want the fork, 20", p.DropTail.LSN)
			}
		})
	}
}

// After a failover that nobody wrote in and that was handed back, the empty side is designated and the other one has data and cannot pass the
// token to it. The empty side gives way, else there would never be a primary (found by the model in model/).
func TestEmptyTailGivesWayToData(t *testing.T) {
	t.Parallel()
	root := timeline(1, "a", 0)
	mine := walk(30, root, timeline(2, "b", 20))
	mine.LastData, mine.Successor = 20, "a"
	theirs := walk(40, root)
	in := Input{
		Self: "b", Designated: "b", Switches: AllOn, Settled: true,
		Local: Local{Open: true, Status: volume.Status{Path: mine, Durable: 30, Consistent: true}},
		Peers: []Peer{{Node: "a", Alive: true, Facts: &Facts{Attached: true, Consistent: true, Path: theirs, Durable: 40, Switches: AllOn}}},
	}
	for _, c := range []struct {
		name     string
		lastData history.LSN
		drop     bool
	}{{"data behind the fork", 40, true}, {"no data there either", 20, false}} {
		in.Peers[0].Facts.Path.LastData = c.lastData
		if p := Decide(in); (p.DropTail != nil) != c.drop {
			t.Errorf("%s: DropTail = %v, want %v; plan %+v", c.name, p.DropTail, c.drop, p)
		}
	}
}

// Who is not reachable may have lost what it is known to have: nothing gives way to that (simulator, seed 120396: the log that was needed then had been
// deleted everywhere).
func TestNothingGivesWayToTheDead(t *testing.T) {
	t.Parallel()
	root := timeline(1, "a", 0)
	mine := walk(30, root, timeline(2, "b", 20))
	mine.LastData = 20
	for _, alive := range []bool{true, false} {
		p := Decide(Input{
			Self: "b", Designated: "a", Switches: AllOn, Settled: true,
			Local: Local{Open: true, Status: volume.Status{Path: mine, Durable: 30, Consistent: true}},
			Peers: []Peer{{Node: "a", Alive: alive, Facts: &Facts{Attached: true, Consistent: true, Path: walk(40, root), Durable: 40, Switches: AllOn}}},
		})
		if (p.DropTail != nil) != alive || (p.WaitsFor == "") != alive {
			t.Errorf("alive %v: drops %v, waits for %q", alive, p.DropTail, p.WaitsFor)
		}
	}
}
