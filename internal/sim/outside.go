package sim

import (
	"maps"
	"slices"
	"strings"
	"time"

	"mars/internal/cluster"
	"mars/internal/resource"
)

// recreate deletes a resource, wherever its primary is, and makes a new one of the same name elsewhere, while some may not have heard of that.
func (w *World) recreate(n *node) {
	rng := w.rng.fault
	slot := rng.IntN(w.slots)
	w.issueNamed(n, slot, "delete-resource --force")
	other := w.nodes[rng.IntN(len(w.nodes))]
	w.after(between(rng, 0, 6*time.Second), func() { w.issueNamed(other, slot, "create-resource") })
	for _, x := range w.nodes {
		if x != other {
			w.after(between(rng, 2*time.Second, 15*time.Second), func() { w.issueNamed(x, slot, "join-resource") })
		}
	}
}

// evict takes a node away - it dies, or is only cut off and does not know - and another one ends its memberships, in the end the one in the
// cluster. Who has removed somebody is not removed itself: two that remove each other are a cluster in two parts, and that is what they asked for.
func (w *World) evict(n *node) {
	rng := w.rng.fault
	by := w.nodes[rng.IntN(len(w.nodes))]
	if by == n || by.cluster != firstCluster || n.cluster != firstCluster || n.judge || !by.judge && slices.ContainsFunc(w.nodes, func(x *node) bool { return x.judge }) {
		return
	}
	by.judge = true
	gone := n.id
	if chance(rng, 2) {
		w.strike(n, chance(rng, 2))
	} else {
		w.isolate(n)
	}
	at := between(rng, time.Second, 20*time.Second)
	for _, res := range w.resources {
		w.after(at+between(rng, 0, time.Second), func() { w.removeFrom(by, res, gone) })
	}
	if chance(rng, 2) {
		return
	}
	w.after(at+between(rng, time.Second, 3*time.Second), func() {
		w.order(by, "leave-cluster --host "+gone+" --force", func(*command) error { return by.removeNode(gone) })
	})
	w.after(between(rng, 20*time.Second, 50*time.Second), func() {
		if n.cluster == firstCluster && n.id == gone && !w.inside(n) {
			w.order(n, "leave-cluster --force", func(c *command) error { return n.leaveCluster(c, true) })
		}
	})
	w.comeBack(n, between(rng, 25*time.Second, 60*time.Second))
}

func (w *World) removeFrom(by *node, res *simResource, gone string) {
	w.order(by, "leave-resource "+res.id+" --host "+gone+" --force", func(*command) error {
		e := by.meta.find(res.id)
		if e == nil {
			return errStranger
		}
		return by.leaveFor(res, e, gone)
	})
}

// depart makes a node leave everything, and come back under its old name.
func (w *World) depart(n *node) {
	rng := w.rng.fault
	if n.judge || len(w.nodes) < 2 {
		return
	}
	for _, res := range w.resources {
		w.after(between(rng, 0, 3*time.Second), func() { w.issue(n, res, "leave-resource") })
	}
	force := chance(rng, 4)
	w.after(between(rng, 3*time.Second, 10*time.Second), func() {
		if w.crowd() > 1 {
			w.order(n, "leave-cluster", func(c *command) error { return n.leaveCluster(c, force) })
		}
	})
	w.comeBack(n, between(rng, 10*time.Second, 30*time.Second))
}

// comeBack makes a host that is in no cluster, or in one of its own, a member again, and then of its resources.
func (w *World) comeBack(n *node, d time.Duration) {
	rng := w.rng.fault
	if chance(rng, 4) {
		w.after(d/2, func() {
			w.order(n, "create-cluster", func(*command) error { return n.createCluster() })
		})
		w.after(d-time.Millisecond, func() {
			if n.cluster != firstCluster {
				w.order(n, "leave-cluster", func(c *command) error { return n.leaveCluster(c, false) })
			}
		})
	}
	via := w.nodes[rng.IntN(len(w.nodes))]
	w.after(d, func() {
		if via.cluster == firstCluster {
			w.order(n, "join-cluster "+via.name, func(c *command) error { return n.joinCluster(c, via) })
		}
	})
	for slot := range w.slots {
		w.after(d+between(rng, time.Second, 5*time.Second), func() { w.issueNamed(n, slot, "join-resource") })
	}
}

// crowd counts the hosts in the first cluster.
func (w *World) crowd() int {
	k := 0
	for _, n := range w.nodes {
		if n.cluster == firstCluster {
			k++
		}
	}
	return k
}

// ref is a member whom nobody has removed, and of those the one who knows of most removals: a node that was removed and has not heard of it may have let
// newcomers in, who know only it. It is nil if there is none.
func (w *World) ref() *node {
	var ref *node
	for _, n := range w.nodes {
		if n.cluster == firstCluster && !w.removed(n) && (ref == nil || n.removals() > ref.removals()) {
			ref = n
		}
	}
	return ref
}

// removals counts the removals of nodes that a member knows of; those of an evicting one count for more than any number.
func (n *node) removals() int {
	k := 0
	if n.judge {
		k = 1000
	}
	for _, e := range n.meta.tree.Since(0) {
		if id := strings.TrimPrefix(e.Key, cluster.NodeKey("")); e.Deleted && id != e.Key && !strings.Contains(id, "/") {
			k++
		}
	}
	return k
}

// removed reports whether a member of the first cluster knows that a node is none any more: by its own wish, or by somebody else's.
func (w *World) removed(n *node) bool {
	return slices.ContainsFunc(w.nodes, func(o *node) bool { return o.cluster == firstCluster && o.meta.gone(cluster.NodeKey(n.id)) })
}

// inside reports whether a host is a member of the first cluster and nobody has removed it.
func (w *World) inside(n *node) bool {
	ref := w.ref()
	return ref != nil && n.cluster == firstCluster && ref.knows(n.id)
}

// unheard reports whether something that only one node knew may be lost with its membership: it has left without a word, or was removed; or it
// has asked to be let go, and died before it heard that it was.
func (w *World) unheard() bool {
	return w.silent || slices.ContainsFunc(w.nodes, func(n *node) bool { return n.cluster == firstCluster && !w.inside(n) })
}

// entry is what a member knows about a resource.
func (w *World) entry(res *simResource) *entry {
	if ref := w.ref(); ref != nil {
		return ref.meta.find(res.id)
	}
	return nil
}

// remains says what is left of a resource that does not exist; empty if nothing is.
func (w *World) remains(res *simResource) string {
	if !res.doomed && res.born && res.cluster == firstCluster && !w.unheard() {
		return "does not exist, and nobody has deleted it"
	}
	for _, n := range w.nodes {
		if !w.inside(n) {
			continue
		}
		if n.reps[res.index] != nil || n.holds(res) {
			return n.id + " still has a log of it"
		}
		if live := n.meta.tree.List(key(res.id)); len(live) > 0 {
			return n.id + " still has " + live[0].Key
		}
	}
	return ""
}

// holds reports whether there is a log or a state of a resource on the file system.
func (n *node) holds(res *simResource) bool {
	n.quiet++
	defer func() { n.quiet-- }()
	names, err := n.fs.ReadDir("mars")
	return err == nil && slices.Contains(names, res.id)
}

// buryGhosts ends the memberships of nodes that do not exist any more, and reports whether there were any. That is refused when one of them may have
// had the only replica: it was removed, made the resource before it heard of that, and took the replica with it when it left (seed 4334). Then the
// operator does what the refusal says, and gives the resource up.
func (w *World) buryGhosts(res *simResource, e *entry) bool {
	ref, ghosts := w.ref(), w.ghosts(e)
	for _, id := range ghosts {
		if w.unheard() && w.survivor(res, e) == nil && resource.MayRemove(ref.members(e), id) != nil {
			w.issue(ref, res, "delete-resource --force")
			break
		}
		w.removeFrom(ref, res, id)
	}
	return len(ghosts) > 0
}

// ghosts are the members of a resource that are none of the cluster.
func (w *World) ghosts(e *entry) []string {
	var all []string
	for _, id := range slices.Sorted(maps.Keys(e.members)) {
		if n := w.node(id); n == nil || !w.inside(n) {
			all = append(all, id)
		}
	}
	return all
}
