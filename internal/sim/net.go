package sim

import (
	"errors"
	"time"
)

// network is the lines between the nodes. A line has two directions that fail independently.
type network struct {
	w     *World
	lines [][]*line // from, to
	conns int
}

type line struct {
	cut   bool
	delay time.Duration
	bytes float64 // per second
	held  []*pipe // pipes whose first frame waits for the line to be whole again
}

var (
	errReset    = errors.New("connection reset")
	errTimeout  = errors.New("connection timed out")
	errRefused  = errors.New("connection refused")
	errStranger = errors.New("not a member of the cluster")
)

func newNetwork(w *World) *network {
	n := &network{w: w}
	for range w.nodes {
		row := make([]*line, len(w.nodes))
		for i := range row {
			row[i] = &line{}
			row[i].repair(w)
		}
		n.lines = append(n.lines, row)
	}
	return n
}

func (l *line) repair(w *World) {
	l.delay, l.bytes = between(w.rng.net, 200*time.Microsecond, 20*time.Millisecond), 50e6
}

func (n *network) line(from, to *node) *line { return n.lines[from.index][to.index] }

// setCut breaks or restores one direction.
func (n *network) setCut(l *line, cut bool) {
	l.cut = cut
	if cut {
		return
	}
	held := l.held
	l.held = nil
	for _, p := range held {
		p.moving = false
		p.move()
	}
}

// frame is what travels.
type frame struct {
	kind    byte
	payload []byte
	end     error // not nil: the end of the connection
}

// pipe is one direction of a connection: frames arrive whole and in order, or not at all.
type pipe struct {
	net    *network
	line   *line
	to     *end
	queue  []frame
	bytes  int
	moving bool
	dead   bool
	stuck  int // counts the times it was held, to find out whether it still is
}

// end is one end of a connection. It is the Conn of the sessions.
type end struct {
	node   *node
	life   int
	as     string // the id that the node had shown
	in     string // and its cluster
	out    *pipe
	peer   *end
	id     int
	class  string
	closed bool
	frames func(kind byte, payload []byte) // what arrives
	ended  func(error)                     // the connection has ended, and not by Close here
}

// progressTimeout is how long a connection bears that nothing moves.
const progressTimeout = 10 * time.Second

// window is how many bytes a sender has under way before it waits.
const window = 64 << 10

// ReadFrame is never called: the sessions are handed what arrives.
func (e *end) ReadFrame([]byte) (byte, []byte, error) { panic("sim: a session reads by itself") }

// WriteFrame sends a frame.
func (e *end) WriteFrame(kind byte, parts ...[]byte) error {
	if e.closed || e.node.dying || e.node.life != e.life {
		return errReset
	}
	var p []byte
	for _, x := range parts {
		p = append(p, x...)
	}
	e.node.w.stats.Frames++
	e.node.w.checkStranger(e, "sends")
	e.out.push(frame{kind: kind, payload: p})
	return nil
}

// Flush does nothing: frames travel at once.
func (e *end) Flush() error { return nil }

func (e *end) full() bool { return e.out.bytes >= window && !e.node.w.canary("no-flow-control") }

// close ends the connection from here; the other end sees it after what was sent before.
func (e *end) close() {
	if e.closed {
		return
	}
	e.closed = true
	e.out.push(frame{end: errReset})
}

func (p *pipe) push(f frame) {
	if p.dead {
		return
	}
	p.queue = append(p.queue, f)
	p.bytes += len(f.payload)
	p.move()
}

// move sends the first frame on its way.
func (p *pipe) move() {
	if p.moving || len(p.queue) == 0 {
		return
	}
	p.moving = true
	if p.line.cut {
		p.hold()
		return
	}
	f := p.queue[0]
	took := time.Duration(float64(len(f.payload)+64)/p.line.bytes*1e9) * time.Nanosecond
	w := p.net.w
	w.after(p.line.delay+took+between(w.rng.net, 0, p.line.delay/2+1), p.arrive)
}

func (p *pipe) hold() {
	p.line.held = append(p.line.held, p)
	p.stuck++
	was := p.stuck
	p.net.w.after(progressTimeout, func() {
		if p.stuck == was && p.line.cut && len(p.queue) > 0 {
			p.to.peer.breakdown(errTimeout)
		}
	})
}

func (p *pipe) arrive() {
	if p.dead {
		return
	}
	if p.line.cut {
		p.hold()
		return
	}
	w := p.net.w
	if w.swarm["reset"] && w.phase == 1 && chance(w.rng.net, 400) {
		w.logf("net: %s connection %d between %s and %s is reset", p.to.class, p.to.id, p.to.peer.node.id, p.to.node.id)
		p.to.peer.breakdown(errReset)
		return
	}
	f := p.queue[0]
	p.queue = p.queue[1:]
	p.bytes -= len(f.payload)
	p.moving = false
	p.stuck++
	p.deliver(f)
	p.move()
}

func (p *pipe) deliver(f frame) {
	e := p.to
	if e.closed || e.node.life != e.life || !e.node.up {
		return
	}
	if f.end != nil {
		e.die(f.end)
		return
	}
	e.node.w.checkStranger(e, "takes")
	e.node.run(func() { e.frames(f.kind, f.payload) })
}

// die tells this end that the connection is over.
func (e *end) die(err error) {
	if e.closed {
		return
	}
	e.closed = true
	e.out.dead = true
	if e.node.life == e.life && e.node.up {
		e.node.run(func() { e.ended(err) })
	}
}

// breakdown ends the connection without a word on the line: each end finds out at its own time.
func (e *end) breakdown(err error) {
	e.out.dead, e.peer.out.dead = true, true
	w := e.node.w
	w.after(between(w.rng.net, 0, time.Second), func() { e.die(err) })
	w.after(between(w.rng.net, 0, 3*time.Second), func() { e.peer.die(err) })
}

// dial opens a connection. accept is called at the other node and returns false to refuse; done is called here.
func (n *network) dial(from, to *node, class string, accept func(*end) bool, done func(*end, error)) {
	there, back := n.line(from, to), n.line(to, from)
	life, want := from.life, to.id
	later := func(d time.Duration, f func()) {
		n.w.after(d, func() {
			if from.up && from.life == life {
				from.run(f)
			}
		})
	}
	if there.cut || back.cut {
		later(between(n.w.rng.net, time.Second, 3*time.Second), func() { done(nil, errTimeout) })
		return
	}
	n.w.after(there.delay, func() {
		if !to.up || from.life != life || !from.up {
			later(back.delay, func() { done(nil, errRefused) })
			return
		}
		if to.id != want || !n.w.acquainted(from, to, class) {
			later(back.delay, func() { done(nil, errStranger) })
			return
		}
		here := n.connect(from, to, class)
		to.run(func() {
			if !accept(here.peer) {
				here.peer.close()
			}
		})
		later(back.delay, func() {
			if !here.closed {
				done(here, nil)
			} else {
				done(nil, errReset)
			}
		})
	})
}

// connect makes the two ends.
func (n *network) connect(from, to *node, class string) *end {
	n.conns++
	ignore := func(byte, []byte) {}
	a := &end{node: from, as: from.id, in: from.cluster, life: from.life, class: class, id: n.conns, frames: ignore, ended: func(error) {}}
	b := &end{node: to, as: to.id, in: to.cluster, life: to.life, class: class, id: n.conns, frames: ignore, ended: func(error) {}, peer: a}
	a.peer = b
	a.out = &pipe{net: n, line: n.line(from, to), to: b}
	b.out = &pipe{net: n, line: n.line(to, from), to: a}
	from.ends, to.ends = append(from.ends, a), append(to.ends, b)
	return a
}

// dropEnds is what the death of a node does to its connections: the process is gone, its kernel may say so or not.
func (n *network) dropEnds(x *node, silent bool) {
	for _, e := range x.ends {
		if e.closed {
			continue
		}
		e.closed = true
		e.out.dead, e.peer.out.dead = true, true
		wait := between(n.w.rng.net, time.Millisecond, time.Second)
		if silent {
			wait = between(n.w.rng.net, time.Millisecond, progressTimeout)
		}
		peer := e.peer
		n.w.after(wait, func() { peer.die(errReset) })
	}
	x.ends = nil
}
