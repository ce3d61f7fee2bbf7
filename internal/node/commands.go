package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"mars/internal/cluster"
	"mars/internal/control"
	"mars/internal/resource"
)

// Do implements control.Backend.
func (n *Node) Do(ctx context.Context, c control.Command) (control.Result, error) {
	if f := clusterCommands[c.Verb]; f != nil {
		return f(n, ctx, c)
	}
	if n.cluster.ID() == "" {
		return control.Result{}, fmt.Errorf("node %s is in no cluster; `marsadm create-cluster` or `marsadm join-cluster HOST:PORT --token T` first", n.cfg.Name)
	}
	if n.cluster.Evicted() {
		return control.Result{}, fmt.Errorf("node %s was removed from its cluster; `marsadm leave-cluster --force`, then join again", n.cfg.Name)
	}
	if c.Verb == control.VerbCreateResource {
		return n.createResource(ctx, c)
	}
	e, err := n.find(c.Resource)
	if err != nil {
		return control.Result{}, err
	}
	f := resourceCommands[c.Verb]
	if f == nil {
		return control.Result{}, fmt.Errorf("%w %q", control.ErrUnknownVerb, c.Verb)
	}
	if e.members[n.self()] != nil { // right after the start its runner may not be there yet
		if _, err := n.awaitRunner(ctx, e.id); err != nil {
			return control.Result{}, err
		}
	}
	return f(n, ctx, e, c)
}

type clusterCommand func(*Node, context.Context, control.Command) (control.Result, error)

var clusterCommands = map[string]clusterCommand{
	control.VerbCreateCluster: func(n *Node, ctx context.Context, _ control.Command) (control.Result, error) {
		err := n.cluster.Create(ctx)
		return say("cluster %s created; node %s is its first member", n.cluster.ID(), n.cfg.Name), err
	},
	control.VerbJoinToken: func(n *Node, _ context.Context, c control.Command) (control.Result, error) {
		t, err := n.cluster.IssueToken(c.TTL)
		return control.Result{Token: t}, err
	},
	control.VerbJoinCluster: func(n *Node, ctx context.Context, c control.Command) (control.Result, error) {
		err := n.cluster.Join(ctx, c.Peer, c.Token)
		return say("node %s has joined cluster %s", n.cfg.Name, n.cluster.ID()), err
	},
	control.VerbLeaveCluster: (*Node).leaveCluster,
	control.VerbWaitCluster: func(n *Node, ctx context.Context, _ control.Command) (control.Result, error) {
		return say("all reachable nodes have each other's metadata"), n.cluster.Sync(ctx)
	},
}

type resourceCommand func(*Node, context.Context, entry, control.Command) (control.Result, error)

var resourceCommands map[string]resourceCommand

func init() { // a literal would be an initialization cycle
	resourceCommands = map[string]resourceCommand{
		control.VerbJoinResource:   (*Node).joinResource,
		control.VerbLeaveResource:  (*Node).leaveResource,
		control.VerbDeleteResource: (*Node).deleteResource,
		control.VerbPrimary:        (*Node).primary,
		control.VerbSecondary:      (*Node).secondary,
		control.VerbInvalidate:     (*Node).invalidate,
		control.VerbWaitResource:   (*Node).waitResource,
		control.VerbWaitUmount:     (*Node).waitUmount,
		control.VerbLogRotate:      (*Node).logRotate,
		control.VerbResize:         (*Node).resize,
	}
	for verb, change := range switchCommands {
		resourceCommands[verb] = func(n *Node, ctx context.Context, e entry, _ control.Command) (control.Result, error) {
			return n.setSwitches(ctx, e, change)
		}
	}
}

// switchCommand says what a command wishes and when that is so.
type switchCommand struct {
	change func(*resource.Switches)
	so     func(*resource.Local) bool
}

func attachedAndSo(l *resource.Local) bool { return l.Open || l.Missing }

var switchCommands = map[string]switchCommand{
	control.VerbAttach:       {func(s *resource.Switches) { s.Attach = true }, attachedAndSo},
	control.VerbDetach:       {func(s *resource.Switches) { s.Attach = false }, func(l *resource.Local) bool { return !l.Open && !l.Missing }},
	control.VerbUp:           {func(s *resource.Switches) { *s = resource.AllOn }, attachedAndSo},
	control.VerbDown:         {func(s *resource.Switches) { *s = resource.Switches{} }, func(l *resource.Local) bool { return !l.Open && !l.Missing }},
	control.VerbPauseFetch:   {func(s *resource.Switches) { s.Fetch = false }, func(l *resource.Local) bool { return l.FetchFrom == "" }},
	control.VerbResumeFetch:  {change: func(s *resource.Switches) { s.Fetch = true }},
	control.VerbPauseReplay:  {func(s *resource.Switches) { s.Replay = false }, func(l *resource.Local) bool { return !l.Replaying || l.Writable }},
	control.VerbResumeReplay: {change: func(s *resource.Switches) { s.Replay = true }},
	control.VerbPauseSync:    {change: func(s *resource.Switches) { s.Sync = false }},
	control.VerbResumeSync:   {change: func(s *resource.Switches) { s.Sync = true }},
}

func say(format string, args ...any) control.Result {
	return control.Result{Message: fmt.Sprintf(format, args...)}
}

// setSwitches changes this member's switches and waits until they have taken effect.
func (n *Node) setSwitches(ctx context.Context, e entry, c switchCommand) (control.Result, error) {
	r, err := n.mine(e)
	if err != nil {
		return control.Result{}, err
	}
	self := n.self()
	before := e.switchesOf(self)
	after := before
	c.change(&after)
	if before.Attach && !after.Attach {
		if err := r.deviceFree(ctx); err != nil {
			return control.Result{}, err
		}
	}
	if after != before {
		if err := n.cluster.Put(key(e.id, "switch", self), encode(after)); err != nil {
			return control.Result{}, err
		}
	}
	r.wake()
	err = r.await(ctx, func(in resource.Input, p resource.Plan) (bool, error) {
		if in.Switches != after {
			return false, nil
		}
		if in.Local.OpenErr != "" && after.Attach {
			return false, errors.New(in.Local.OpenErr)
		}
		return c.so == nil || c.so(&in.Local), nil
	})
	if err != nil && !after.Attach && before.Attach {
		// A device in use keeps the disk attached; the wish must not come true behind the operator's back later.
		err = errors.Join(err, n.cluster.Put(key(e.id, "switch", self), encode(before)))
	}
	return control.Result{}, err
}

// lingering is how long a user of a device may take to go away: a client that has just closed its connection, udev looking at what changed.
const lingering = 2 * time.Second

// deviceFree returns nil when the device has no users, or an error that names them.
func (r *runner) deviceFree(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lingering)
	defer cancel()
	for {
		in, ok := r.observe()
		if !ok || len(in.Local.Users) == 0 {
			return nil
		}
		if pauseOr(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("the device of %s on %s is in use: %s; close it first (`marsadm wait-umount %s` waits for that)", r.name(), r.n.cfg.Name,
				strings.Join(in.Local.Users, ", "), r.name())
		}
	}
}

// mine returns the runner of a resource that this node must be a member of.
func (n *Node) mine(e entry) (*runner, error) {
	r := n.runner(e.id)
	if r == nil {
		return nil, fmt.Errorf("node %s is no member of resource %s; `marsadm join-resource %s DISK` makes it one", n.cfg.Name, e.name, e.name)
	}
	return r, nil
}

// await returns when the condition holds after some round of the runner, or fails, or with what is waited for when ctx ends.
func (r *runner) await(ctx context.Context, cond func(resource.Input, resource.Plan) (bool, error)) error {
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		in, ok := r.observe()
		if !ok {
			return fmt.Errorf("resource %s is gone", r.name())
		}
		plan := resource.Decide(in)
		if done, err := cond(in, plan); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return r.timedOut(ctx, in, plan)
		case <-r.done:
			return errClosed
		case <-changed:
		case <-poll.C:
		}
	}
}

// timedOut names what was waited for (invariant I11).
func (r *runner) timedOut(ctx context.Context, in resource.Input, p resource.Plan) error {
	r.mu.Lock()
	what := r.waiting.what
	r.mu.Unlock()
	if p.WaitsFor != "" {
		what = p.WaitsFor
	}
	if what == "" {
		return context.Cause(ctx)
	}
	return fmt.Errorf("resource %s: gave up waiting for %s", r.name(), r.n.withNames(what, in))
}

func (n *Node) leaveCluster(ctx context.Context, c control.Command) (control.Result, error) {
	if c.Host != "" {
		return n.removeNode(c.Host)
	}
	self := n.self()
	for _, e := range n.catalog() {
		if e.members[self] != nil && !n.cluster.Evicted() {
			return control.Result{}, fmt.Errorf("node %s is still a member of resource %s; `marsadm leave-resource %s` first", n.cfg.Name, e.name, e.name)
		}
	}
	err := n.cluster.Leave(ctx, cluster.LeaveOptions{Force: c.Force})
	return say("node %s is in no cluster any more", n.cfg.Name), err
}

// removeNode ends the membership of a node that is gone for good, so that its name is free again.
func (n *Node) removeNode(host string) (control.Result, error) {
	info, err := n.cluster.Node(host)
	if err != nil {
		return control.Result{}, err
	}
	for _, e := range n.catalog() {
		if e.members[info.ID] != nil {
			return control.Result{}, fmt.Errorf("node %s is still a member of resource %s; `marsadm leave-resource %s --host %s --force` first", info.Name, e.name, e.name, info.Name)
		}
	}
	return say("node %s is removed from the cluster; should it come back, it is refused and has to join again", info.Name), n.cluster.RemoveNode(info.ID)
}
