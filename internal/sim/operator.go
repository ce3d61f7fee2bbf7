package sim

import (
	"errors"
	"fmt"
	"time"

	"mars/internal/block"
	"mars/internal/cluster"
	"mars/internal/lamport"
	"mars/internal/meta"
	"mars/internal/resource"
	"mars/internal/volume"
)

// command is an operator's command that waits until what it asks for is so, as package node's commands do.
type command struct {
	n        *node
	text     string
	deadline time.Duration
	poll     func() (bool, error) // is it so?
	undo     func()               // when it is given up
}

const commandTimeout = 20 * time.Second

var errGaveUp = errors.New("gave up waiting")

// await polls until the command is done.
func (c *command) await() {
	done, err := c.poll()
	w := c.n.w
	if !done && err == nil && w.now > c.deadline {
		err = errGaveUp
	}
	switch {
	case err != nil:
		w.logf("%s: %s: %v", c.n.id, c.text, err)
		w.stats.Refused++
		if c.undo != nil {
			c.undo()
		}
	case done:
		w.logf("%s: %s: done", c.n.id, c.text)
	default:
		c.n.after(100*time.Millisecond, c.await)
	}
}

// issue gives a command at a node.
func (w *World) issue(n *node, res *simResource, verb string) {
	w.order(n, verb+" "+res.id, func(c *command) error { return n.do(c, res, verb) })
}

// order gives any command at a node.
func (w *World) order(n *node, text string, do func(*command) error) {
	if !n.up {
		return
	}
	n.run(func() {
		w.stats.Commands++
		c := &command{n: n, text: text, deadline: w.now + commandTimeout, poll: func() (bool, error) { return true, nil }}
		w.logf("%s: operator says %s", n.id, c.text)
		if err := do(c); err != nil {
			w.stats.Refused++
			w.logf("%s: %s: refused: %v", n.id, c.text, err)
			return
		}
		c.await()
	})
}

func (n *node) do(c *command, res *simResource, verb string) error {
	if n.evicted() {
		return cluster.ErrEvicted
	}
	e := n.meta.find(res.id)
	if e == nil {
		return errors.New("no such resource")
	}
	switch verb {
	case "join-resource":
		return n.joinResource(c, res, e)
	case "delete-resource", "delete-resource --force":
		return n.deleteResource(c, res, e, verb != "delete-resource")
	}
	r := n.reps[res.index]
	if r == nil {
		return fmt.Errorf("%s is no member", n.id)
	}
	if change := switchChanges[verb]; change != nil {
		return r.setSwitches(c, e, change)
	}
	do := resourceCommands[verb]
	if do == nil {
		return fmt.Errorf("unknown command %q", verb)
	}
	return do(r, c, e)
}

var switchChanges = map[string]func(*resource.Switches){
	"attach":        func(s *resource.Switches) { s.Attach = true },
	"detach":        func(s *resource.Switches) { s.Attach = false },
	"up":            func(s *resource.Switches) { *s = resource.AllOn },
	"down":          func(s *resource.Switches) { *s = resource.Switches{} },
	"pause-fetch":   func(s *resource.Switches) { s.Fetch = false },
	"resume-fetch":  func(s *resource.Switches) { s.Fetch = true },
	"pause-replay":  func(s *resource.Switches) { s.Replay = false },
	"resume-replay": func(s *resource.Switches) { s.Replay = true },
	"pause-sync":    func(s *resource.Switches) { s.Sync = false },
	"resume-sync":   func(s *resource.Switches) { s.Sync = true },
}

var resourceCommands = map[string]func(*replica, *command, *entry) error{
	"primary":         (*replica).primary,
	"primary --force": (*replica).primaryForced,
	"secondary":       (*replica).secondary,
	"invalidate":      (*replica).invalidate,
	"leave-resource":  (*replica).leave,
	"resize":          (*replica).resize,
	"log-rotate":      (*replica).rotate,
}

func (r *replica) setSwitches(c *command, e *entry, change func(*resource.Switches)) error {
	before := e.switchesOf(r.n.id)
	after := before
	change(&after)
	if after != before {
		if err := r.n.meta.put(key(r.res.id, "switch", r.n.id), after); err != nil {
			return err
		}
	}
	r.wake()
	c.poll = func() (bool, error) {
		in, ok := r.observe()
		if !ok || !r.alive() {
			return false, errors.New("the resource is gone")
		}
		if in.Local.OpenErr != "" && after.Attach {
			return false, errors.New(in.Local.OpenErr)
		}
		return after.Attach == (in.Local.Open || in.Local.Missing), nil
	}
	if !after.Attach && before.Attach {
		c.undo = func() { r.n.meta.put(key(r.res.id, "switch", r.n.id), before) }
	}
	return nil
}

// primary is the planned handover.
func (r *replica) primary(c *command, e *entry) error {
	in, ok := r.observe()
	if !ok {
		return errors.New("the resource is gone")
	}
	if in.Local.Writable && in.Designated == in.Self {
		return nil
	}
	if err := resource.MayBePrimary(&in); err != nil {
		return err
	}
	if err := resource.MayWish(&in); err != nil {
		return err
	}
	k := key(r.res.id, "primary")
	before := in.Designated
	if err := r.n.meta.put(k, r.n.id); err != nil {
		return err
	}
	mine, _ := r.n.meta.tree.Get(k)
	r.wake()
	c.poll = func() (bool, error) {
		now, ok := r.observe()
		switch {
		case !ok || !r.alive():
			return false, errors.New("the resource is gone")
		case now.Designated != now.Self:
			return false, errors.New("somebody else is designated meanwhile")
		case now.Local.Writable:
			return now.Local.Device != "", nil
		}
		return false, resource.HolderReachable(&now)
	}
	c.undo = func() { r.takeBack(before, mine.Stamp) }
	return nil
}

// takeBack restores the designation if nobody has changed it since ours.
func (r *replica) takeBack(before string, ours lamport.Stamp) {
	e := r.n.meta.find(r.res.id)
	if e == nil || r.vol == nil || r.vol.Status().Writable || e.since != ours || before == r.n.id {
		return
	}
	r.n.meta.put(key(r.res.id, "primary"), before)
}

func (r *replica) primaryForced(c *command, e *entry) error {
	in, ok := r.observe()
	if !ok {
		return errors.New("the resource is gone")
	}
	if in.Local.Writable && in.Designated == in.Self {
		return nil
	}
	if err := resource.MayBePrimary(&in); err != nil {
		return err
	}
	if err := resource.MayForce(&in); err != nil {
		return err
	}
	if err := r.n.meta.put(key(r.res.id, "primary"), r.n.id); err != nil {
		return err
	}
	r.n.w.stats.Forced++
	opened := false
	c.poll = func() (bool, error) {
		switch {
		case r.vol == nil || !r.alive():
			return false, errors.New("detached meanwhile")
		case opened || r.vol.Status().Writable:
			opened = true // once: if somebody has invalidated it meanwhile, that stands
			return r.vol.Status().Writable && r.shown, nil
		case r.mover.copy.active():
			return false, nil // its step has the volume locked
		}
		r.fetch.drop()
		now, ok := r.observe()
		if !ok {
			return false, errors.New("the resource is gone")
		}
		forced := resource.OpensByForce(&now)
		if forced {
			r.res.forced[r.n.index]++
		}
		err := r.activate(forced)
		opened = err == nil
		if errors.Is(err, volume.ErrBacklog) {
			err = nil
		}
		return false, err
	}
	return nil
}

func (r *replica) secondary(c *command, e *entry) error {
	if e.designated == r.n.id {
		if err := r.n.meta.putAfter(key(r.res.id, "primary"), "", e.since); err != nil {
			return err
		}
		r.wake()
	}
	ours, _ := r.n.meta.tree.Get(key(r.res.id, "primary"))
	self := e.designated == r.n.id
	c.poll = func() (bool, error) {
		return r.vol == nil || !r.vol.Status().Writable, nil
	}
	c.undo = func() {
		if now := r.n.meta.find(r.res.id); self && now != nil && now.since == ours.Stamp {
			r.n.meta.put(key(r.res.id, "primary"), r.n.id)
		}
	}
	return nil
}

func (r *replica) invalidate(c *command, e *entry) error {
	in, ok := r.observe()
	switch {
	case !ok:
		return errors.New("the resource is gone")
	case r.join != nil:
		return errors.New("busy")
	}
	if err := resource.MayInvalidate(&in); err != nil {
		return err
	}
	p := r.confirmSource(resource.SyncSource(in))
	c.poll = func() (bool, error) {
		switch {
		case !r.alive() || r.vol == nil && !r.missing:
			return false, errors.New("it is detached")
		case !p.over || p.err != nil:
			return false, p.err
		}
		return true, r.reset()
	}
	c.undo = func() { r.leaving = false }
	return nil
}

func (n *node) joinResource(c *command, res *simResource, e *entry) error {
	switch {
	case e.members[n.id]:
		return errors.New("is a member already")
	case n.evicted():
		return errStranger
	case n.busy(res.slot):
		return errors.New("the disk is in use")
	}
	if err := resource.MayJoin(n.members(e), n.disks[res.slot].Size()); err != nil {
		return err
	}
	err := n.meta.batch(
		meta.Change{Key: key(res.id, "facts", n.id), Delete: true},
		meta.Change{Key: key(res.id, "switch", n.id), Value: encode(resource.AllOn)},
		meta.Change{Key: key(res.id, "member", n.id), Value: encode(struct{}{})},
	)
	c.poll = func() (bool, error) {
		r := n.reps[res.index]
		return r != nil && r.vol != nil, nil
	}
	return err
}

func (r *replica) leave(c *command, e *entry) error {
	in, ok := r.observe()
	if !ok {
		return errors.New("the resource is gone")
	}
	if err := resource.MayLeave(&in, false); err != nil {
		return err
	}
	changes := resource.Removal(r.res.id, r.n.id, e.designated)
	p := &probe{over: true}
	if resource.WorthKeeping(&in) {
		p = r.confirmSource(resource.SyncSource(in))
	}
	told := false
	c.poll = func() (bool, error) {
		if !p.over || p.err != nil || told {
			return !r.alive(), p.err
		}
		if in, ok := r.observe(); ok {
			if err := resource.MayLeave(&in, false); err != nil {
				return false, err // somebody may have passed the right to write to us meanwhile
			}
		}
		told = true
		if e := r.n.meta.find(r.res.id); e != nil {
			changes = append(changes, r.n.formerFacts(e)...)
		}
		return false, r.n.meta.batch(changes...)
	}
	c.undo = func() { r.leaving = false }
	return nil
}

func (r *replica) resize(c *command, e *entry) error {
	if r.vol == nil || !r.vol.Status().Writable {
		return errors.New("resize is the primary's")
	}
	room := r.disk.Size()
	for _, p := range r.n.members(e) {
		f := p.Facts
		if p.Node == r.n.id {
			continue
		}
		if f == nil || !f.Attached {
			return errors.New("the size of a disk is not known")
		}
		room = min(room, f.DiskSize)
	}
	old := r.vol.Size()
	size := old + (1+r.n.w.rng.op.Int64N(32))*block.SectorSize
	if size > room {
		return errors.New("a disk is too small")
	}
	done, failed := false, error(nil)
	r.vol.Submit([]*block.Request{volume.ResizeRequest(size, func(err error) { done, failed = true, err })})
	c.poll = func() (bool, error) { return done, failed }
	return nil
}

func (r *replica) rotate(*command, *entry) error {
	if r.vol == nil || !r.vol.Status().Writable {
		return errors.New("only the primary rotates the log")
	}
	r.vol.Log().Rotate()
	return nil
}

// verbs are what operators say, by feature.
var verbs = []struct {
	feature string
	verbs   []string
}{
	{"primary", []string{"primary", "primary", "primary"}},
	{"force", []string{"primary --force"}},
	{"secondary", []string{"secondary"}},
	{"invalidate", []string{"invalidate"}},
	{"pause", []string{"pause-fetch", "resume-fetch", "pause-replay", "resume-replay", "pause-sync", "resume-sync", "up", "up"}},
	{"detach", []string{"detach", "attach", "attach", "up", "down"}},
	{"resize", []string{"resize"}},
	{"rotate", []string{"log-rotate"}},
	{"membership", []string{"join-resource", "leave-resource", "join-resource"}},
	{"lifecycle", []string{"create-resource", "create-resource", "delete-resource", "delete-resource --force"}},
	{"nonsense", []string{"frobnicate", "", "primary\x00"}},
}

// operators say something now and then, somewhere.
func (w *World) operators() {
	w.after(between(w.rng.op, 50*time.Millisecond, 3*time.Second), w.operators)
	if w.phase != 1 {
		return
	}
	v := verbs[w.rng.op.IntN(len(verbs))]
	verb := v.verbs[w.rng.op.IntN(len(v.verbs))]
	slot := w.rng.op.IntN(w.slots)
	n := w.nodes[w.rng.op.IntN(len(w.nodes))]
	other := w.nodes[w.rng.op.IntN(len(w.nodes))]
	if !w.swarm[v.feature] {
		return
	}
	w.issueNamed(n, slot, verb)
	if w.swarm["two-at-once"] && chance(w.rng.op, 3) {
		w.issueNamed(other, slot, verb)
	}
}

// issueNamed gives a command at a node that names a resource, as operators do: which one that is depends on what the node knows.
func (w *World) issueNamed(n *node, slot int, verb string) {
	if verb == "create-resource" {
		if len(w.resources) < maxResources {
			w.order(n, fmt.Sprintf("%s r%d", verb, slot), func(c *command) error { return n.createResource(c, slot) })
		}
		return
	}
	id := n.meta.named(fmt.Sprintf("r%d", slot))
	for _, res := range w.resources {
		if res.id == id {
			w.issue(n, res, verb)
		}
	}
}

// maxResources bounds how many are made in one run, one after the other.
const maxResources = 12

// disown notes that the operator has thrown this node's timelines of the resource away: their tails may be gone without --force.
func (t *truth) disown(node string) {
	for _, c := range t.order {
		if c.t.Origin == node {
			c.excused = true
		}
	}
}

// damage notes that this node's timelines of the resource may be cut anywhere.
func (t *truth) damage(node string) {
	for _, c := range t.order {
		if c.t.Origin == node {
			c.damaged = true
		}
	}
}
