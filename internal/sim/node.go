package sim

import (
	"errors"
	"fmt"
	"time"

	"mars/internal/block/blocktest"
	"mars/internal/vfs/crashfs"
)

// node is one host: what a power cut spares - file system, disks, clock - and the process that runs on it.
type node struct {
	w       *World
	name    string // of the host
	id      string // of the node that it is, or was last
	cluster string // of which that is a member; empty = none
	joins   int
	judge   bool // it has removed others
	leaving bool // the cluster: others have been asked for that
	index   int
	up      bool
	life    int // of the process; events of an earlier one do nothing

	fs    *crashfs.FS
	disks []*blocktest.Disk // by slot
	skew  time.Duration     // of the wall clock
	far   time.Duration     // the same, when it is wrong by months
	slow  time.Duration     // what a disk operation takes at least
	meta  *metadata

	swept     uint64 // tree.Seq() when the rests of deleted resources were looked for last
	rechecked uint64 // and when the connections were
	started   time.Duration
	lastStamp int64
	ends      []*end
	gossip    []*gossip
	reps      []*replica // by resource; nil where this node has none
	damaged   []bool     // by resource: bits have rotted, or a device has lied, since the replica was filled

	sick []bool // by slot: a flush of the disk has failed since it was opened

	// The next death.
	dying bool
	power bool
	opsTo int       // operations until it happens; -1 = not planned
	quiet int       // > 0: what is done now is an observer's, which never dies
	must  []promise // by resource
}

var errDead = errors.New("the node is dead")

func newNode(w *World, i int) *node {
	name := fmt.Sprintf("n%d", i+1)
	n := &node{w: w, name: name, id: name, cluster: firstCluster, index: i, fs: crashfs.New(), opsTo: -1}
	n.meta = newMetadata(n)
	for _, r := range w.resources {
		d := blocktest.NewDisk(r.diskSize)
		r.soil(n, d)
		n.disks = append(n.disks, d)
	}
	n.sick = make([]bool, len(w.resources))
	return n
}

// wall is what the node takes for the time.
func (n *node) wall() time.Time {
	return time.Unix(1_800_000_000, 0).Add(n.w.now + n.skew + n.far)
}

// nextStamp gives Lamport times for log records, as package node does.
func (n *node) nextStamp() int64 {
	n.lastStamp = max(n.lastStamp+1, n.wall().UnixNano())
	return n.lastStamp
}

func (n *node) observeStamp(t int64) { n.lastStamp = max(n.lastStamp, t) }

// start begins a life of the process.
func (n *node) start() {
	n.life++
	n.up, n.dying, n.opsTo = true, false, -1
	n.started = n.w.now
	n.armDeath()
	if w := n.w; w.built && w.phase == 1 && w.swarm["crash-at-op"] && chance(w.rng.fault, 4) {
		n.power = chance(w.rng.fault, 2)
		n.opsTo = 1 + w.rng.fault.IntN(100) // during recovery
	}
	n.meta.restart()
	n.leaving = false
	n.gossip, n.swept, n.rechecked = nil, 0, 0
	for _, p := range n.w.nodes {
		n.gossip = append(n.gossip, &gossip{n: n, peer: p})
	}
	n.w.logf("%s: starts, a member of %q", n.id, n.cluster)
	n.run(func() {
		n.publishSelf()
		for _, g := range n.gossip {
			if g.peer != n {
				g.connect()
				if back := g.peer.gossip; back != nil && g.peer.up {
					back[n.index].connect()
				}
			}
		}
		n.reconcile()
		n.flushLoop()
		n.ticking()
	})
}

// flushEvery is how long a change of the metadata may be in memory only.
const flushEvery = 2 * time.Second

func (n *node) flushLoop() {
	n.meta.flush()
	n.after(flushEvery, n.flushLoop)
}

// after makes f happen in d if the process still lives then.
func (n *node) after(d time.Duration, f func()) {
	life := n.life
	n.w.after(d, func() {
		if n.up && n.life == life {
			n.run(f)
		}
	})
}

// run does one event of the node, and what follows from it at once.
func (n *node) run(f func()) {
	if !n.up || n.dying {
		return
	}
	f()
	if !n.up {
		return // the process has begun a new life in the middle of that, and died
	}
	if !n.dying {
		n.settle()
	}
	if n.dying {
		n.die()
		return
	}
	n.w.check(n)
}

// settle reacts to what an event has changed, as the goroutines of the real node do that wait for channels.
func (n *node) settle() {
	n.reconcile()
	n.recheck()
	for _, g := range n.gossip {
		g.changed()
	}
	for _, r := range n.reps {
		if r != nil {
			r.settle()
		}
	}
}

// reconcile starts and ends the replicas' runners as the metadata want it.
func (n *node) reconcile() {
	for i, res := range n.w.resources {
		e := n.meta.find(res.id)
		mine := e != nil && e.members[n.id] && n.cluster != "" && !n.evicted()
		switch r := n.reps[i]; {
		case mine && r == nil:
			n.reps[i] = newReplica(n, res)
			n.reps[i].wake()
		case !mine && r != nil:
			r.end()
			n.reps[i] = nil
		case r != nil && r.seenMeta != n.meta.tree.Seq():
			r.seenMeta = n.meta.tree.Seq()
			r.wake()
		}
		if !mine && !n.dying {
			n.removeLeftovers(res)
		}
	}
	n.forgetDeleted()
}

// mayDie is true when the process dies right here.
func (n *node) mayDie() bool {
	if n.quiet > 0 {
		return false
	}
	if n.opsTo > 0 {
		n.opsTo--
	}
	if n.opsTo == 0 {
		n.dying = true
		n.opsTo = -1
		n.w.stats.OpCrash++
	}
	return n.dying
}

// armDeath makes the process die at any operation on its file system or disks from now on when the time has come.
func (n *node) armDeath() {
	n.fs.Inject(crashfs.Fault{Match: func(crashfs.Op) bool { return n.mayDie() }, Err: crashfs.ErrGone, Sticky: true})
	for i := range n.disks {
		n.armDisk(i)
	}
}

func (n *node) armDisk(i int) {
	n.disks[i].Inject(blocktest.Fault{Match: func(blocktest.Op) bool { return n.mayDie() }, Err: blocktest.ErrGone, Sticky: true})
}

// openDisk opens a disk as package block does: what a failed flush has dropped is not seen any more.
func (n *node) openDisk(i int) *blocktest.Disk {
	if n.sick[i] {
		n.sick[i] = false
		n.disks[i] = n.disks[i].CrashKeepingAll()
		n.armDisk(i)
	}
	return n.disks[i]
}

// die ends the process, or cuts the power of the machine, and plans the restart.
func (n *node) die() {
	w := n.w
	w.beforeDeath(n)
	n.up = false
	n.life++
	n.w.net.dropEnds(n, n.power)
	for _, r := range n.reps {
		if r != nil && r.shown {
			r.res.app.deviceLost(n)
		}
	}
	if n.power {
		w.logf("%s: power cut", n.id)
		w.stats.PowerCuts++
		n.fs = n.fs.Crash(w.rng.disk)
		for i, d := range n.disks {
			n.disks[i] = d.Crash(w.rng.disk)
		}
	} else {
		w.logf("%s: killed", n.id)
		w.stats.Crashes++
		n.fs = n.fs.Kill()
		for i, d := range n.disks {
			n.disks[i] = d.Kill()
		}
	}
	for i := range n.reps {
		n.reps[i] = nil
	}

	n.dying = false
	if w.phase == 1 {
		wait := between(w.rng.fault, time.Millisecond, 3*time.Second)
		if chance(w.rng.fault, 4) {
			wait = between(w.rng.fault, 3*time.Second, 40*time.Second)
		}
		w.after(wait, func() { n.restart() })
		return
	}
	w.after(time.Second, n.restart)
}

func (n *node) restart() {
	if !n.up {
		n.start()
	}
}

// strike ends the process at this point.
func (n *node) strike(power bool) {
	n.power = power
	n.dying = true
}
