package sim

import (
	"time"

	"mars/internal/block"
	"mars/internal/history"
)

// app is the application of one resource: it uses the device wherever one is shown.
type app struct {
	w     *World
	res   *simResource
	seq   uint64 // of the last write
	open  []bool // by node
	until []time.Duration
}

func newApp(w *World, res *simResource) *app {
	n := w.nodeCount
	return &app{w: w, res: res, open: make([]bool, n), until: make([]time.Duration, n)}
}

func (a *app) usersAt(n *node) []string {
	if a.open[n.index] {
		return []string{"app"}
	}
	return nil
}

func (a *app) deviceLost(n *node) { a.open[n.index] = false }

// run goes on for ever: it opens devices that are shown, uses them, and closes them again.
func (a *app) run() {
	w := a.w
	if w.gone(a.res) {
		return
	}
	if w.phase == 1 {
		for _, n := range w.nodes {
			if r := n.reps[a.res.index]; n.up && r != nil && r.vol != nil && r.shown {
				n.run(func() { a.use(n, r) })
			}
		}
	}
	think := a.res.shape.think
	if w.swarm["idle-app"] {
		think *= 20
	}
	w.after(between(w.rng.app, time.Millisecond, think), a.run)
}

func (a *app) use(n *node, r *replica) {
	rng := a.w.rng.app
	if !a.open[n.index] {
		if chance(rng, 10) {
			a.open[n.index] = true
			long := 3 * time.Second
			if a.w.swarm["busy-app"] {
				long = 30 * time.Second
			}
			a.until[n.index] = a.w.now + between(rng, time.Second/10, long)
		}
		return
	}
	if a.w.now > a.until[n.index] {
		a.open[n.index] = false
		return
	}
	if chance(rng, 5) {
		a.read(r)
		return
	}
	a.burst(r)
}

// burst submits some requests at once.
func (a *app) burst(r *replica) {
	if r.vol == nil || !r.shown || !a.open[r.n.index] || r.n.dying || r.vol.Unapplied() >= r.res.shape.writeback-(128<<10) {
		return
	}
	rng := a.w.rng.app
	var reqs []*block.Request
	for range 1 + rng.IntN(4) {
		reqs = append(reqs, a.request(r))
	}
	r.vol.Submit(reqs)
}

// request makes one request whose completion is a promise.
func (a *app) request(r *replica) *block.Request {
	rng, on := a.w.rng.app, a.w.swarm
	q := &block.Request{Op: block.OpWrite}
	sectors := r.vol.Size() / block.SectorSize
	most := int64(16)
	if on["big"] && chance(rng, 6) {
		most = 120
	}
	n := 1 + rng.Int64N(min(most, sectors))
	at := rng.Int64N(sectors - n + 1)
	if chance(rng, 2) {
		at = min(at, rng.Int64N(8)) // a hot spot
	}
	q.Off, q.Len = at*block.SectorSize, n*block.SectorSize
	switch {
	case on["flush"] && chance(rng, 6):
		q.Op, q.Off, q.Len = block.OpFlush, 0, 0
	case on["discard"] && chance(rng, 8):
		q.Op = block.OpDiscard
		if chance(rng, 2) {
			q.Op = block.OpWriteZeroes
		}
	default:
		a.seq++
		q.Data = payload(label{uint32(a.res.index), a.seq}, q.Off, q.Len)
	}
	if on["fua"] && chance(rng, 6) {
		q.Flags |= block.FUA
	}
	a.expect(r, q)
	return q
}

// expect notes down what the completion of the request promises.
func (a *app) expect(r *replica, q *block.Request) {
	st := &a.w.stats
	st.Writes++
	before := r.vol.Log().EndPosition() // what a flush covers
	v, n := r.vol, r.n
	must := &n.must[a.res.index]
	durable := q.Op == block.OpFlush || q.Flags&block.FUA != 0 || a.res.shape.writeThrough
	called := false
	q.Done = func(err error) {
		if called {
			a.w.failf("I4", "%s/%s: a request completes twice", n.id, a.res.id)
		}
		called = true
		if err != nil || n.dying || r.vol != v {
			return
		}
		st.Acked++
		pos := v.Log().EndPosition()
		if q.Op != block.OpFlush {
			must.acked(pos)
		}
		if durable {
			st.Flushed++
			if q.Op == block.OpFlush {
				pos = before
			}
			must.flushed(pos)
		}
	}
	if a.w.canary("early-flush") && durable {
		done := q.Done
		if q.Op == block.OpFlush {
			done(nil)
			q.Done = func(error) {}
		}
	}
}

// read compares what the device returns with what was written.
func (a *app) read(r *replica) {
	if r.vol == nil || r.n.dying || r.pausing || !r.vol.Status().Writable {
		return // in the middle of a write either content would be right
	}
	rng := a.w.rng.app
	sectors := r.vol.Size() / block.SectorSize
	n := 1 + rng.Int64N(min(32, sectors))
	at := rng.Int64N(sectors - n + 1)
	buf := make([]byte, n*block.SectorSize)
	err := r.vol.ReadAt(buf, at*block.SectorSize)
	if err != nil || r.n.dying {
		return
	}
	a.w.stats.Reads++
	a.w.learn(r)
	p := r.vol.Log().Path()
	want := a.res.truth.chapters[p.Tip().ID].image(p.End)
	for i := range n {
		got := readSector(buf[i*block.SectorSize:(i+1)*block.SectorSize], uint32(a.res.index), at+i)
		if got != want[at+i] && !r.n.damaged[a.res.index] {
			a.w.failf("I4", "%s/%s: sector %d reads as write %d, it should be %d (LSN %d)", r.n.id, a.res.id, at+i, int64(got), want[at+i], p.End)
		}
	}
}

// promise is what the log of a replica must contain after its node has died.
type promise struct {
	kill  history.Position // after the death of the process
	power history.Position // after a power cut
	known bool
	death int // how the node died last: 0 = not at all, 1 = killed, 2 = power cut
}

func (p *promise) acked(pos history.Position) { p.kill, p.known = pos, true }

// flushed notes down that everything up to pos is durable.
func (p *promise) flushed(pos history.Position) {
	if pos.LSN > p.power.LSN {
		p.power = pos
	}
	if p.kill.LSN < pos.LSN {
		p.kill = pos
	}
	p.known = true
}

// cut forgets everything: the log is being cut back.
func (p *promise) cut() { *p = promise{} }
