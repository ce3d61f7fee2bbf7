package cluster

import (
	"time"

	"mars/internal/lamport"
)

// Each ping says what the sender's clock shows. So everybody knows how far the clocks are apart, and a node whose clock was far ahead can tell when
// it has been put right: then its stamps are too far in the future for its own clock and for those of all peers in contact. (A clock that
// is far behind makes them look like that only to itself.) What it has stamped is amended then, for nobody has taken it.

// peerClock is what the peer's clock has shown last.
type peerClock struct {
	shown time.Time // zero: not known yet
	at    time.Time // by our clock, also the one that does not jump
}

// clockShows takes note of a peer's clock.
func (p *peer) clockShows(shown time.Time) {
	now := p.m.c.cfg.Now()
	p.mu.Lock()
	p.mu.clock = peerClock{shown, now}
	p.mu.Unlock()
}

// clockAt returns what the peer's clock shows when ours shows now; false if it is not known, or not any more.
func (p *peer) clockAt(now time.Time) (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.mu.clock
	return c.shown.Add(now.Sub(c.at)), !c.shown.IsZero() && p.aliveAt(now)
}

// amend amends what this node has stamped while its clock was wrong, when that is over.
func (m *member) amend() {
	now := m.c.cfg.Now()
	newest := lamport.Stamp{Time: m.store.Newest()}
	if lamport.Check(newest, now) == nil {
		return
	}
	heard := false
	for _, p := range m.allPeers() {
		theirs, known := p.clockAt(now)
		if known && lamport.Check(newest, theirs) == nil {
			return // perhaps it is our clock that is wrong now
		}
		heard = heard || known
	}
	if !heard {
		return
	}
	n, err := m.store.Amend()
	m.log.Warn("the clock has been put right: changes stamped too far in the future are stamped anew", "changes", n, "err", err)
}
