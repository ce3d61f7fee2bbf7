package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"mars/internal/cluster"
	"mars/internal/history"
	"mars/internal/meta"
	"mars/internal/resource"
	"mars/internal/volume"
)

// firstCluster is the one that all hosts are in at first. There may be others.
const firstCluster = "c1"

// found writes the records of all nodes into the metadata of all.
func (w *World) found() {
	var entries []meta.Entry
	for _, n := range w.nodes {
		entries = append(entries, meta.Entry{Key: cluster.NodeKey(n.id), Value: n.record(false), Stamp: n.meta.clock.Next()})
	}
	for _, n := range w.nodes {
		n.meta.merge(entries)
		n.meta.flush()
	}
}

func (n *node) record(pending bool) []byte {
	addr := fmt.Sprintf("%s:%d", n.name, 7777+n.life/4) // now and then it starts with another one
	return cluster.NodeRecord(cluster.NodeInfo{Name: n.name, Addr: addr, Pending: pending})
}

// knows reports whether id is a member as far as is known here.
func (n *node) knows(id string) bool { return n.meta.has(cluster.NodeKey(id)) }

// removed reports whether the membership of id has ended as far as is known here.
func (n *node) removed(id string) bool { return n.meta.gone(cluster.NodeKey(id)) }

// evicted reports whether somebody has removed this node.
func (n *node) evicted() bool { return n.removed(n.id) }

// roster lists the members as package cluster does.
func (n *node) roster() []cluster.NodeInfo {
	var all []cluster.NodeInfo
	for _, e := range n.meta.tree.List("node/") {
		i := cluster.NodeInfo{ID: strings.TrimPrefix(e.Key, "node/")}
		if err := json.Unmarshal(e.Value, &i); err != nil {
			panic(err)
		}
		i.Alive = n.hears(i.ID)
		all = append(all, i)
	}
	return all
}

// hears reports whether a member counts as alive.
func (n *node) hears(id string) bool {
	if id == n.id {
		return true
	}
	return slices.ContainsFunc(n.gossip, func(g *gossip) bool { return g.peer != n && g.from == id && g.alive() })
}

// members are the members of a resource as known here, by id.
func (n *node) members(e *entry) []resource.Peer {
	var all []resource.Peer
	for id := range e.members {
		all = append(all, resource.Peer{Node: id, Facts: e.facts[id], Alive: n.hears(id), Former: e.formerOf(id)})
	}
	resource.SortPeers(all)
	return all
}

func (n *node) removal(id string) []meta.Change {
	return cluster.Removal(id, n.meta.tree.List(cluster.NodeKey(id)+"/"))
}

// publishSelf writes the own record if it is not right.
func (n *node) publishSelf() {
	if n.cluster == "" || n.evicted() {
		return
	}
	if e, ok := n.meta.tree.Get(cluster.NodeKey(n.id)); !ok || string(e.Value) != string(n.record(false)) {
		n.meta.batch(meta.Change{Key: cluster.NodeKey(n.id), Value: n.record(false)})
	}
}

// forgetDeleted is package node's.
func (n *node) forgetDeleted() {
	if n.cluster == "" || n.evicted() || n.dying {
		return
	}
	if n.swept == n.meta.tree.Seq() {
		return
	}
	var changes []meta.Change
	for _, k := range resource.Leftovers(n.meta.tree.List(resource.Prefix), n.meta.gone) {
		changes = append(changes, meta.Change{Key: k, Delete: true})
	}
	if len(changes) > 0 {
		n.meta.batch(changes...)
	}
	n.swept = n.meta.tree.Seq()
}

// acquainted is what package transport's handshake finds out: whether each one knows the other one as a member of the same cluster, or for metadata
// whether it does not know that it is none.
func (w *World) acquainted(a, b *node, class string) bool {
	if class == "join" {
		return b.cluster != "" && a.cluster == ""
	}
	if w.canary("strangers") {
		return true
	}
	if a.cluster == "" || a.cluster != b.cluster {
		return false
	}
	if class == "meta" {
		return !a.removed(b.id) && !b.removed(a.id)
	}
	return a.knows(b.id) && b.knows(a.id)
}

// recheck cuts the connections with nodes that are no members any more, as package transport does. Sessions of class meta look after themselves.
func (n *node) recheck() {
	if n.rechecked == n.meta.tree.Seq() || n.w.canary("strangers") {
		return
	}
	n.rechecked = n.meta.tree.Seq()
	open := n.ends[:0]
	for _, e := range n.ends {
		if e.closed {
			continue
		}
		if e.class == "join" || n.knows(e.peer.as) {
			open = append(open, e)
			continue
		}
		if e.class == "meta" {
			open = append(open, e)
			continue
		}
		e.close()
		e.ended(errStranger)
	}
	n.ends = open
	for _, g := range n.gossip {
		if g.conn != nil && n.removed(g.conn.peer.as) {
			g.partFrom(g.conn)
		}
		g.connect()
	}
}

// partFrom ends the session with a peer that is no member any more, when what it still has to know is sent.
func (g *gossip) partFrom(e *end) {
	g.n.after(20*1e6, func() {
		if g.conn == e && g.n.removed(e.peer.as) {
			g.send()
			g.conn = nil
			e.close()
			g.over()
		}
	})
}

// dial connects with a member, given by its id.
func (n *node) dial(id, class string, accept func(*node, *end) bool, done func(*end, error)) {
	to := n.w.node(id)
	if to == nil {
		n.after(between(n.w.rng.net, 1e6, 1e9), func() { done(nil, fmt.Errorf("node %s: %w", id, errRefused)) })
		return
	}
	n.w.net.dial(n, to, class, func(e *end) bool { return accept(to, e) }, done)
}

// makeReplica makes the first replica of a resource.
func (n *node) makeReplica(res *simResource) error {
	res.truth = newTruth(res, nil)
	res.maker = n
	defer func() { res.maker = nil }()
	r := newReplica(n, res)
	r.disk = &simDisk{Disk: n.openDisk(res.slot), r: r}
	if err := n.fs.MkdirAll(dirOf(res)); err != nil {
		return err
	}
	v, err := volume.Create(r.config(), res.size)
	if err != nil {
		return err
	}
	n.quiet++
	res.truth.base, err = readImage(r.disk.Disk, uint32(res.index), res.size)
	n.quiet--
	if err != nil {
		return errors.Join(err, v.Close())
	}
	err = v.Activate(n.id, history.Timeline{ID: history.TimelineID(n.w.rng.id.Uint64()>>1 + 1), Stamp: n.nextStamp()})
	return errors.Join(err, v.Close())
}

// birth is what makes a resource known.
func (n *node) birth(res *simResource) []meta.Change {
	return []meta.Change{
		{Key: key(res.id, "primary"), Value: encode(n.id)},
		{Key: key(res.id, "member", n.id), Value: encode(struct{}{})},
		{Key: key(res.id, "switch", n.id), Value: encode(resource.AllOn)},
		{Key: key(res.id, "name"), Value: encode(res.name)},
	}
}

// busy reports whether something here has the disk open.
func (n *node) busy(slot int) bool {
	return slices.ContainsFunc(n.reps, func(r *replica) bool { return r != nil && r.res.slot == slot })
}

// createResource makes a new resource, which may have the name of a former one.
func (n *node) createResource(c *command, slot int) error {
	w := n.w
	name := fmt.Sprintf("r%d", slot)
	switch {
	case n.cluster == "" || n.evicted():
		return errors.New("in no cluster")
	case n.meta.named(name) != "":
		return errors.New("exists already")
	case n.busy(slot):
		return errors.New("the disk is in use")
	}
	res := w.newResource(slot)
	res.cluster = n.cluster
	res.diskSize = n.disks[slot].Size()
	res.size = min(res.size, res.diskSize)
	w.resources = append(w.resources, res)
	w.equip(res)
	if err := n.makeReplica(res); err != nil {
		return err
	}
	err := n.meta.batch(n.birth(res)...)
	res.born = err == nil || n.meta.saved.Len() > 0 && n.wrote(key(res.id, "name"))
	if err != nil {
		return err
	}
	w.stats.Created++
	res.app.run()
	c.text += " " + res.id
	c.poll = func() (bool, error) {
		r := n.reps[res.index]
		return r != nil && r.shown, nil
	}
	return nil
}

// wrote reports whether key is on the disk.
func (n *node) wrote(key string) bool {
	e, ok := n.meta.saved.Get(key)
	return ok && !e.Deleted
}

// deleteResource deletes a resource everywhere. The disks keep their content.
func (n *node) deleteResource(c *command, res *simResource, e *entry, force bool) error {
	if err := resource.MayDelete(n.members(e), force); err != nil {
		return err
	}
	var changes []meta.Change
	for _, x := range n.meta.tree.List(key(res.id)) {
		changes = append(changes, meta.Change{Key: x.Key, Delete: true})
	}
	res.doomed = true
	if err := n.meta.batch(changes...); err != nil {
		return err
	}
	n.w.stats.Deleted++
	res.deleted = true
	c.poll = func() (bool, error) { return n.reps[res.index] == nil, nil }
	return nil
}

// gone reports whether a resource has ended.
func (w *World) gone(res *simResource) bool {
	if !res.doomed && res.born {
		return false
	}
	return !slices.ContainsFunc(w.nodes, func(n *node) bool {
		return n.reps[res.index] != nil || n.wrote(key(res.id, "name"))
	})
}

// leaveFor ends the membership of a dead node in a resource.
func (n *node) leaveFor(res *simResource, e *entry, other string) error {
	if !e.members[other] {
		return errors.New("is no member")
	}
	if err := resource.MayRemove(n.members(e), other); err != nil {
		return err
	}
	n.w.stats.Evicted++
	res.truth.disown(other)
	return n.meta.batch(resource.Removal(res.id, other, e.designated)...)
}

// removeNode removes a dead node from the cluster.
func (n *node) removeNode(other string) error {
	for _, res := range n.w.resources {
		if e := n.meta.find(res.id); e != nil && e.members[other] {
			return errors.New("is still a member of " + res.id)
		}
	}
	for _, i := range n.roster() {
		if i.ID != other {
			continue
		}
		if err := cluster.MayRemove(i, n.id); err != nil {
			return err
		}
		n.w.stats.Removed++
		n.w.silent = true
		return n.meta.batch(n.removal(other)...)
	}
	return errors.New("no such node")
}

// leaveCluster ends the membership of this node.
func (n *node) leaveCluster(c *command, force bool) error {
	if n.cluster == "" {
		return errors.New("in no cluster")
	}
	for _, res := range n.w.resources {
		if e := n.meta.find(res.id); e != nil && e.members[n.id] && !n.evicted() {
			return errors.New("is still a member of " + res.id)
		}
	}
	var peers []*gossip
	for _, g := range n.gossip {
		if g.peer != n && g.conn != nil && n.knows(g.conn.peer.as) {
			peers = append(peers, g)
		}
	}
	alone := len(n.roster()) <= 1
	told, asked := n.evicted() || alone, false
	// It may have died before it heard that it was let go, and gone on: nobody took what it said since (seed 4799).
	n.w.silent = n.w.silent || n.evicted()
	n.leaving = true
	c.undo = func() { n.leaving = false }
	c.poll = func() (bool, error) {
		told = told || n.evicted()
		switch {
		case told || force && len(peers) == 0 && !asked:
			n.w.silent = n.w.silent || !told
			n.forget()
			return true, nil
		case asked:
			return false, nil
		case len(peers) == 0:
			return false, errors.New("no other member has confirmed")
		}
		g := peers[0]
		peers = peers[1:]
		if g.conn == nil {
			return false, nil
		}
		asked = true
		g.asking = func(err error) { asked, told = false, told || err == nil }
		g.sendEntries(n.meta.tree.Since(0)) // what the peer has refused for its time before, too: it takes it now, or does not confirm
		return false, g.conn.WriteFrame(frameLeave)
	}
	return nil
}

// forget deletes the membership: the identity first, then the metadata.
func (n *node) forget() {
	if n.mayDie() {
		return
	}
	w := n.w
	w.logf("%s: leaves the cluster %s", n.id, n.cluster)
	w.stats.Left++
	w.net.dropEnds(n, false)
	n.cluster = ""
	n.meta = newMetadata(n)
	if !n.mayDie() {
		n.start()
	}
}

// createCluster makes a cluster of this node alone.
func (n *node) createCluster() error {
	if n.cluster != "" {
		return errors.New("in a cluster already")
	}
	n.newID()
	n.cluster = "c-" + n.id
	n.w.net.dropEnds(n, false)
	n.meta = newMetadata(n)
	n.start()
	return nil
}

func (n *node) newID() {
	n.joins++
	n.id = fmt.Sprintf("%s.%d", n.name, n.joins)
}

// Frames of class join.
const (
	joinAsk = iota + 1
	joinRefusal
	joinEntries
)

// joinCluster makes this host a member of the cluster that another one is in, as a new node: it has the name of the former one and nothing else.
func (n *node) joinCluster(c *command, via *node) error {
	if n.cluster != "" {
		return errors.New("in a cluster already")
	}
	done, failed := false, error(nil)
	c.poll = func() (bool, error) { return done, failed }
	n.w.net.dial(n, via, "join", via.letIn, func(e *end, err error) {
		if err != nil {
			failed = err
			return
		}
		n.newID()
		e.ended = func(err error) { failed = err }
		e.frames = func(kind byte, payload []byte) {
			if kind == joinRefusal {
				failed = errors.New(string(payload))
				return
			}
			failed = n.settleIn(e, payload)
		}
		e.WriteFrame(joinAsk, []byte(n.name+" "+n.id))
	})
	return nil
}

// letIn serves a newcomer.
func (n *node) letIn(e *end) bool {
	e.frames = func(_ byte, payload []byte) {
		name, id, _ := strings.Cut(string(payload), " ")
		if err := n.admit(name, id); err != nil {
			e.WriteFrame(joinRefusal, []byte(err.Error()))
			return
		}
		var b []byte
		for _, x := range n.meta.tree.Since(0) {
			b = x.Append(b)
		}
		e.WriteFrame(joinEntries, b)
	}
	return true
}

func (n *node) admit(name, id string) error {
	if n.evicted() {
		return errStranger
	}
	n.amend()
	replaced, err := cluster.MakeRoom(n.roster(), name)
	if err != nil {
		return err
	}
	var changes []meta.Change
	for _, x := range replaced {
		changes = append(changes, n.removal(x)...)
	}
	rec := cluster.NodeRecord(cluster.NodeInfo{Name: name, Addr: name + ":7777", Pending: true})
	return n.meta.commit(append(changes, meta.Change{Key: cluster.NodeKey(id), Value: rec})...)
}

// settleIn takes what a member has to have. The moment of truth is when the identity is stored.
func (n *node) settleIn(e *end, payload []byte) error {
	m := newMetadata(n)
	for len(payload) > 0 {
		x, rest, err := meta.Decode(payload)
		if err == nil {
			err = m.clock.Observe(x.Stamp)
		}
		if err != nil {
			return err
		}
		m.apply(x)
		payload = rest
	}
	m.flush()
	if n.mayDie() {
		return errDead
	}
	n.w.net.dropEnds(n, false)
	n.meta, n.cluster = m, e.peer.in
	n.w.stats.Joined++
	n.w.logf("%s: joins the cluster %s as %s", n.name, n.cluster, n.id)
	if !n.mayDie() {
		n.start()
	}
	return nil
}

// checkStranger (I10): nothing goes to or comes from somebody who is no member, as far as is known here. On a connection of class meta a node
// that leaves still gets its answer; that nothing is taken from it is checked where that would happen.
func (w *World) checkStranger(e *end, what string) {
	if e.class == "join" || e.closed {
		return
	}
	n, p := e.node, e.peer
	if e.in != p.in || e.in == "" {
		w.failf("I10", "%s of cluster %q %s a frame of class %s; the other end is %s of cluster %q", e.as, e.in, what, e.class, p.as, p.in)
	}
	if e.class != "meta" && !n.knows(p.as) {
		w.failf("I10", "%s %s a frame of class %s; %s, at the other end, is no member", e.as, what, e.class, p.as)
	}
}

// checkSource (I10): metadata come from members only. Who was let in and is not known here yet is one.
func (w *World) checkSource(n *node, from *end) {
	if n.removed(from.as) || n.cluster != from.in {
		w.failf("I10", "%s takes metadata from %s, which is no member", n.id, from.as)
	}
}
