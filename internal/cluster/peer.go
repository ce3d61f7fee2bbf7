package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"mars/internal/meta"
	"mars/internal/transport"
)

const (
	minRetry = 100 * time.Millisecond
	maxRetry = 2 * time.Second
	// recheckAlive is how often somebody who waits for a peer looks whether it still counts as alive.
	recheckAlive = 200 * time.Millisecond
)

// peer is another member as seen from here. It keeps (at least) one session with it: whoever of the two has none connects. When both do
// so at the same time, the one with the larger id gives its session up (session.redundant).
type peer struct {
	m       *member
	id      string
	ctx     context.Context
	stop    context.CancelCauseFunc
	guest   bool          // not in the list of nodes (yet), and not kept: it has come by itself, and has one session
	changed meta.Notifier // signalled when a session begins, becomes ready or ends, and after each attempt to connect

	mu struct {
		sync.Mutex
		sessions    map[*session]struct{}
		lastContact time.Time
		attempted   bool // at least one attempt to connect has ended, or the peer has connected
		clock       peerClock
		problem     error // of the last attempt to connect; nil while there is a session
	}
}

// run keeps a session, until the peer is stopped.
func (p *peer) run() {
	changed, cancel := p.changed.Watch()
	defer cancel()
	retry := minRetry
	for p.ctx.Err() == nil {
		if p.connected() {
			p.wait(changed, 0)
			retry = minRetry
			continue
		}
		began := p.m.c.cfg.Now()
		err := p.connect()
		if p.m.c.cfg.Now().Sub(began) > maxRetry {
			retry = minRetry // it had worked for a while
		}
		p.report(err)
		if p.ctx.Err() == nil && !p.connected() {
			p.wait(nil, p.jitter(retry))
			retry = min(2*retry, maxRetry)
		}
	}
}

// jitter spreads retries over the second half of d.
func (p *peer) jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(p.m.c.cfg.Rand()*float64(d/2))
}

// wait returns after a signal, after d if that is not 0, or when the peer is stopped.
func (p *peer) wait(signal <-chan struct{}, d time.Duration) {
	var timeout <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timeout = t.C
	}
	select {
	case <-signal:
	case <-timeout:
	case <-p.ctx.Done():
	}
}

// connect opens a session and returns when it has ended.
func (p *peer) connect() error {
	rec, err := p.m.record(p.id)
	if err != nil {
		return err
	}
	conn, err := p.m.ep.Dial(p.ctx, rec.Addr, transport.Target{Class: transport.Meta, Node: p.id})
	if err != nil {
		p.failed(err)
		return err
	}
	defer conn.Close()
	// Not with the context of the peer: a session must outlive the membership of the other node by the answer to its leaving.
	return p.talk(p.m.ctx, conn, true)
}

// failed takes note that the peer cannot be reached: with no session left it does not count as alive.
func (p *peer) failed(err error) {
	p.mu.Lock()
	news := !p.mu.attempted
	p.mu.attempted = true
	if len(p.mu.sessions) == 0 {
		news = news || p.mu.problem == nil
		p.mu.problem = err
	}
	p.mu.Unlock()
	p.changed.Notify()
	if news {
		p.m.c.notifier.Notify()
	}
}

func (p *peer) report(err error) {
	if p.ctx.Err() != nil || err == nil || errors.Is(err, errRedundant) {
		return
	}
	p.m.log.Debug("no connection to node", "peer", p.id, "err", err)
}

// talk runs a session on conn until it ends.
func (p *peer) talk(ctx context.Context, conn *transport.Conn, outgoing bool) error {
	s := newSession(p, conn, outgoing)
	p.mu.Lock()
	p.mu.sessions[s] = struct{}{}
	p.mu.attempted = true
	p.mu.Unlock()
	p.contact()
	p.m.log.Debug("session begins", "peer", p.id, "addr", conn.RemoteAddr())
	err := s.run(ctx)
	p.mu.Lock()
	delete(p.mu.sessions, s)
	p.mu.Unlock()
	p.changed.Notify()
	return err
}

// contact takes note of a sign of life.
func (p *peer) contact() {
	now := p.m.c.cfg.Now()
	p.mu.Lock()
	was := p.aliveAt(now)
	p.mu.lastContact = now
	p.mu.problem = nil
	p.mu.Unlock()
	if !was {
		p.changed.Notify()
		p.m.c.notifier.Notify()
	}
}

// aliveAt needs mu.
func (p *peer) aliveAt(now time.Time) bool {
	return p.mu.problem == nil && !p.mu.lastContact.IsZero() && now.Sub(p.mu.lastContact) < AliveWindow
}

func (p *peer) describe(n *NodeInfo) {
	now := p.m.c.cfg.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	n.Alive = p.aliveAt(now)
	n.LastContact = p.mu.lastContact
	if c := p.mu.clock; n.Alive && !c.shown.IsZero() {
		n.ClockAhead = c.shown.Add(now.Sub(c.at)).Sub(now)
	}
	switch {
	case p.mu.problem != nil:
		n.Problem = p.mu.problem.Error()
	case len(p.mu.sessions) == 0:
		n.Problem = "not connected yet"
	case !n.Alive:
		n.Problem = fmt.Sprintf("silent since %s", n.LastContact.Format(time.RFC3339))
	}
}

func (p *peer) connected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.mu.sessions) > 0
}

// hopeless tells whether there is nothing to wait for: every attempt so far was in vain, or the peer is silent.
func (p *peer) hopeless() bool {
	now := p.m.c.cfg.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.attempted && !p.aliveAt(now)
}

// ready returns a session over which requests can go, nil if there is none. Sessions that the peer has opened are preferred if its id is
// the smaller one, because those stay.
func (p *peer) ready() *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	var best *session
	for s := range p.mu.sessions {
		if s.isReady() && (best == nil || s.outgoing == (p.m.id.Node() < p.id)) {
			best = s
		}
	}
	return best
}

// request sends one and waits for the answer, over as many sessions as it takes. It gives up when ctx ends (with its cause) or when the peer
// is not alive (errNotAlive).
func (p *peer) request(ctx context.Context, what requestKind) error {
	changed, cancel := p.changed.Watch()
	defer cancel()
	recheck := time.NewTicker(recheckAlive)
	defer recheck.Stop()
	for {
		if s := p.ready(); s != nil {
			err := s.request(ctx, what)
			if err == nil || !errors.Is(err, errSessionEnded) {
				return err
			}
		}
		if p.hopeless() {
			return fmt.Errorf("node %s: %w", p.id, errNotAlive)
		}
		select {
		case <-changed:
		case <-recheck.C:
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

var errNotAlive = errors.New("not alive")
