package resource

import (
	"slices"

	"mars/internal/history"
)

// decideCopied: the content is copied, and becomes consistent when the log is replayed up to all positions that it may reflect. Was one of them on a
// history that nobody has any more - the member that a part was copied from has left, or has dropped an empty tail - it never will.
func decideCopied(in *Input, p *Plan) {
	s := in.Local.Sync
	behind := slices.DeleteFunc(append(slices.Clone(s.Seen), *s.Until), func(x history.Position) bool { return in.Local.Path.End >= x.LSN })
	switch {
	case !slices.ContainsFunc(behind, func(x history.Position) bool { return !in.mayReach(x) }):
		if p.Fetch == "" && len(behind) > 0 {
			p.WaitsFor = "a member to fetch the rest of the log from"
		}
	case !in.Switches.Sync:
		p.WaitsFor = "resume-sync"
	case SyncSource(*in) == "":
		p.WaitsFor = "a reachable member with a consistent replica to copy from"
	default:
		p.StartOver = true
	}
}

// mayReach reports whether some member has, or may get, the log up to pos: its history contains it, or ends on the same timeline, for what is known of
// it may be old.
func (in *Input) mayReach(pos history.Position) bool {
	return slices.ContainsFunc(in.Peers, func(x Peer) bool {
		if x.Facts == nil {
			return true // nothing is known
		}
		path := &x.Facts.Path
		return path.Contains(pos) || len(path.Timelines) > 0 && path.Tip().ID == pos.Timeline && path.End < pos.LSN
	})
}
