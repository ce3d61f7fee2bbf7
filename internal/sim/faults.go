package sim

import (
	"fmt"
	"slices"
	"syscall"
	"time"

	"mars/internal/block/blocktest"
	"mars/internal/vfs/crashfs"
)

// plagues starts every kind of fault that the swarm has.
func (w *World) plagues() {
	w.plague("kill", 15*time.Second, func(n *node) { w.strike(n, false) })
	w.plague("power", 15*time.Second, func(n *node) { w.strike(n, true) })
	w.plague("crash-at-op", 8*time.Second, func(n *node) {
		if n.up {
			n.power = chance(w.rng.fault, 2)
			n.opsTo = 1 + w.rng.fault.IntN(60)
			w.logf("fault: %s will die at an operation soon, power=%v", n.id, n.power)
		}
	})
	w.plague("partition", 15*time.Second, w.isolate)
	w.plague("oneway", 12*time.Second, func(n *node) { w.cutOne(n, w.nodes[w.rng.fault.IntN(len(w.nodes))]) })
	w.plague("flap", 20*time.Second, w.flap)
	w.plague("slow-net", 15*time.Second, w.slowNet)
	w.plague("clock", 10*time.Second, w.moveClock)
	w.plague("far-clock", 15*time.Second, w.loseClock)
	w.plague("slow-disk", 15*time.Second, func(n *node) {
		n.slow = between(w.rng.fault, time.Millisecond, 300*time.Millisecond)
		w.logf("fault: operations of %s take %v", n.id, n.slow)
		w.after(between(w.rng.fault, time.Second, 10*time.Second), func() { n.slow = 0 })
	})
	w.plague("disk-eio", 20*time.Second, w.failDisk)
	w.plague("log-eio", 20*time.Second, w.failLog)
	w.plague("bad-fsync", 25*time.Second, w.failSync)
	w.plague("bit-rot", 30*time.Second, w.rot)
	w.plague("force", 18*time.Second, w.failover)
	w.plague("log-full", 20*time.Second, w.fill)
	w.plague("lifecycle", 25*time.Second, w.recreate)
	w.plague("evict", 25*time.Second, w.evict)
	w.plague("depart", 25*time.Second, w.depart)
}

// plague makes a fault strike some node about every so often, if the swarm has it.
func (w *World) plague(feature string, every time.Duration, strike func(*node)) {
	w.after(between(w.rng.fault, every/4, every*7/4), func() {
		n := w.nodes[w.rng.fault.IntN(len(w.nodes))]
		if w.phase == 1 && w.swarm[feature] {
			strike(n)
		}
		if w.phase == 1 {
			w.plague(feature, every, strike)
		}
	})
}

func (w *World) strike(n *node, power bool) {
	if n.up {
		n.strike(power)
		n.die()
	}
}

func (w *World) isolate(n *node) {
	w.logf("fault: %s is cut off", n.id)
	for _, o := range w.nodes {
		w.net.setCut(w.net.line(n, o), true)
		w.net.setCut(w.net.line(o, n), true)
	}
	w.after(between(w.rng.fault, time.Second, 30*time.Second), func() { w.rejoin(n) })
}

func (w *World) rejoin(n *node) {
	w.logf("fault: %s is connected again", n.id)
	for _, o := range w.nodes {
		w.net.setCut(w.net.line(n, o), false)
		w.net.setCut(w.net.line(o, n), false)
	}
}

func (w *World) cutOne(a, b *node) {
	l := w.net.line(a, b)
	w.logf("fault: nothing comes from %s to %s", a.id, b.id)
	w.net.setCut(l, true)
	w.after(between(w.rng.fault, time.Second, 25*time.Second), func() { w.net.setCut(l, false) })
}

func (w *World) flap(n *node) {
	w.logf("fault: the lines of %s flap", n.id)
	for i := range 12 {
		w.after(time.Duration(i)*between(w.rng.fault, 100*time.Millisecond, 2*time.Second), func() {
			o := w.nodes[w.rng.fault.IntN(len(w.nodes))]
			w.net.setCut(w.net.line(n, o), i%2 == 0)
		})
	}
	w.after(25*time.Second, func() { w.rejoin(n) })
}

func (w *World) slowNet(n *node) {
	o := w.nodes[w.rng.fault.IntN(len(w.nodes))]
	l := w.net.line(n, o)
	l.delay, l.bytes = between(w.rng.fault, 10*time.Millisecond, 2*time.Second), float64(1000+w.rng.fault.IntN(200_000))
	w.logf("fault: from %s to %s it takes %v and %.0f bytes/s", n.id, o.id, l.delay, l.bytes)
	w.after(between(w.rng.fault, time.Second, 20*time.Second), func() { l.repair(w) })
}

func (w *World) moveClock(n *node) {
	d := between(w.rng.fault, -time.Hour, time.Hour)
	if chance(w.rng.fault, 3) {
		d = between(w.rng.fault, -3*time.Second, 3*time.Second)
	}
	n.skew += d
	w.logf("fault: the clock of %s jumps by %v", n.id, d)
}

// loseClock sets a clock to another year, or just out of the time that others accept, and right again after a while. One at a time: two that are wrong
// by the same weeks believe each other.
func (w *World) loseClock(n *node) {
	const day = 24 * time.Hour
	if slices.ContainsFunc(w.nodes, func(x *node) bool { return x.far != 0 }) {
		return
	}
	d := between(w.rng.fault, 31*day, 60*day)
	if chance(w.rng.fault, 2) {
		d = between(w.rng.fault, 60*day, 10_000*day)
	}
	if chance(w.rng.fault, 3) {
		d = -d
	}
	n.far = d
	w.logf("fault: the clock of %s is wrong by %v", n.id, d)
	w.after(between(w.rng.fault, time.Second, 25*time.Second), func() { w.setClock(n) })
}

func (w *World) setClock(n *node) {
	if n.far != 0 {
		n.far = 0
		w.logf("the clock of %s is right again", n.id)
	}
}

func (w *World) failDisk(n *node) {
	i := w.rng.fault.IntN(len(n.disks))
	kind := blocktest.OpKind(1 + w.rng.fault.IntN(5))
	n.disks[i].Inject(blocktest.Fault{Skip: w.rng.fault.IntN(10), Err: syscall.EIO, Drop: true,
		Match: func(o blocktest.Op) bool { return n.quiet == 0 && o.Kind == kind }})
	w.logf("fault: a %v on disk %d of %s will fail", kind, i, n.id)
}

func (w *World) failLog(n *node) {
	kind := crashfs.OpKind(1 + w.rng.fault.IntN(16))
	if kind == crashfs.OpSync || kind == crashfs.OpSyncData {
		kind = crashfs.OpWrite
	}
	n.fs.Inject(crashfs.Fault{Skip: w.rng.fault.IntN(10), Err: syscall.EIO,
		Match: func(o crashfs.Op) bool { return n.quiet == 0 && o.Kind == kind }})
	w.logf("fault: a %v on the file system of %s will fail", kind, n.id)
}

// failSync makes a sync fail as on Linux: what could not be written counts as clean from now on.
func (w *World) failSync(n *node) {
	n.fs.Inject(crashfs.Fault{Skip: w.rng.fault.IntN(20), Err: syscall.EIO, Drop: true,
		Match: func(o crashfs.Op) bool {
			return n.quiet == 0 && (o.Kind == crashfs.OpSync || o.Kind == crashfs.OpSyncData)
		}})
	w.logf("fault: a sync on the file system of %s will fail", n.id)
}

// rot inverts some bytes of a log segment: anywhere, or in what is not on the disk yet.
func (w *World) rot(n *node) {
	i := w.rng.fault.IntN(len(w.resources))
	dir := dirOf(w.resources[i]) + "/log"
	n.quiet++
	defer func() { n.quiet-- }()
	names, err := n.fs.ReadDir(dir)
	if err != nil || len(names) == 0 || !n.up {
		return
	}
	name := dir + "/" + names[w.rng.fault.IntN(len(names))]
	f, err := n.fs.Open(name)
	if err != nil {
		return
	}
	size, err := f.Size()
	f.Close()
	if err != nil || size == 0 {
		return
	}
	at := w.rng.fault.Int64N(size)
	if r := n.reps[i]; r != nil && r.vol != nil && !chance(w.rng.fault, 3) {
		if in, off, ok := w.unapplied(r, names); ok {
			name, at, size = dir+"/"+in, off, off+8
		}
	}
	n.damaged[i] = true
	w.resources[i].truth.disown(n.id)
	w.resources[i].truth.damage(n.id)
	n.must[i].cut()
	if err := n.fs.Corrupt(name, at, min(size-at, 1+w.rng.fault.Int64N(8))); err == nil {
		w.logf("fault: bits rot on %s in %s at %d", n.id, name, at)
	}
}

// unapplied chooses a place in the part of the log that is not on the disk yet.
func (w *World) unapplied(r *replica, names []string) (name string, off int64, ok bool) {
	st := r.vol.Status()
	if st.Path.End <= st.Applied.LSN {
		return "", 0, false
	}
	lsn := int64(st.Applied.LSN) + w.rng.fault.Int64N(int64(st.Path.End-st.Applied.LSN))
	for _, n := range names {
		var first, timeline int64
		if k, err := fmt.Sscanf(n, "seg-%x-%x", &first, &timeline); err == nil && k == 2 && first <= lsn {
			name, off, ok = n, 4096+lsn-first, true
		}
	}
	return name, off, ok
}

// failover takes a primary away, in one way or another, and has another member forced into its place.
func (w *World) failover(n *node) {
	res := w.resources[w.rng.fault.IntN(len(w.resources))]
	var old *node
	for _, p := range w.nodes {
		if r := p.reps[res.index]; p.up && r != nil && r.vol != nil && r.vol.Status().Writable {
			old = p
		}
	}
	if old == nil || old == n {
		return
	}
	switch w.rng.fault.IntN(4) {
	case 0:
		w.strike(old, true)
	case 1:
		w.isolate(old)
	case 2:
		w.cutOne(old, n)
	case 3:
		w.issue(n, res, "pause-fetch")
		w.after(between(w.rng.fault, 0, 3*time.Second), func() { w.issue(n, res, "primary --force") })
		w.after(between(w.rng.fault, time.Second, 10*time.Second), func() { w.issue(n, res, "up") })
		return
	}
	w.after(between(w.rng.fault, time.Second, 20*time.Second), func() { w.issue(n, res, "primary --force") })
}

// fill leaves almost no room on the log file system for a while.
func (w *World) fill(n *node) {
	n.quiet++
	sp, err := n.fs.Space(".")
	n.quiet--
	if err != nil {
		return
	}
	n.fs.SetQuota(sp.Total - sp.Free + w.rng.fault.Int64N(200<<10))
	w.logf("fault: the log file system of %s is almost full", n.id)
	w.after(between(w.rng.fault, time.Second, 20*time.Second), func() { n.fs.SetQuota(1 << 40) })
}
