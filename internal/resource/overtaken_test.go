package resource

import (
	"testing"

	"mars/internal/history"
	"mars/internal/volume"
)

// b was forced exactly where a stands, has written, and a is to be primary again. If a went on writing there would be a split brain that need not be;
// it stops, fetches what b has, and goes on from there (found by the model in model/).
func TestPrimaryOvertakenByForce(t *testing.T) {
	t.Parallel()
	root, forced := timeline(1, "a", 0), timeline(2, "b", 20)
	forced.Forced = true
	handedBack := walk(50, root, forced)
	handedBack.LastData, handedBack.Successor = 40, "a"
	empty := handedBack.Clone()
	empty.LastData = 20
	ahead := walk(50, root)
	ahead.LastData = 50 // of our own timeline, written by nobody but us
	for _, c := range []struct {
		name  string
		mine  history.LSN
		peer  history.Path
		users []string
		role  Role
	}{
		{"b has written", 20, handedBack, nil, RoleStop},
		{"b has written, and the device here is in use", 20, handedBack, []string{"fio"}, RoleStop},
		{"b has written nothing", 20, empty, nil, RoleKeep},
		{"both have written: a split brain, for the operator to resolve", 30, handedBack, nil, RoleKeep},
		{"b is behind", 60, ahead, nil, RoleKeep},
	} {
		mine := walk(c.mine, root)
		mine.LastData = c.mine
		p := Decide(Input{
			Self: "a", Designated: "a", Switches: AllOn, Settled: true,
			Local: Local{Open: true, Users: c.users, Status: volume.Status{Path: mine, Durable: c.mine, Consistent: true, Writable: true}},
			Peers: []Peer{{Node: "b", Alive: true, Facts: &Facts{Attached: true, Consistent: true, Path: c.peer, Durable: 50, Switches: AllOn}}},
		})
		if p.Role != c.role || p.Device == (c.role == RoleStop) {
			t.Errorf("%s: role %v, device %v, want role %v; plan %+v", c.name, p.Role, p.Device, c.role, p)
		}
		if busy := p.WaitsFor != ""; busy != (len(c.users) > 0) {
			t.Errorf("%s: waits for %q", c.name, p.WaitsFor)
		}
	}
}
