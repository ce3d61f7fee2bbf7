package resource

// Action is one step towards what a plan says.
type Action int

// The actions, in the order in which they are considered.
const (
	ActNone      Action = iota
	ActStop             // close the device and suspend the volume: Plan.Role is RoleStop
	ActDetach           // close the disk and the log
	ActAttach           // open them
	ActGiveUp           // disconnect the paused device for ever
	ActJoin             // make the missing replica, to be filled from Plan.Join
	ActHandOver         // close the device and end the timeline in favour of Plan.To
	ActPass             // pass the token to Plan.To without a tenure
	ActActivate         // open a timeline and show the device
	ActHeal             // cut the log at its damage
	ActStartOver        // wipe the replica, so that it is filled anew
	ActDropTail         // cut the log back to Plan.DropTail
	ActShow             // show the device
)

// Next returns the next thing that the plan asks for and that is not so.
func Next(l *Local, p *Plan) Action {
	attached := l.Open || l.Missing
	switch {
	case p.Role == RoleStop:
		return ActStop
	case !p.Attach && attached:
		return ActDetach
	case p.Attach && !attached:
		return ActAttach
	case p.GiveUp:
		return ActGiveUp
	case p.Join != "":
		return ActJoin
	case p.Role == RoleHandOver:
		return ActHandOver
	case p.Role == RolePass:
		return ActPass
	case p.Role == RoleActivate:
		return ActActivate
	case p.Heal:
		return ActHeal
	case p.StartOver:
		return ActStartOver
	case p.DropTail != nil:
		return ActDropTail
	case p.Device && l.Writable && l.Device == "":
		return ActShow
	}
	return ActNone
}
