package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"mars/tests/faultnet"
)

// badNet is something that is wrong with the network until it is healed, which may be done more than once.
type badNet struct {
	what string
	heal func()
}

// healSoon heals at the latest when an application could wait for log space: that is freed only when the others are in contact again.
func (b *badNet) healSoon() { time.AfterFunc(patience/8, b.heal) }

const (
	modem       = 5000 / 8 // bytes per second
	breakWithin = 200 << 10
	stutterMost = 150 * time.Millisecond
)

// damage does something to the network between a node and another one, in one direction or both.
func (s *soak) damage(a, b *node) *badNet {
	there, back := s.w.net.Link(a.name, b.name), s.w.net.Link(b.name, a.name)
	links, where := []*faultnet.Link{there, back}, fmt.Sprintf("between %s and %s", a.name, b.name)
	if s.rnd.IntN(2) == 0 {
		links, where = links[:1], fmt.Sprintf("from %s to %s", a.name, b.name)
	}
	heal := func() { s.w.net.Heal(a.name, b.name) }
	s.netFaults++
	var what string
	switch s.rnd.IntN(5) {
	case 0:
		what = "stall"
		each(links, (*faultnet.Link).Stall)
	case 1:
		what = "5 kbit/s"
		each(links, func(l *faultnet.Link) { l.Limit(modem) })
	case 2:
		what, where = "cut", fmt.Sprintf("between %s and %s", a.name, b.name)
		s.w.net.Cut(a.name, b.name)
	case 3:
		what = "resets in the middle of a frame"
		heal = repeatedly(s.rnd.Uint64(), links, func(l *faultnet.Link, rnd *rand.Rand) { l.BreakAfter(rnd.Int64N(breakWithin)) }, heal)
	case 4:
		what = "delay by stop and go"
		stalled := false
		heal = repeatedly(s.rnd.Uint64(), links[:1], func(l *faultnet.Link, _ *rand.Rand) {
			if stalled = !stalled; stalled {
				l.Stall()
			} else {
				l.Heal()
			}
		}, heal)
	}
	return &badNet{what: what + " " + where, heal: sync.OnceFunc(heal)}
}

func each(links []*faultnet.Link, f func(*faultnet.Link)) {
	for _, l := range links {
		f(l)
	}
}

// repeatedly does something to links at random moments. It returns what ends that and then heals.
func repeatedly(seed uint64, links []*faultnet.Link, f func(*faultnet.Link, *rand.Rand), heal func()) func() {
	ctx, cancel := context.WithCancel(context.Background())
	rnd := rand.New(rand.NewPCG(seed, 4))
	var wg sync.WaitGroup
	wg.Go(func() { // ends with ctx
		for ctx.Err() == nil {
			for _, l := range links {
				f(l, rnd)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(rnd.Int64N(int64(stutterMost)))):
			}
		}
	})
	return func() { cancel(); wg.Wait(); heal() }
}

// maybeDamage damages the network around a node in half of all cases.
func (s *soak) maybeDamage(x *node) *badNet {
	if s.rnd.IntN(2) == 0 {
		return &badNet{what: "a healthy network", heal: func() {}}
	}
	others := s.others(x)
	return s.damage(x, others[s.rnd.IntN(len(others))])
}
