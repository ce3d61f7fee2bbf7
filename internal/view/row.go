package view

import (
	"slices"
	"strings"

	"mars/internal/control"
)

// stateCells are the part of a status line that can change: disk state, replication state, flags, role, designated primary, device.
func stateCells(r control.Resource) []cell {
	m := local(r)
	return []cell{
		{{dash(m.DiskState), diskStyle(m.DiskState)}},
		{{dash(m.ReplState), replStyle(m.ReplState)}},
		{{flags(m), plain}},
		{{dash(m.Role), roleStyle(m.Role)}},
		{{or(clean(r.DesignatedPrimary), "(none)"), plain}},
		{{dash(m.Device), plain}},
	}
}

// local returns the replica of this node, or what is said in its place.
func local(r control.Resource) control.Member {
	if i := slices.IndexFunc(r.Members, func(m control.Member) bool { return m.Self }); i >= 0 {
		return r.Members[i]
	}
	return control.Member{DiskState: control.DiskNone}
}

func dash(s string) string { return or(clean(s), "-") }

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// flags are six letters: device, consistent, attach, sync, fetch, replay. Upper case is on and working, lower case is on but not working, a
// dash is off. The device's d is shown but not opened.
func flags(m control.Member) string {
	attached := m.Switches.Attach && !diskIn(m, control.DiskNone, control.DiskError, control.DiskDetached)
	alone := replIn(m, control.ReplUnresponsive, control.ReplNotStarted, control.ReplSplitBrain, control.ReplNoPrimary, control.ReplPrimaryUnreach)
	stopped := replIn(m, control.ReplUnresponsive, control.ReplNotStarted, control.ReplSplitBrain)
	needsSync := diskIn(m, control.DiskInconsistent, control.DiskOrphan)
	return letter('D', m.Device != "", len(m.Users) > 0) +
		letter('C', m.Consistent, true) +
		letter('A', m.Switches.Attach, attached) +
		letter('S', m.Switches.Sync, attached && !(needsSync && alone)) +
		letter('F', m.Switches.Fetch, attached && !alone && !diskIn(m, control.DiskOrphan)) +
		letter('R', m.Switches.Replay, attached && !stopped && !diskIn(m, control.DiskOrphan, control.DiskDefectiveLog))
}

func letter(upper byte, on, works bool) string {
	switch {
	case !on:
		return "-"
	case !works:
		return strings.ToLower(string(upper))
	}
	return string(upper)
}

// diskIn compares without what the daemon adds in brackets: OutDated[FR] is OutDated.
func diskIn(m control.Member, states ...string) bool {
	return slices.Contains(states, base(m.DiskState))
}

func replIn(m control.Member, states ...string) bool {
	return slices.Contains(states, base(m.ReplState))
}

func base(state string) string {
	state, _, _ = strings.Cut(state, "[")
	return state
}

func diskStyle(state string) style {
	switch base(state) {
	case control.DiskUpToDate, control.DiskWriteBack:
		return good
	case control.DiskOutdated, control.DiskRecovery, control.DiskDetached, control.DiskInconsistent:
		return warn
	case control.DiskNone:
		return dim
	}
	return bad
}

func replStyle(state string) style {
	switch base(state) {
	case control.ReplReplicating, control.ReplReplaying:
		return good
	case control.ReplSplitBrain, control.ReplUnresponsive:
		return bad
	case "":
		return dim
	}
	return warn
}

func roleStyle(role string) style {
	switch role {
	case control.RolePrimary:
		return strong
	case control.RoleNotYetPrimary, control.RoleRemainsPrimary:
		return warn
	}
	return plain
}
