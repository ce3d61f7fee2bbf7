package node

import (
	"context"
	"fmt"
	"strings"

	"mars/internal/bytesize"
	"mars/internal/control"
	"mars/internal/resource"
)

// waitResource waits for a condition of this member.
func (n *Node) waitResource(ctx context.Context, e entry, c control.Command) (control.Result, error) {
	r, err := n.mine(e)
	if err != nil {
		return control.Result{}, err
	}
	what, err := control.ParseCondition(c.Condition)
	if err != nil {
		return control.Result{}, err
	}
	holds := conditions[what]
	if holds == nil {
		return control.Result{}, fmt.Errorf("condition %q is not known", c.Condition)
	}
	err = r.await(ctx, func(in resource.Input, p resource.Plan) (bool, error) {
		return holds(in, resource.Describe(in, p)), nil
	})
	if err != nil {
		in, _ := r.observe()
		v := resource.Describe(in, resource.Decide(in))
		err = fmt.Errorf("waiting for %s on %s: %w (it is %s, %s, %s)", what, n.cfg.Name, err, v.DiskState, v.ReplState, v.Role)
	}
	return control.Result{}, err
}

var conditions = map[string]func(resource.Input, resource.View) bool{
	control.CondUpToDate: func(in resource.Input, v resource.View) bool {
		return v.DiskState == control.DiskUpToDate && heardPrimary(in) || v.DiskState == control.DiskWriteBack
	},
	control.CondConsistent: func(in resource.Input, _ resource.View) bool { return in.Local.Open && in.Local.Consistent },
	control.CondPrimary:    func(in resource.Input, _ resource.View) bool { return in.Local.Writable },
	control.CondSecondary: func(in resource.Input, _ resource.View) bool {
		return !in.Local.Writable && in.Designated != in.Self
	},
	control.CondDeviceOn:     func(in resource.Input, _ resource.View) bool { return in.Local.Device != "" },
	control.CondDeviceOff:    func(in resource.Input, _ resource.View) bool { return in.Local.Device == "" },
	control.CondAttachOn:     func(in resource.Input, _ resource.View) bool { return in.Local.Open },
	control.CondAttachOff:    func(in resource.Input, _ resource.View) bool { return !in.Local.Open },
	control.CondFetchOn:      func(in resource.Input, _ resource.View) bool { return in.Local.FetchFrom != "" },
	control.CondFetchOff:     func(in resource.Input, _ resource.View) bool { return in.Local.FetchFrom == "" },
	control.CondFetchReached: fetchReached,
	control.CondReplayOn:     func(in resource.Input, _ resource.View) bool { return in.Local.Open && in.Switches.Replay },
	control.CondReplayOff:    func(in resource.Input, _ resource.View) bool { return !in.Local.Open || !in.Switches.Replay },
	control.CondReplayReached: func(in resource.Input, v resource.View) bool {
		return fetchReached(in, v) && in.Local.Applied.LSN == in.Local.Path.End
	},
	control.CondSyncOn:  func(in resource.Input, _ resource.View) bool { return in.Local.Open && in.Local.Sync != nil },
	control.CondSyncOff: func(in resource.Input, _ resource.View) bool { return in.Local.Open && in.Local.Sync == nil },
}

// heardPrimary: without having heard of the primary since the fetch began, nobody knows whether this is up to date.
func heardPrimary(in resource.Input) bool {
	return in.Local.Writable || in.Local.PrimaryEnd > 0 || in.Designated == "" || len(in.Peers) == 0
}

func fetchReached(in resource.Input, _ resource.View) bool {
	l := &in.Local
	if !l.Open || !heardPrimary(in) {
		return false
	}
	for _, p := range in.Peers {
		if p.Facts != nil && p.Facts.Writable && p.Facts.Durable > l.Durable {
			return false
		}
	}
	return l.Durable >= l.PrimaryEnd || l.Writable
}

// waitUmount waits until no device of the resource is in use anywhere.
func (n *Node) waitUmount(ctx context.Context, e entry, _ control.Command) (control.Result, error) {
	r, err := n.mine(e)
	if err != nil {
		return control.Result{}, err
	}
	var users []string
	err = r.await(ctx, func(in resource.Input, _ resource.Plan) (bool, error) {
		users = append([]string(nil), in.Local.Users...)
		for _, p := range in.Peers {
			if p.Facts != nil && p.Alive {
				users = append(users, p.Facts.Users...)
			}
		}
		return len(users) == 0, nil
	})
	if err != nil && len(users) > 0 {
		err = fmt.Errorf("the device of %s is still in use: %s", e.name, strings.Join(users, ", "))
	}
	return control.Result{}, err
}

// logRotate makes the primary begin a new segment.
func (n *Node) logRotate(_ context.Context, e entry, _ control.Command) (control.Result, error) {
	r, err := n.mine(e)
	if err != nil {
		return control.Result{}, err
	}
	v := r.volume()
	if v == nil || !v.Status().Writable {
		return control.Result{}, fmt.Errorf("node %s is not primary of %s: only the primary rotates the log", n.cfg.Name, e.name)
	}
	v.Log().Rotate()
	return say("the next write to %s opens a new log segment", e.name), nil
}

// resize grows the resource to the size given, or to the smallest disk of its members.
func (n *Node) resize(_ context.Context, e entry, c control.Command) (control.Result, error) {
	r, err := n.mine(e)
	if err != nil {
		return control.Result{}, err
	}
	rep, v := r.replica(), r.volume()
	if v == nil || !v.Status().Writable {
		return control.Result{}, fmt.Errorf("node %s is not primary of %s: resize is the primary's", n.cfg.Name, e.name)
	}
	where := n.cfg.Name
	room, err := rep.diskSize()
	if err != nil {
		return control.Result{}, err
	}
	for node := range e.members {
		if node == n.self() {
			continue
		}
		f := e.facts[node]
		if f == nil || !f.Attached {
			return control.Result{}, fmt.Errorf("the size of the disk of %s on node %s is not known now; attach it", e.name, n.nodeName(node))
		}
		if f.DiskSize < room {
			room, where = f.DiskSize, n.nodeName(node)
		}
	}
	size := c.Size
	if size == 0 {
		size = room
	}
	if size > room {
		return control.Result{}, fmt.Errorf("%s is more than the disk of %s on node %s has (%s); enlarge it first", bytesize.Format(size), e.name, where, bytesize.Format(room))
	}
	if err := v.Resize(size); err != nil {
		return control.Result{}, err
	}
	return say("resource %s has %s now", e.name, bytesize.Format(size)), rep.resized()
}
