package resource

import (
	"fmt"

	"mars/internal/control"
	"mars/internal/history"
)

// View is what a node shows of its own replica; it travels with its Facts, so that every node shows the same.
type View struct {
	DiskState string             `json:"disk_state"`
	ReplState string             `json:"repl_state"`
	Role      string             `json:"role"`
	WaitsFor  string             `json:"waits_for,omitempty"`
	Lag       int64              `json:"lag"` // bytes
	LagSecs   float64            `json:"lag_seconds"`
	Progress  []control.Progress `json:"progress,omitempty"`
	Messages  []control.Message  `json:"messages,omitempty"`
	Split     string             `json:"split,omitempty"`
}

// Describe computes the states of this node's replica from what a decision was made of and the decision. Messages, progress and seconds are
// the caller's to add: they need a clock.
func Describe(in Input, p Plan) View {
	v := View{DiskState: diskState(&in), ReplState: replState(&in, &p), Role: role(&in), WaitsFor: p.WaitsFor, Lag: Lag(&in)}
	if s := p.Split; s != nil {
		v.Split = fmt.Sprintf("with node %s from LSN %d on: %d bytes of log here, %d there exclude each other", s.With, s.Fork, s.Mine, s.Their)
	}
	return v
}

func role(in *Input) string {
	me := in.Designated == in.Self
	switch {
	case in.Local.Writable && me:
		return control.RolePrimary
	case in.Local.Writable:
		return control.RoleRemainsPrimary
	case me:
		return control.RoleNotYetPrimary
	}
	return control.RoleSecondary
}

// primaryEnd returns the end of the log of the node whose log is to be reached, as far as it is known.
func primaryEnd(in *Input) history.LSN {
	end := max(in.Local.Path.End, in.Local.PrimaryEnd)
	if ref := reference(in); ref != nil && !forked(&in.Local.Path, &ref.Facts.Path) {
		end = max(end, ref.Facts.Path.End)
	}
	return end
}

// Lag returns how many bytes of the primary's log are not on the disk here.
func Lag(in *Input) int64 {
	if !in.Local.Open {
		return 0
	}
	return int64(primaryEnd(in) - in.Local.Applied.LSN)
}

// writeBackShown is how much must be unapplied before a primary is shown as writing back.
const writeBackShown = 1 << 20

func diskState(in *Input) string {
	l := &in.Local
	switch {
	case l.Missing:
		return control.DiskInconsistent
	case !l.Open && l.OpenErr != "":
		return control.DiskError
	case !l.Open:
		return control.DiskDetached
	case l.Defect != nil:
		return control.DiskDefectiveLog
	case l.ApplyErr != nil || l.LogErr != nil:
		return control.DiskError
	case l.Orphan:
		return control.DiskOrphan
	case !l.Consistent:
		return control.DiskInconsistent
	case l.Writable && Lag(in) > writeBackShown:
		return control.DiskWriteBack
	case l.Writable:
		return control.DiskUpToDate
	case in.Designated == in.Self && l.Path.Holder() == in.Self:
		return control.DiskRecovery
	}
	return outdated(in)
}

func outdated(in *Input) string {
	flags := ""
	if primaryEnd(in) > in.Local.Path.End {
		flags = "F"
	}
	if in.Local.Path.End > in.Local.Applied.LSN && in.Local.Path.LastData > in.Local.Applied.LSN {
		flags += "R"
	}
	if flags == "" {
		return control.DiskUpToDate
	}
	return control.DiskOutdated + "[" + flags + "]"
}

func replState(in *Input, p *Plan) string {
	l, sw := &in.Local, in.Switches
	switch {
	case !l.Open && !l.Missing:
		return control.ReplNotStarted
	case p.Split != nil:
		return control.ReplSplitBrain
	case l.Writable:
		return control.ReplReplicating
	case in.Designated == in.Self:
		return control.ReplNotYetPrimary
	case (l.Sync != nil || l.Missing) && !sw.Sync:
		return control.ReplPausedSync
	case l.Sync != nil || l.Missing:
		return control.ReplSyncing
	case !sw.Fetch:
		return control.ReplPausedFetch
	case !sw.Replay:
		return control.ReplPausedReplay
	case in.Designated == "":
		return control.ReplNoPrimary
	}
	if x := in.peer(in.Designated); x == nil || !x.Alive {
		return control.ReplPrimaryUnreach
	}
	return control.ReplReplaying
}
