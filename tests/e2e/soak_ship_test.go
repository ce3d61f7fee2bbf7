package e2e

import (
	"context"
	"sync"
	"time"

	"mars/internal/control"
)

// shipWatch learns, while an application works, up to which mark of it each secondary has the log durably: that is what a failover to it must
// not lose. It takes a mark, then the end of the primary's log, which therefore holds everything up to the mark, and then looks which secondary
// is at that end.
type shipWatch struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	shipped map[string]mark
}

const watchEvery = 50 * time.Millisecond

func (s *shipWatch) start(v *soakVolume, primary *node) {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	members := append([]*node(nil), v.members...)
	s.wg.Go(func() { s.run(ctx, v, primary, members) }) // ends with stop
}

func (s *shipWatch) stop() {
	if s.cancel != nil {
		s.cancel()
	}
	s.wg.Wait()
}

func (s *shipWatch) run(ctx context.Context, v *soakVolume, primary *node, members []*node) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		at := v.app.mark()
		st, err := primary.tryStatus()
		if err != nil {
			continue
		}
		end := member(st, v.name, primary.name)
		if end.Device == "" {
			continue
		}
		for _, x := range members {
			if x != primary && ctx.Err() == nil && hasAll(x, v.name, end) {
				s.arrived(x, at)
			}
		}
	}
}

// waitForSecondary is how long a sample waits for a secondary to come to the end of the log; it is behind by a round trip.
const waitForSecondary = 3

func hasAll(x *node, res string, end control.Member) bool {
	for range waitForSecondary {
		st, err := x.tryStatus()
		if err != nil {
			return false
		}
		if m := member(st, res, x.name); m.Consistent && m.Timeline == end.Timeline && m.DurableLSN >= end.EndLSN {
			return true
		}
	}
	return false
}

func (s *shipWatch) arrived(x *node, at mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shipped[x.name] = at
}

// forget: the replica is filled anew, or gone.
func (s *shipWatch) forget(x *node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.shipped, x.name)
}

func (s *shipWatch) at(x *node) mark {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shipped[x.name]
}
