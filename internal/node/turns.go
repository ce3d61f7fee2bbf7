package node

import (
	"sync"
	"time"
)

// turns spreads the small background steps of one kind of all replicas of a node over time. If each replica kept its own distance only, twenty busy
// ones would leave the machine no time for anything else; so they come less often, and do more each time.
type turns struct {
	gap, most time.Duration // between two steps; the longest wait, whatever the others do

	mu   sync.Mutex
	next time.Time
}

// take returns how long the caller has to wait for its turn. Only who will wait may take one.
func (t *turns) take() time.Duration {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next.Before(now) {
		t.next = now
	}
	wait := min(t.next.Sub(now), t.most)
	t.next = now.Add(min(wait+t.gap, t.most))
	return wait
}
