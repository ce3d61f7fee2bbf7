package resource

import (
	"mars/internal/history"
)

// decideHolder: the token is here. It returns true when nothing else is to be done.
func decideHolder(in *Input, p *Plan) bool {
	if !in.Settled {
		p.WaitsFor = "the peers to be heard after the start"
		return true
	}
	if p.WaitsFor = spent(in); p.WaitsFor != "" {
		return false
	}
	if in.Designated == in.Self || interrupted(in) {
		if in.Local.Backlog {
			p.Replay = true
			p.WaitsFor = "replay of the log"
			return true
		}
		p.Role, p.Device, p.Replay = RoleActivate, true, true
		p.Split = splitWithAny(in)
		return true
	}
	x := in.peer(in.Designated)
	if x == nil || !x.Alive || x.Facts == nil || !x.Facts.Attached || !x.Facts.Consistent || x.Facts.Writable {
		return false
	}
	r := history.Compare(&x.Facts.Path, &in.Local.Path)
	if r.Unrelated || r.TailA > 0 {
		return false
	}
	p.Role, p.To = RolePass, x.Node
	return true
}

// interrupted reports whether a tenure goes on that ended only because the process did: somebody still has its device open. Another node may be
// designated meanwhile; it gets the role when the device is closed, as if nothing had happened. But not a side that has lost already.
func interrupted(in *Input) bool {
	x := in.peer(in.Designated)
	return in.Local.Paused && len(in.Local.Users) > 0 && (x == nil || x.Facts == nil || !forked(&in.Local.Path, &x.Facts.Path))
}

// spent says who has, or had, more of the history than there is here, so that the token here may have been used; empty when nobody has.
func spent(in *Input) string {
	if x := ahead(in); x != nil {
		return "the rest of the log, which node " + x.Node + " has (or use primary --force)"
	}
	if in.Former.Voids(&in.Local.Path) {
		return "the rest of the log, which this node had before its replica was thrown away (or use primary --force)"
	}
	return ""
}

// OpensByForce reports whether a timeline that is opened here is opened without the token.
func OpensByForce(in *Input) bool {
	return in.Local.Path.Holder() != in.Self || spent(in) != ""
}

// formerOf returns what a node has thrown away.
func (in *Input) formerOf(node string) Former {
	if node == in.Self {
		return in.Former
	}
	if x := in.peer(node); x != nil {
		return x.Former
	}
	return nil
}

// ahead returns a member that has all of this node's log and more. Then the token here is not the newest one: either the log was cut at a damage
// and the rest is still to be fetched, or somebody has gone on by force. A timeline that is opened now would fork a history that need not.
func ahead(in *Input) *Peer {
	for i := range in.Peers {
		x := &in.Peers[i]
		if x.Facts == nil || len(x.Facts.Path.Timelines) == 0 || x.Facts.Sync != nil {
			continue
		}
		if r := history.Compare(&in.Local.Path, &x.Facts.Path); !r.Unrelated && r.TailA == 0 && r.TailB > 0 {
			return x
		}
	}
	return nil
}

func waitForToken(in *Input) string {
	h := in.Local.Path.Holder()
	x := in.peer(h)
	switch {
	case x == nil:
		return "the right to write, whose holder " + h + " is no member (or use primary --force)"
	case x.Former.Voids(&in.Local.Path):
		return "the rest of the log, which node " + h + " had before its replica was thrown away (or use primary --force)"
	case !x.Alive:
		return "the right to write: its holder " + h + " is unreachable (or use primary --force)"
	case x.Facts != nil && len(x.Facts.Users) > 0:
		return "node " + h + ": its device is in use: " + x.Facts.Users[0]
	case !in.Switches.Fetch:
		return "resume-fetch"
	}
	return "node " + h + " to hand over"
}
