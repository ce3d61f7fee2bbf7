package cluster

import (
	"slices"
	"time"

	"mars/internal/lamport"
)

// Each ping says what the sender's clock shows. So everybody knows how far the clocks are apart, and a node whose clock was far ahead can tell when
// it has been put right: then its stamps are too far in the future for its own clock and for those of all peers in contact. (A clock that
// is far behind makes them look like that only to itself.) What it has stamped is amended then, for nobody has taken it. A node that is alone in its
// cluster looks when somebody wants to join.

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

// theirClocks returns what the clocks of the peers in contact show when ours shows now. alone is true when there are no other members: one whose join
// has not come to its end may be refused just for what our clock has done.
func (m *member) theirClocks(now time.Time) (shown []time.Time, alone bool) {
	for _, p := range m.allPeers() {
		if t, known := p.clockAt(now); known {
			shown = append(shown, t)
		}
	}
	records, bad := m.records()
	alone = len(bad) == 0
	for id, r := range records {
		alone = alone && (id == m.id.Node() || r.Pending)
	}
	return shown, alone
}

// PutRight decides whether this node's clock, which shows now, was far ahead and is right again: newest, the newest of its stamps, is too far in the
// future for its own clock and for those of all peers in contact (theirs), of whom there must be one, or no other member. And its clock must agree with
// theirs: one that is far behind meanwhile would stamp anew with times that are older than what was there before.
func PutRight(newest int64, now time.Time, theirs []time.Time, alone bool) bool {
	stamp := lamport.Stamp{Time: newest}
	if lamport.Check(stamp, now) == nil {
		return false
	}
	for _, t := range theirs {
		if lamport.Check(stamp, t) == nil || now.Sub(t).Abs() > lamport.MaxAhead/2 {
			return false // perhaps it is our clock that is wrong now
		}
	}
	return len(theirs) > 0 || alone && lamport.Plausible(now)
}

// amend amends what this node has stamped while its clock was wrong, when that is over.
func (m *member) amend() {
	now, newest := m.c.cfg.Now(), m.store.Newest()
	if lamport.Check(lamport.Stamp{Time: newest}, now) == nil {
		return
	}
	theirs, alone := m.theirClocks(now)
	if !PutRight(newest, now, theirs, alone) {
		return
	}
	n, err := m.store.Amend()
	m.log.Warn("the clock has been put right: changes stamped too far in the future are stamped anew", "changes", n, "err", err)
}

// trustClock tells whether the wall clock is right, as far as can be known: a peer in contact says so, or there is no other member.
func (m *member) trustClock() bool {
	now := m.c.cfg.Now()
	theirs, alone := m.theirClocks(now)
	return slices.ContainsFunc(theirs, func(t time.Time) bool { return lamport.Agree(t, now) }) || alone && lamport.Plausible(now)
}
