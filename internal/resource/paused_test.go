package resource

import (
	"testing"

	"mars/internal/translog"
	"mars/internal/volume"
)

// What becomes of a device that a former process has left behind, and of its users.
func TestPausedDevice(t *testing.T) {
	t.Parallel()
	root := timeline(1, "a", 0)
	mine, passed := walk(30, root), walk(30, root)
	mine.LastData, passed.LastData, passed.Successor = 30, 30, "b"
	forced := walk(40, root, timeline(2, "b", 20)) // b was forced and lacks what a has behind LSN 20
	forced.LastData = 40
	beyond := walk(40, root, timeline(2, "b", 30)) // b was forced where a ends
	beyond.LastData = 40
	behind := walk(10, root)
	for _, c := range []struct {
		name       string
		change     func(in *Input)
		role       Role
		next       Action
		designated string
	}{
		{"still primary", nil, RoleActivate, ActActivate, "a"},
		{"the peers were not heard yet", func(in *Input) { in.Settled = false }, RoleKeep, ActNone, "a"},
		{"replay comes first", func(in *Input) { in.Local.Backlog = true }, RoleKeep, ActNone, "a"},
		{"another one is designated, but the device is in use", nil, RoleActivate, ActActivate, "b"},
		{"another one is designated, and nobody uses the device", func(in *Input) { in.Local.Users = nil }, RolePass, ActGiveUp, "b"},
		{"nobody is designated, but the device is in use", nil, RoleActivate, ActActivate, ""},
		{"the token went before", func(in *Input) { in.Local.Path = passed }, RoleKeep, ActGiveUp, "a"},
		{"the token went before, not settled", func(in *Input) { in.Local.Path, in.Settled = passed, false }, RoleKeep, ActGiveUp, "a"},
		{"another one was forced and has lost nothing", func(in *Input) { in.Peers[0].Facts.Path = beyond }, RoleKeep, ActGiveUp, "b"},
		{"another one was forced and a has lost", func(in *Input) { in.Peers[0].Facts.Path = forced }, RoleKeep, ActGiveUp, "b"},
		{"the log is damaged", func(in *Input) { in.Local.Defect = &translog.DefectError{} }, RoleKeep, ActGiveUp, "a"},
		{"the replica is being filled", func(in *Input) { in.Local.Sync = &volume.SyncState{} }, RoleKeep, ActGiveUp, "a"},
		{"the replica is gone", func(in *Input) { in.Local.Open, in.Local.Missing = false, true }, RoleKeep, ActGiveUp, "a"},
		{"the disk is not attached yet", func(in *Input) { in.Local.Open = false }, RoleKeep, ActAttach, "a"},
	} {
		in := Input{
			Self: "a", Designated: c.designated, Switches: AllOn, Settled: true,
			Local: Local{Open: true, Paused: true, Users: []string{"mounted on /srv"}, Status: volume.Status{Path: mine, Durable: 30, Consistent: true}},
			Peers: []Peer{{Node: "b", Alive: true, Facts: &Facts{Attached: true, Consistent: true, Path: behind, Durable: 10, Switches: AllOn}}},
		}
		if c.change != nil {
			c.change(&in)
		}
		p := Decide(in)
		if next := Next(&in.Local, &p); p.Role != c.role || next != c.next {
			t.Errorf("%s: role %v, next %v, want role %v, next %v; plan %+v", c.name, p.Role, next, c.role, c.next, p)
		}
		in.Local.Paused = false
		if p := Decide(in); p.GiveUp {
			t.Errorf("%s: gives up what is not there", c.name)
		}
	}
}
