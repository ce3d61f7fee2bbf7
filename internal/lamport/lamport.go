// Package lamport orders changes that happen on different nodes without asking anybody: a Clock hands out stamps that are never behind the
// wall clock and never behind any stamp this node has seen, so that what a node writes after having seen something is always the newer of
// the two.
//
// Guarantees: stamps of one Clock grow strictly, also when the wall clock jumps backwards, and also over restarts as long as the caller
// gives back a floor (Clock.Floor) that it had persisted. A stamp from elsewhere that is more than MaxAhead ahead of the local wall clock is
// refused, so that one broken clock cannot drag the whole cluster into the future. When that clock has been put
// right PutBack makes its Clock go back; nothing else does.
//
// The reverse case - the local wall clock stands decades behind, say after a dead battery - refuses everybody else's stamps. That is
// wanted: nothing is lost (the others keep what they have and offer it again), and it is reported.
//
// The package does no IO; the wall clock is a parameter.
package lamport

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// MaxAhead is how far a received stamp may be ahead of the local wall clock.
const MaxAhead = 30 * 24 * time.Hour

// ErrFuture is the condition behind every FutureError.
var ErrFuture = errors.New("stamp too far in the future")

// Stamp is a point in the order of all changes of a cluster.
type Stamp struct {
	// Time is in nanoseconds since the Unix epoch.
	Time int64
	// Node is the id of the node that made the change; it decides between stamps with the same Time.
	Node string
}

// Compare returns -1, 0 or 1 as s is older than, the same as, or newer than t. It is a total order.
func (s Stamp) Compare(t Stamp) int {
	if c := cmp.Compare(s.Time, t.Time); c != 0 {
		return c
	}
	return strings.Compare(s.Node, t.Node)
}

// IsZero tells whether s is the zero Stamp, which is older than every stamp a Clock gives.
func (s Stamp) IsZero() bool { return s == Stamp{} }

// When returns the stamp's time for display.
func (s Stamp) When() time.Time { return time.Unix(0, s.Time) }

func (s Stamp) String() string {
	return s.When().UTC().Format(time.RFC3339Nano) + "/" + s.Node
}

// FutureError says that a stamp was refused because it is too far ahead. It satisfies errors.Is(err, ErrFuture).
type FutureError struct {
	Stamp Stamp
	Now   time.Time
}

func (e *FutureError) Error() string {
	ahead := time.Duration(e.Stamp.Time - e.Now.UnixNano()).Round(time.Hour)
	return fmt.Sprintf("stamp of node %s is %s ahead of the local clock (limit %s): correct the clock of that node, or of this one",
		e.Stamp.Node, ahead, MaxAhead)
}

// Unwrap returns ErrFuture.
func (e *FutureError) Unwrap() error { return ErrFuture }

// Check tells whether s may be accepted when the wall clock shows now; the error is a *FutureError.
func Check(s Stamp, now time.Time) error {
	// Written without a difference of s.Time, which could overflow.
	if s.Time > now.Add(MaxAhead).UnixNano() {
		return &FutureError{Stamp: s, Now: now}
	}
	return nil
}

// earliest is before the first release: a clock that stands behind it has never been set.
var earliest = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Agree tells whether two wall clocks, read at the same time on two nodes, confirm each other: neither would soon refuse the other one's stamps.
func Agree(a, b time.Time) bool {
	const most = MaxAhead / 2
	return Plausible(a) && Plausible(b) && !a.Add(most).Before(b) && !b.Add(most).Before(a)
}

// Plausible tells whether a wall clock was ever set.
func Plausible(now time.Time) bool { return !now.Before(earliest) }

// Next returns the time to use after last when the wall clock shows now.
func Next(last int64, now time.Time) int64 { return max(last+1, now.UnixNano()) }

// Clock gives stamps to one node. It is safe for concurrent use.
type Clock struct {
	node string
	now  func() time.Time

	mu struct {
		sync.Mutex
		last     int64 // the newest time given out or seen
		observed int64 // the newest time seen in this life
	}
}

// New returns a clock for node. All its stamps are newer than floor, which is zero or what Floor had returned in an earlier life.
func New(node string, now func() time.Time, floor int64) *Clock {
	c := &Clock{node: node, now: now}
	c.mu.last = floor
	return c
}

// Next returns a stamp newer than all that were returned or observed before.
func (c *Clock) Next() Stamp {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.last = Next(c.mu.last, now)
	return Stamp{Time: c.mu.last, Node: c.node}
}

// Observe takes note of a stamp that came from elsewhere. A stamp too far in the future changes nothing and gives a *FutureError.
func (c *Clock) Observe(s Stamp) error {
	if err := Check(s, c.now()); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.last = max(c.mu.last, s.Time)
	c.mu.observed = max(c.mu.observed, s.Time)
	return nil
}

// PutBack forgets all stamps after limit: they were made by a wall clock that has been put right, and nobody else has taken them. It goes back to
// newest, the newest one that is left, and not behind what was observed, which may be left elsewhere only: what was changed after that stays newer.
func (c *Clock) PutBack(newest, limit int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.observed <= limit {
		newest = max(newest, c.mu.observed)
	}
	c.mu.last = min(c.mu.last, newest)
}

// Floor returns the newest time given out or observed, for the caller to persist.
func (c *Clock) Floor() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.last
}
