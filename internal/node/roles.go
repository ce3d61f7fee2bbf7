package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"mars/internal/bytesize"
	"mars/internal/control"
	"mars/internal/history"
	"mars/internal/lamport"
	"mars/internal/resource"
	"mars/internal/volume"
)

// primary makes this node primary: planned, or with --force.
func (n *Node) primary(ctx context.Context, e entry, c control.Command) (control.Result, error) {
	r, err := n.mine(e)
	if err != nil {
		return control.Result{}, err
	}
	in, err := r.settled(ctx)
	if err == nil && c.Force {
		in, err = r.informed(ctx)
	}
	if err != nil {
		return control.Result{}, err
	}
	if in.Local.Writable && in.Designated == in.Self {
		return say("node %s is primary of resource %s already; the device is %s", n.cfg.Name, e.name, in.Local.Device), nil
	}
	if err := resource.MayBePrimary(&in); err != nil {
		return control.Result{}, n.refusal(e, in, err)
	}
	if c.Force {
		return n.primaryForced(ctx, e, r, in)
	}
	return n.primaryPlanned(ctx, e, r, in)
}

// refusal puts names into what package resource says.
func (n *Node) refusal(e entry, in resource.Input, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("node %s: %s", n.cfg.Name, strings.ReplaceAll(n.withNames(err.Error(), in), "RES", e.name))
}

// settled observes when there is something to be observed: right after the start it takes a moment until the disk is attached, or cannot be, and until
// the peers have been heard, or will not be (primary_wait).
func (r *runner) settled(ctx context.Context) (in resource.Input, err error) {
	err = r.await(ctx, func(now resource.Input, _ resource.Plan) (bool, error) {
		in = now
		return in.Settled && !resource.Attaching(&in), nil
	})
	if err != nil && !in.Settled {
		return in, fmt.Errorf("%w: marsd has just been started and still listens for the other nodes", err)
	}
	if err != nil {
		return in, fmt.Errorf("%w: the disk is not attached yet", err)
	}
	return in, nil
}

// informed observes when this node has the metadata of all that are alive: what is known of a peer may be older than the contact with it.
func (r *runner) informed(ctx context.Context) (resource.Input, error) {
	if err := r.n.cluster.Sync(ctx); err != nil {
		return resource.Input{}, err
	}
	in, ok := r.observe()
	if !ok {
		return in, fmt.Errorf("resource %s is gone", r.name())
	}
	return in, nil
}

// primaryPlanned wishes for the role and waits until the holder has passed the token and the device is shown. If that does not come true, the
// wish is taken back.
func (n *Node) primaryPlanned(ctx context.Context, e entry, r *runner, in resource.Input) (control.Result, error) {
	if err := resource.MayWish(&in); err != nil {
		return control.Result{}, n.refusal(e, in, err)
	}
	k := key(e.id, "primary")
	if err := n.cluster.Put(k, encode(in.Self)); err != nil {
		return control.Result{}, err
	}
	_, mine, _ := n.cluster.Get(k)
	r.wake()
	err := r.await(ctx, func(now resource.Input, _ resource.Plan) (bool, error) {
		if now.Designated != in.Self {
			return false, fmt.Errorf("somebody else has designated %q as primary of %s meanwhile", n.nodeName(now.Designated), e.name)
		}
		if now.Local.Writable {
			return now.Local.Device != "", nil
		}
		return false, n.refusal(e, now, resource.HolderReachable(&now))
	})
	if err != nil {
		return control.Result{}, errors.Join(err, n.takeBack(e, in.Designated, mine))
	}
	path := r.devicePath()
	return say("node %s is primary of resource %s; the device is %s", n.cfg.Name, e.name, path), nil
}

// takeBack restores the designation if nobody has changed it since ours.
func (n *Node) takeBack(e entry, before string, ours lamport.Stamp) error {
	now := n.catalog()[e.id]
	if r := n.runner(e.id); r == nil || r.volume() == nil || r.volume().Status().Writable || now.since != ours || before == n.self() {
		return nil
	}
	return n.cluster.Put(key(e.id, "primary"), encode(before))
}

// primaryForced creates a token out of nothing (a failover). It refuses while the present primary can be reached and would hand over, unless
// fetch was switched off, which says that the operator means it.
func (n *Node) primaryForced(ctx context.Context, e entry, r *runner, in resource.Input) (control.Result, error) {
	if err := resource.MayForce(&in); err != nil {
		return control.Result{}, n.refusal(e, in, err)
	}
	if err := n.cluster.Put(key(e.id, "primary"), encode(in.Self)); err != nil {
		return control.Result{}, err
	}
	lost := n.lostBy(in)
	err := n.activateForced(ctx, r)
	if err != nil {
		return control.Result{}, err
	}
	if err := r.await(ctx, func(now resource.Input, _ resource.Plan) (bool, error) {
		return now.Local.Writable && now.Local.Device != "", nil
	}); err != nil {
		return control.Result{}, err
	}
	path := r.devicePath()
	return say("node %s is primary of resource %s by force; the device is %s\n%s", n.cfg.Name, e.name, path, lost), nil
}

// activateForced opens a timeline on the runner's goroutine, as soon as the backlog allows.
func (n *Node) activateForced(ctx context.Context, r *runner) error {
	for {
		err := r.do(ctx, func() error {
			v := r.volume()
			if v == nil {
				return errors.New("detached meanwhile")
			}
			if v.Status().Writable {
				return nil
			}
			rep := r.replica()
			rep.fetch.retarget("") // a chunk must not arrive between the last look at the log and the new timeline
			now, ok := r.observe()
			if !ok {
				return errClosed
			}
			return r.activate(n.self(), resource.OpensByForce(&now))
		})
		if !errors.Is(err, volume.ErrBacklog) {
			return err
		}
		if e := pauseOr(ctx, 50*time.Millisecond); e != nil {
			return fmt.Errorf("%w: %w", err, e)
		}
	}
}

func pauseOr(ctx context.Context, d time.Duration) error {
	sleep(ctx, d)
	return ctx.Err()
}

// lostBy says what is known to be lost by a failover (invariant I6).
func (n *Node) lostBy(in resource.Input) string {
	out := "no other member is known to have more log than this one"
	for _, p := range in.Peers {
		if p.Facts == nil {
			continue
		}
		if r := history.Compare(&in.Local.Path, &p.Facts.Path); !r.Unrelated && r.TailB > 0 {
			out = fmt.Sprintf("left behind: at least %s of log from LSN %d on, which node %s has", bytesize.Format(int64(r.TailB)), r.Fork.LSN, n.nodeName(p.Node))
		}
	}
	return out
}

// secondary gives the role up without naming a successor. A primary command given elsewhere at the same time wins.
func (n *Node) secondary(ctx context.Context, e entry, _ control.Command) (control.Result, error) {
	r, err := n.mine(e)
	if err != nil {
		return control.Result{}, err
	}
	self := n.self()
	if err := r.deviceFree(ctx); err != nil {
		return control.Result{}, err
	}
	if e.designated == self {
		if err := n.cluster.PutAfter(key(e.id, "primary"), encode(""), e.since); err != nil {
			return control.Result{}, err
		}
		_, ours, _ := n.cluster.Get(key(e.id, "primary"))
		r.wake()
		err = r.await(ctx, func(in resource.Input, _ resource.Plan) (bool, error) {
			return !in.Local.Writable, nil
		})
		if err != nil {
			if now := n.catalog()[e.id]; now.since == ours {
				err = errors.Join(err, n.cluster.Put(key(e.id, "primary"), encode(self)))
			}
			return control.Result{}, err
		}
		return say("node %s is secondary of resource %s; nobody is primary", n.cfg.Name, e.name), nil
	}
	err = r.await(ctx, func(in resource.Input, _ resource.Plan) (bool, error) { return !in.Local.Writable, nil })
	return say("node %s is secondary of resource %s", n.cfg.Name, e.name), err
}

// invalidate throws this replica's content and history away and fills it anew.
func (n *Node) invalidate(ctx context.Context, e entry, _ control.Command) (control.Result, error) {
	r, err := n.mine(e)
	if err != nil {
		return control.Result{}, err
	}
	in, err := r.settled(ctx)
	if err == nil {
		in, err = r.informed(ctx)
	}
	if err != nil {
		return control.Result{}, err
	}
	if err := resource.MayInvalidate(&in); err != nil {
		return control.Result{}, n.refusal(e, in, err)
	}
	lost := thrownAway(in)
	err = r.do(ctx, func() error {
		undo, err := r.confirmSource(resource.SyncSource(in))
		if err != nil {
			return err
		}
		if err := r.reset(); err != nil {
			undo()
			return err
		}
		return nil
	})
	if err != nil {
		return control.Result{}, err
	}
	n.log.Warn("replica invalidated by the operator", "res", e.name, "lost", lost)
	err = r.await(ctx, func(in resource.Input, _ resource.Plan) (bool, error) { return in.Local.Open, nil })
	return say("the replica of %s on %s is being filled anew; %s", e.name, n.cfg.Name, lost), err
}

// thrownAway says which part of the history only this node had (invariant I6).
func thrownAway(in resource.Input) string {
	if !in.Local.Open {
		return "it had no history"
	}
	worst, from := history.LSN(math.MaxInt64), history.LSN(0)
	for _, p := range in.Peers {
		if p.Facts == nil {
			continue
		}
		r := history.Compare(&in.Local.Path, &p.Facts.Path)
		if r.TailA == 0 || !r.ModifiedA || writesOurTimeline(in, p) {
			return "nothing is lost: others have its history"
		}
		if r.TailA < worst {
			worst, from = r.TailA, r.Fork.LSN
		}
	}
	if worst == math.MaxInt64 {
		return "what other members have of it is not known"
	}
	return fmt.Sprintf("thrown away: %s of log from LSN %d on, which no other member has", bytesize.Format(int64(worst)), from)
}

// writesOurTimeline: what we have on the timeline of a primary came from it, so it has that, however old the facts are that we have of it.
func writesOurTimeline(in resource.Input, p resource.Peer) bool {
	return p.Facts.Writable && p.Facts.Path.Tip() == in.Local.Path.Tip() && p.Facts.Path.Tip().Origin == p.Node
}
