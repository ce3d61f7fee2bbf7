package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"mars/internal/cluster"
	"mars/internal/control"
	"mars/internal/lamport"
	"mars/internal/resource"
)

// Status implements control.Backend.
func (n *Node) Status(context.Context) (control.Status, error) {
	now := time.Now()
	self := n.cluster.Self()
	s := control.Status{Version: n.version, Time: now, Node: self.Name, Cluster: n.cluster.ID(), LogStore: n.store.status(),
		Nodes: []control.Node{}, Resources: []control.Resource{}}
	for _, x := range n.cluster.Nodes() {
		s.Messages = append(s.Messages, clockMessage(x, now)...)
		s.Nodes = append(s.Nodes, control.Node{Name: x.Name, ID: x.ID, Addr: x.Addr, Self: x.ID == self.ID, Alive: x.Alive, LastContactSeconds: since(now, x.LastContact)})
	}
	if n.cluster.Evicted() {
		s.Messages = append(s.Messages, control.Message{Level: control.LevelErr, Key: "evicted", Since: now,
			Text: "this node was removed from its cluster by another member; leave-cluster --force, then join again"})
	}
	c := n.catalog()
	for _, e := range c {
		s.Resources = append(s.Resources, n.resourceStatus(e, now))
	}
	slices.SortFunc(s.Resources, func(a, b control.Resource) int { return strings.Compare(a.Name+a.ID, b.Name+b.ID) })
	for i := 1; i < len(s.Resources); i++ {
		if a, b := s.Resources[i-1], s.Resources[i]; a.Name == b.Name {
			s.Messages = append(s.Messages, control.Message{Level: control.LevelErr, Key: "name-collision", Since: now,
				Text: "two resources are called " + a.Name + " (" + a.ID + ", " + b.ID + "): delete one of them by its id"})
		}
	}
	return s, nil
}

// clockShown is from when on a difference of clocks is shown: more than what a slow line or a process that was stopped for a while can pretend.
const clockShown = time.Minute

// clockMessage says when a node's clock and the one here are far apart. Which of them is wrong nobody here can know.
func clockMessage(x cluster.NodeInfo, now time.Time) []control.Message {
	by, where, whose := x.ClockAhead, "ahead of", "its changes are refused here"
	if by < 0 {
		by, where, whose = -by, "behind", "changes made here are refused there"
	}
	switch by = by.Round(time.Second); {
	case by <= clockShown:
		return nil
	case by <= lamport.MaxAhead:
		return []control.Message{{Level: control.LevelWarn, Key: "clock", Since: now,
			Text: fmt.Sprintf("the clock of node %s is %v %s the one here: correct the wrong one", x.Name, by, where)}}
	}
	return []control.Message{{Level: control.LevelErr, Key: "clock", Since: now,
		Text: fmt.Sprintf("the clock of node %s is %v %s the one here, and %s until the wrong one is corrected", x.Name, by, where, whose)}}
}

func since(now, t time.Time) float64 {
	if t.IsZero() {
		return -1
	}
	return max(0, now.Sub(t).Seconds())
}

func (n *Node) resourceStatus(e entry, now time.Time) control.Resource {
	r := control.Resource{Name: e.name, ID: e.id, DesignatedPrimary: n.nodeName(e.designated), Members: []control.Member{}}
	for node := range e.members {
		m, f := n.memberStatus(e, node, now)
		r.Members = append(r.Members, m)
		if f == nil {
			continue
		}
		r.SizeBytes = max(r.SizeBytes, f.Size)
		if f.Writable && m.Alive { // of one that cannot be heard nobody knows
			r.ActualPrimary = append(r.ActualPrimary, m.Node)
		}
		if f.View.Split != "" && r.SplitBrain == "" {
			r.SplitBrain = m.Node + " " + f.View.Split
		}
	}
	slices.Sort(r.ActualPrimary)
	slices.SortFunc(r.Members, func(a, b control.Member) int {
		if a.Self != b.Self {
			if a.Self {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Node, b.Node)
	})
	return r
}

// memberStatus describes a member: this node's replica as it is now, another one as it has told.
func (n *Node) memberStatus(e entry, node string, now time.Time) (control.Member, *resource.Facts) {
	self := node == n.self()
	m := control.Member{Node: n.nodeName(node), Self: self, Alive: self, Disk: e.members[node].Disk, Switches: control.Switches(e.switchesOf(node)),
		DiskState: control.DiskDetached, ReplState: control.ReplUnresponsive, Role: control.RoleSecondary, LastContactSeconds: -1}
	f := e.facts[node]
	if self {
		m.LastContactSeconds = 0
		if r := n.runner(e.id); r != nil {
			now := r.currentFacts()
			f = &now
		}
	} else if info, err := n.cluster.Node(node); err == nil {
		m.Alive, m.LastContactSeconds = info.Alive, since(now, info.LastContact)
	}
	if f == nil {
		return m, nil
	}
	m.DiskState, m.ReplState, m.Role = f.View.DiskState, f.View.ReplState, f.View.Role
	if !m.Alive {
		m.ReplState = control.ReplUnresponsive
	}
	m.Consistent, m.Device, m.Users = f.Consistent, f.Device, f.Users
	if t := f.Path.Tip(); t.ID != 0 {
		m.Timeline = t.ID.String()
	}
	m.EndLSN, m.DurableLSN, m.AppliedLSN = int64(f.Path.End), int64(f.Durable), int64(f.Applied)
	m.LagBytes, m.LagSeconds = f.View.Lag, f.View.LagSecs
	m.Progress, m.WaitsFor, m.Messages = f.View.Progress, f.View.WaitsFor, f.View.Messages
	return m, f
}

// currentFacts looks now, without waiting for the next round.
func (r *runner) currentFacts() resource.Facts {
	in, ok := r.observe()
	if !ok {
		return resource.Facts{}
	}
	return r.makeFacts(in, resource.Decide(in))
}
