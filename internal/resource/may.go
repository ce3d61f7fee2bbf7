package resource

import (
	"errors"
	"fmt"

	"mars/internal/history"
)

// What the commands of an operator may do, decided from what is known here. The errors say what to do instead; nodes appear in them by their
// ids, and RES stands for the name of the resource: names are the node's business.

// Attaching reports whether the disk shall be attached and nobody has tried yet. Right after the start nothing can be said about a replica until
// that is over, which takes only a moment.
func Attaching(in *Input) bool {
	l := &in.Local
	return in.Switches.Attach && !l.Open && !l.Missing && l.OpenErr == ""
}

// MayBePrimary refuses what not even --force can make right.
func MayBePrimary(in *Input) error {
	l := &in.Local
	switch {
	case !in.Switches.Attach:
		return errors.New("the replica of RES is detached; `marsadm attach RES` first")
	case !l.Open && l.OpenErr != "":
		return errors.New(l.OpenErr)
	case l.Missing || l.Sync != nil:
		return errors.New("the sync of RES is not complete: the replica is inconsistent; `marsadm wait-resource RES sync-off`")
	case !l.Open:
		return errors.New("the replica of RES is not attached yet")
	case l.Defect != nil:
		return fmt.Errorf("the log of RES is defective: %w; `marsadm invalidate RES` or use another replica", l.Defect)
	case !l.Consistent:
		return errors.New("the replica of RES is inconsistent: log that must be replayed is missing")
	}
	return nil
}

// MayWish tells whether a planned handover to this node has a chance.
func MayWish(in *Input) error {
	if !in.Switches.Fetch || !in.Switches.Replay {
		return errors.New("fetch or replay of RES is paused; `marsadm up RES` first")
	}
	if s := Decide(*in).Split; s != nil {
		return fmt.Errorf("split brain of RES with node %s: `marsadm invalidate RES` on the side that loses, first", s.With)
	}
	return HolderReachable(in)
}

// HolderReachable refuses early when the one who must pass the token cannot be asked.
func HolderReachable(in *Input) error {
	for _, p := range in.Peers {
		if p.Facts != nil && p.Facts.Writable && !p.Alive {
			return fmt.Errorf("node %s is primary of RES and unreachable: wait for it, or fail over with `marsadm primary RES --force`, which loses what it has not shipped", p.Node)
		}
	}
	h := in.Local.Path.Holder()
	if in.formerOf(h).Voids(&in.Local.Path) && !restReachable(in) {
		return fmt.Errorf("the log of RES here ends at LSN %d with the right to write for node %s, which has used it already: its log went on from there "+
			"and was thrown away (invalidate, leave-resource); no reachable member has the rest: wait for one that has, or give the rest up with "+
			"`marsadm primary RES --force`", in.Local.Path.End, h)
	}
	if p := in.peer(h); p != nil && !p.Alive && !laterHolder(in, h) {
		return fmt.Errorf("node %s holds the right to write RES and is unreachable: wait for it, or fail over with `marsadm primary RES --force`, which loses what it has not shipped", h)
	}
	return nil
}

// laterHolder reports whether some live member's history goes on behind ours and names another holder.
func laterHolder(in *Input, h string) bool {
	for _, p := range in.Peers {
		if p.Alive && p.Facts != nil && p.Facts.Path.Holder() != h && history.Compare(&in.Local.Path, &p.Facts.Path).TailB > 0 {
			return true
		}
	}
	return false
}

// restReachable reports whether a live member has all of our log and more.
func restReachable(in *Input) bool {
	for _, p := range in.Peers {
		if p.Alive && p.Facts != nil {
			if r := history.Compare(&in.Local.Path, &p.Facts.Path); !r.Unrelated && r.TailA == 0 && r.TailB > 0 {
				return true
			}
		}
	}
	return false
}

// MayForce refuses a forced failover while the present primary can be reached and would hand over, unless fetch was switched off, which says
// that the operator means it.
func MayForce(in *Input) error {
	for _, p := range in.Peers {
		if p.Alive && p.Facts != nil && p.Facts.Writable && in.Switches.Fetch {
			return fmt.Errorf("node %s is primary of RES and reachable: use `marsadm primary RES` without --force; if a split brain is really wanted, `marsadm pause-fetch RES` first", p.Node)
		}
	}
	return nil
}

// MayInvalidate refuses to throw away what cannot be filled anew.
func MayInvalidate(in *Input) error {
	switch {
	case in.Local.Writable || in.Designated == in.Self:
		return errors.New("this node is primary of RES; only a secondary can be invalidated: make another node primary first")
	case SyncSource(*in) == "":
		return errors.New("no reachable member has a consistent replica of RES to copy from; nothing was changed")
	case !in.Local.Open && !in.Local.Missing:
		return errors.New("the replica of RES is detached; `marsadm attach RES` first")
	}
	return nil
}

// MayLeave refuses what would leave the resource without anybody who may write. Only the word of the operator (force) lets a node go that may have
// got the right to write from somebody who is not heard.
func MayLeave(in *Input, force bool) error {
	switch {
	case len(in.Peers) == 0:
		return errors.New("this is the last replica of RES; `marsadm delete-resource RES` deletes the resource")
	case in.Local.Writable || in.Designated == in.Self:
		return errors.New("this node is primary of RES; make another node primary first")
	case HoldsToken(in):
		return errors.New("this node holds the right to write RES; make another node primary first")
	}
	if force {
		return nil
	}
	if h := in.Local.Path.Successor; h != "" && onlyHere(in) {
		return fmt.Errorf("the right to write RES was passed to node %s, and no other member has the log up to there yet: wait until it is primary, or use "+
			"--force, which may lose the end of the log", h)
	}
	return mayBePassed(in)
}

// onlyHere reports whether somebody waits for the end of the log here, and nobody else is known to have it.
func onlyHere(in *Input) bool {
	waits := false
	for i := range in.Peers {
		x := &in.Peers[i]
		if x.Facts == nil {
			continue
		}
		r := history.Compare(&in.Local.Path, &x.Facts.Path)
		if r.TailA == 0 && !r.Unrelated {
			return false
		}
		waits = waits || r.TailB == 0 && !r.Unrelated
	}
	return waits && in.Local.Open
}

// mayBePassed returns an error if the right to write may have been passed to this node by log that is not here yet.
func mayBePassed(in *Input) error {
	p := &in.Local.Path
	x := furthest(in)
	if x != nil {
		p = &x.Facts.Path
	}
	h := p.Holder()
	if h == in.Self && x != nil && !in.Former.Voids(p) {
		return fmt.Errorf("the right to write RES is this node's by log that node %s has and that is not here yet: wait for it and make another node "+
			"primary first, or use --force", x.Node)
	}
	if o := in.peer(h); o != nil && !o.Alive {
		return fmt.Errorf("node %s holds the right to write RES and is unreachable; it may have passed it to this node meanwhile: wait for it, "+
			"make another node primary with --force first, or use --force here", h)
	}
	return nil
}

// furthest returns the member whose history, as known here, goes on furthest from where this node is; nil if none does.
func furthest(in *Input) *Peer {
	p := &in.Local.Path
	var best *Peer
	for i := range in.Peers {
		x := &in.Peers[i]
		if x.Facts == nil || len(x.Facts.Path.Timelines) == 0 || x.Facts.Sync != nil {
			continue
		}
		if r := history.Compare(p, &x.Facts.Path); r.Contained() && r.TailB > 0 {
			p, best = &x.Facts.Path, x
		}
	}
	return best
}

// HoldsToken reports whether the right to write would go with this node. Where its own replica cannot tell, the histories of the others do.
func HoldsToken(in *Input) bool {
	if l := &in.Local; l.Open && l.Sync == nil {
		return l.Path.Holder() == in.Self && Decide(*in).Split == nil && !abandoned(in) && !in.Former.Voids(&l.Path)
	}
	ref := reference(in)
	if ref == nil {
		return WorthKeeping(in)
	}
	return ref.Facts.Path.Holder() == in.Self && !in.Former.Voids(&ref.Facts.Path)
}

// WorthKeeping reports whether this node's replica may be one that others can be filled from. Of a detached one nobody knows better.
func WorthKeeping(in *Input) bool {
	l := &in.Local
	return l.Open && l.Consistent || !l.Open && !l.Missing
}

// abandoned reports whether another member has gone on without us, so that the token here is worth nothing.
func abandoned(in *Input) bool {
	for _, p := range in.Peers {
		if p.Facts != nil && history.Compare(&in.Local.Path, &p.Facts.Path).TailB > 0 {
			return true
		}
	}
	return false
}
