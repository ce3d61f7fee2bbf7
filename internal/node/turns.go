package node

import (
	"sync"
	"time"
)

// turns keeps a distance between the small background steps of one kind of all replicas of a node. If each replica kept its own distance only, twenty
// busy ones would leave the machine no time for anything else; so they come less often, and do more each time.
type turns struct {
	mu   sync.Mutex
	next time.Time
}

// take returns when the caller's turn is: a gap from now, or from the turn that was given before.
func (t *turns) take(gap time.Duration) time.Time {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next.Before(now) {
		t.next = now
	}
	t.next = t.next.Add(gap)
	return t.next
}

// after is when an activity that shall pause for that long may come again: then, or when it is its turn.
func (t *turns) after(pause, gap time.Duration) time.Time {
	at, turn := time.Now().Add(pause), t.take(gap)
	if turn.After(at) {
		return turn
	}
	return at
}
