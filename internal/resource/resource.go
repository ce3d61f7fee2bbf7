// Package resource is the strategy for one resource on one node: from what is wished and what is observed it computes what should be done
// next. It is pure: no IO, no clock, no goroutines; the node asks again and again and carries the answer out, and a simulator can do the same.
//
// Rules it keeps (invariants I5 to I8): without --force only the holder of the token, as the log says, opens a timeline; a node gives the
// token away only to a live, consistent member whose history it contains; history is dropped only where it has no data; a replica follows
// one history and never mixes two.
package resource

import (
	"slices"

	"mars/internal/history"
	"mars/internal/volume"
)

// Switches are what the operator wants to run on a member.
type Switches struct {
	Attach bool `json:"attach"`
	Fetch  bool `json:"fetch"`
	Replay bool `json:"replay"`
	Sync   bool `json:"sync"`
}

// AllOn is how a new member begins.
var AllOn = Switches{Attach: true, Fetch: true, Replay: true, Sync: true}

// Facts are what a node says about its replica, and only about its own.
type Facts struct {
	Attached   bool              `json:"attached"`
	Path       history.Path      `json:"path"`
	Durable    history.LSN       `json:"durable"`
	Applied    history.LSN       `json:"applied"`
	Stamp      int64             `json:"stamp"` // Lamport time of the last write applied
	EndStamp   int64             `json:"end_stamp"`
	Size       int64             `json:"size"`
	DiskSize   int64             `json:"disk_size"`
	Consistent bool              `json:"consistent"`
	Writable   bool              `json:"writable"` // is the actual primary
	Sync       *volume.SyncState `json:"sync,omitempty"`
	Switches   Switches          `json:"switches"`
	Device     string            `json:"device,omitempty"`
	Users      []string          `json:"users,omitempty"`
	Disk       string            `json:"disk"`
	View       View              `json:"view"`
}

// Peer is another member as known here.
type Peer struct {
	Node   string
	Alive  bool
	Facts  *Facts // nil: never heard of
	Former Former
}

// Local is this node's replica as it is.
type Local struct {
	Open    bool   // the disk is attached and the log is open
	Missing bool   // there is no replica yet: it must be filled by a sync
	OpenErr string // why it could not be attached
	volume.Status
	DiskSize   int64
	Backlog    bool // more is unapplied than a primary may have
	Device     string
	Users      []string
	Replaying  bool     // replay is switched on, or has not come to rest since it was switched off
	Paused     bool     // a device that a former process has shown is still there, and its users (then in Users) wait
	Orphan     bool     // what the log needs next is nowhere to be had
	Lacking    []string // nodes that were asked for it and do not have it, or not intact
	FetchFrom  string
	FetchErr   string
	SyncErr    string
	PrimaryEnd history.LSN // newest end of the primary's log heard of; 0 = none
}

// Input is everything a decision depends on.
type Input struct {
	Self       string
	Designated string // node that shall be primary; empty = nobody
	Switches   Switches
	Local      Local
	Former     Former // logs that this node has thrown away
	Peers      []Peer // the other members, by node id
	Settled    bool   // the peers were listened to long enough since the start
}

// Role is what to do about the right to write.
type Role int

// At most one of these is to be done at a time.
const (
	RoleKeep     Role = iota
	RoleActivate      // open a timeline and let writers in
	RoleHandOver      // close the device, end the timeline, pass the token to Plan.To
	RolePass          // not primary but holder: pass the token to Plan.To
	RoleStop          // close the device and stop writing without a word in the log
)

// Plan is what should be so.
type Plan struct {
	Attach    bool
	Join      string // begin to fill a missing replica from this node
	Role      Role
	To        string
	Device    bool // show the device (after RoleActivate)
	GiveUp    bool // the paused device will not be continued: its users get errors
	Heal      bool // cut the log at its damage and fetch the rest again
	StartOver bool // throw away the replica, which is inconsistent and cannot become otherwise, and fill it anew
	DropTail  *history.Position
	Fetch     string // fetch from this node; empty = not
	Replay    bool   // also the primary's writeback
	Sync      string // copy from this node; empty = not
	Split     *Split
	WaitsFor  string // what keeps the wish from becoming true; empty = nothing
}

// Split describes a split brain between this node and another one.
type Split struct {
	With        string
	Fork        history.LSN
	Mine, Their history.LSN // bytes behind the fork
}

// Decide computes the plan.
func Decide(in Input) Plan {
	l := &in.Local
	if !in.Switches.Attach {
		return detached(&in)
	}
	p := Plan{Attach: true}
	switch {
	case l.Missing:
		p.GiveUp = l.Paused
		decideJoin(&in, &p)
	case !l.Open:
	case l.Writable:
		decidePrimary(&in, &p)
	default:
		decideSecondary(&in, &p)
	}
	return p
}

func detached(in *Input) Plan {
	switch {
	case in.Local.Writable:
		p := Plan{Role: RoleStop}
		p.busy(in)
		return p
	case in.Designated == in.Self:
		return Plan{WaitsFor: "attach"}
	}
	return Plan{}
}

func (in *Input) peer(node string) *Peer {
	for i := range in.Peers {
		if in.Peers[i].Node == node {
			return &in.Peers[i]
		}
	}
	return nil
}

func decideJoin(in *Input, p *Plan) {
	if !in.Switches.Sync {
		p.WaitsFor = "resume-sync"
		return
	}
	p.Join = SyncSource(*in)
	if p.Join == "" {
		p.WaitsFor = "a reachable member with a consistent replica to copy from"
	}
}

// SyncSource chooses whom to copy from: the designated primary if it writes, else somebody who writes, else the most advanced consistent member.
// There may be two who write, after a failover: a copy of the one that is not wanted would be worth nothing.
func SyncSource(in Input) string {
	best, bestRank := "", 0
	var bestAt history.LSN
	for _, x := range in.Peers {
		if !x.Alive || x.Facts == nil || !x.Facts.Attached || !x.Facts.Consistent {
			continue
		}
		n := 0
		switch {
		case x.Facts.Writable && x.Node == in.Designated:
			return x.Node
		case x.Facts.Writable:
			n = 1
		}
		if best == "" || n > bestRank || n == bestRank && x.Facts.Applied > bestAt {
			best, bestRank, bestAt = x.Node, n, x.Facts.Applied
		}
	}
	return best
}

// decidePrimary: this node has an open timeline.
func decidePrimary(in *Input, p *Plan) {
	p.Replay, p.Device = true, true
	p.Split = splitWithAny(in)
	if in.Designated == in.Self {
		if overtaken(in) {
			p.stop(in)
		}
		return
	}
	if in.Designated == "" {
		p.leave(in, in.Self)
		return
	}
	x := in.peer(in.Designated)
	switch {
	case x == nil:
		p.WaitsFor = "the designated primary, which is not a member"
	case !x.Alive || x.Facts == nil:
		p.WaitsFor = "the designated primary, which is unreachable"
	case forked(&in.Local.Path, &x.Facts.Path):
		// It was forced. It has its own history now; what is written here from now on can only be thrown away.
		p.stop(in)
	case !x.Facts.Attached || !x.Facts.Consistent:
		p.WaitsFor = "the designated primary's replica to be attached and consistent"
	default:
		p.leave(in, x.Node)
	}
}

// overtaken reports whether somebody has gone on by force from where this node stands, and has written. Nothing was written here since, so there is
// no split brain yet, and the next write here would make one. Who fetches first and opens a timeline then loses nothing.
func overtaken(in *Input) bool {
	return slices.ContainsFunc(in.Peers, func(x Peer) bool {
		if x.Facts == nil || x.Facts.Sync != nil {
			return false
		}
		r := history.Compare(&in.Local.Path, &x.Facts.Path)
		return !r.Unrelated && r.TailA == 0 && r.ModifiedB && x.Facts.Durable > r.Fork.LSN
	})
}

// stop plans to stop writing without a word in the log.
func (p *Plan) stop(in *Input) {
	p.Device, p.Role = false, RoleStop
	p.busy(in)
}

// leave plans the end of the tenure, which the users of the device can delay.
func (p *Plan) leave(in *Input, to string) {
	p.Device, p.Role, p.To = false, RoleHandOver, to
	p.busy(in)
}

func (p *Plan) busy(in *Input) {
	if len(in.Local.Users) > 0 {
		p.WaitsFor = "the device to be closed: " + in.Local.Users[0]
	}
}

// forked reports whether both have gone on since they parted.
func forked(a, b *history.Path) bool {
	r := history.Compare(a, b)
	return r.Unrelated || (r.TailA > 0 && r.TailB > 0)
}

// splitWithAny finds a member whose data exclude ours.
func splitWithAny(in *Input) *Split {
	for _, x := range in.Peers {
		if s := splitWith(in, &x); s != nil {
			return s
		}
	}
	return nil
}

func splitWith(in *Input, x *Peer) *Split {
	if x.Facts == nil || !x.Facts.Attached || len(x.Facts.Path.Timelines) == 0 || x.Facts.Sync != nil || in.Local.Sync != nil {
		return nil
	}
	r := history.Compare(&in.Local.Path, &x.Facts.Path)
	if !r.Split() {
		return nil
	}
	return &Split{With: x.Node, Fork: r.Fork.LSN, Mine: r.TailA, Their: r.TailB}
}

// decideSecondary: this node has no open timeline. It follows, and becomes primary when that is wished and the token is here.
func decideSecondary(in *Input, p *Plan) {
	p.Replay = in.Switches.Replay
	p.GiveUp = in.Local.Paused // unless this node is going on; whatever else it does now may change the content behind the users' backs
	if in.Local.Sync != nil {
		decideSync(in, p)
		return
	}
	if in.Local.Defect != nil {
		decideHeal(in, p)
		return
	}
	if in.Local.Path.Holder() == in.Self && decideHolder(in, p) {
		p.GiveUp = p.GiveUp && p.Role == RolePass
		return
	}
	follow(in, p)
	if in.Designated == in.Self && p.WaitsFor == "" {
		p.WaitsFor = waitForToken(in)
	}
}

// decideSync: the replica is being filled. When the log that it needs is gone everywhere it can only be filled anew; nothing is lost by that.
func decideSync(in *Input, p *Plan) {
	if in.Switches.Fetch {
		p.Fetch = fetchSource(in, nil)
	}
	switch {
	case p.Fetch != "" && slices.Contains(in.Local.Lacking, p.Fetch) && in.Switches.Sync && SyncSource(*in) != "":
		p.StartOver = true
	case in.Local.Sync.Copied:
		decideCopied(in, p)
	case !in.Switches.Sync:
		p.WaitsFor = "resume-sync"
	default:
		p.Sync = SyncSource(*in)
		if p.Sync == "" {
			p.WaitsFor = "a reachable member with a consistent replica to copy from"
		}
	}
}

// decideHeal: bytes of our own log are damaged. Somebody else may have them. What is behind the damage is given up only when a live member is
// known to have all that was ever durable here; else a copy that is merely longer than the intact part could cost what nobody else has.
func decideHeal(in *Input, p *Plan) {
	for _, x := range in.Peers {
		if !x.Alive || x.Facts == nil || forked(&in.Local.Path, &x.Facts.Path) || x.Facts.Durable < in.Local.KnownDurable {
			continue
		}
		p.Heal = in.Switches.Fetch
		if !p.Heal {
			p.WaitsFor = "resume-fetch to repair the log"
		}
		return
	}
	p.WaitsFor = "a member that has the damaged part of the log"
}

// follow chooses what to fetch, and drops a tail without data that the winner's history has replaced.
func follow(in *Input, p *Plan) {
	ref := reference(in)
	if ref == nil {
		p.Fetch = fetchIfOn(in, nil)
		return
	}
	r := history.Compare(&in.Local.Path, &ref.Facts.Path)
	if in.forcedInVain(ref, &r) {
		p.giveWay(in, ref, r.Fork)
		return
	}
	if !r.Unrelated && (r.TailA == 0 || r.TailB == 0) {
		p.Fetch = fetchIfOn(in, &ref.Facts.Path)
		return
	}
	// A tail without data gives way to who counts, and to data, whoever has them: they must not wait for an operator to say what is plain. What
	// replaces the tail must be durable there: facts may be old, and end with records that a power cut has taken since. Nothing has replaced
	// our tail then, and it may be the one that passed the token on.
	if !r.Unrelated && !r.ModifiedA && (authoritative(in, ref) || r.ModifiedB) && ref.Facts.Durable > r.Fork.LSN {
		p.giveWay(in, ref, r.Fork)
		return
	}
	if s := splitWith(in, ref); s != nil {
		p.Split = s
		// Our own writes belong onto our own disk, and so does what an operator has made this node primary with: a failover waits for the backlog.
		p.Replay = p.Replay && (in.Local.Path.Tip().Origin == in.Self || in.Designated == in.Self)
		return
	}
	p.WaitsFor = "node " + ref.Node + " to take back an empty timeline"
}

// giveWay drops our tail for the history of x. Not before x is heard: what is known of it may be from before a crash, here or there, and others have
// deleted log that we need without the tail.
func (p *Plan) giveWay(in *Input, x *Peer, fork history.Position) {
	switch {
	case !x.Alive:
		p.WaitsFor = "node " + x.Node + ", whose history has replaced a tail without data here, to be reachable"
	case in.Switches.Fetch:
		p.DropTail = &fork
	}
}

// forcedInVain reports whether our tail, without data, begins with a timeline that was forced off the one that ref is still primary on. ref will
// never follow it, and has not yet written what excludes it. Nothing can be lost: our log up to the fork is all of ref's that is known.
func (in *Input) forcedInVain(ref *Peer, r *history.Relation) bool {
	if r.Unrelated || r.TailA == 0 || r.TailB > 0 || r.ModifiedA || !ref.Facts.Writable || !authoritative(in, ref) {
		return false
	}
	return slices.ContainsFunc(in.Local.Path.Timelines, func(t history.Timeline) bool {
		return t.Forced && t.Parent == r.Fork.Timeline && t.Switch == r.Fork.LSN
	})
}

func fetchIfOn(in *Input, ref *history.Path) string {
	if !in.Switches.Fetch {
		return ""
	}
	return fetchSource(in, ref)
}

// authoritative: its history counts, not ours.
func authoritative(in *Input, x *Peer) bool {
	return x.Facts.Writable || (x.Node == in.Designated && in.Designated != in.Self)
}

// reference is the member whose history is to be followed: the actual primary if it is the designated one, the designated one, any actual
// primary, else the one with the longest log; nil if nobody is known.
func reference(in *Input) *Peer {
	var best *Peer
	for i := range in.Peers {
		x := &in.Peers[i]
		if x.Facts == nil || !x.Facts.Attached || len(x.Facts.Path.Timelines) == 0 || x.Facts.Sync != nil {
			continue
		}
		if x.Node == in.Designated {
			return x
		}
		if best == nil || rank(x) > rank(best) || (rank(x) == rank(best) && x.Facts.Path.End > best.Facts.Path.End) {
			best = x
		}
	}
	return best
}

func rank(x *Peer) int {
	switch {
	case x.Facts.Writable && x.Alive:
		return 2
	case x.Facts.Writable:
		return 1
	}
	return 0
}

// fetchSource chooses from whom to fetch: the primary if it can be reached, else whoever has most of the same history. Those who are known not
// to have what is needed are asked again only when there is nobody else.
func fetchSource(in *Input, ref *history.Path) string {
	best, lacking := "", ""
	var bestEnd history.LSN
	for i := range in.Peers {
		x := &in.Peers[i]
		if !in.canFetchFrom(x, ref) {
			continue
		}
		first := x.Facts.Writable && x.Node == in.Designated
		switch {
		case slices.Contains(in.Local.Lacking, x.Node):
			if lacking == "" || first {
				lacking = x.Node
			}
		case first:
			return x.Node
		case best == "" || x.Facts.Durable > bestEnd:
			best, bestEnd = x.Node, x.Facts.Durable
		}
	}
	if best == "" {
		return lacking
	}
	return best
}

// canFetchFrom reports whether x may have more of the history than this node. ref, if not nil, is the path that is to be followed.
func (in *Input) canFetchFrom(x *Peer, ref *history.Path) bool {
	if !x.Alive || x.Facts == nil || !x.Facts.Attached || forked(&in.Local.Path, &x.Facts.Path) || (ref != nil && forked(&x.Facts.Path, ref)) {
		return false
	}
	return x.Facts.Durable > in.Local.Path.End || x.Facts.Writable || x.Node == in.Designated
}

// LogNeeded returns the LSN below which no member needs the log any more. Everything is needed while a member has never been heard of, or is
// about to be filled from the beginning.
func LogNeeded(in Input) history.LSN {
	need := in.Local.Path.End
	for i := range in.Peers {
		need = min(need, neededBy(&in, &in.Peers[i]))
	}
	return need
}

// LogNeededWhenTight is LogNeeded for a node that is short of space for logs. Who may have to ship the log to everybody - the primary, and who
// is to be primary or could be - keeps what everybody needs; others keep only what those need.
func LogNeededWhenTight(in Input) history.LSN {
	if in.leads(in.Self, in.Local.Writable) {
		return LogNeeded(in)
	}
	need := in.Local.Path.End
	for i, x := range in.Peers {
		if in.leads(x.Node, x.Facts != nil && x.Facts.Writable) {
			need = min(need, neededBy(&in, &in.Peers[i]))
		}
	}
	return need
}

// leads reports whether a node is, shall be or may become primary, as far as is known here.
func (in *Input) leads(node string, writable bool) bool {
	return writable || in.Designated == node || in.Local.Path.Holder() == node
}

func neededBy(in *Input, x *Peer) history.LSN {
	if x.Facts == nil || len(x.Facts.Path.Timelines) == 0 {
		return 0
	}
	r := history.Compare(&x.Facts.Path, &in.Local.Path)
	switch {
	case r.Unrelated:
		return in.Local.Path.End // only a full sync helps it
	case r.TailA > 0:
		return r.Fork.LSN
	}
	return x.Facts.Durable
}

// SortPeers puts peers into the order that makes decisions reproducible.
func SortPeers(peers []Peer) {
	slices.SortFunc(peers, func(a, b Peer) int {
		if a.Node < b.Node {
			return -1
		}
		return 1
	})
}
