package cluster

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mars/internal/lamport"
)

// wrong is further off than what is tolerated.
const wrong = 40 * 24 * time.Hour

// jumping runs a test with two nodes of which b has a clock that can be set wrong.
func jumping(t *testing.T, f func(t *testing.T, a, b *Cluster, jump func(time.Duration))) {
	var ahead atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	bubbleWith(t, clock, func(t *testing.T, _ *memNet, a, b *Cluster) {
		f(t, a, b, func(d time.Duration) {
			ahead.Store(int64(d))
			sleepUntil(t, func() bool { return a.Nodes()[1].ClockAhead.Round(time.Minute) == d })
		})
	})
}

func has(c *Cluster, key, value string) func() bool {
	return func() bool { v, _, ok := c.Get(key); return ok && string(v) == value }
}

// A clock jumps far ahead, which is known, and what the node changes then is refused; when the clock is right again it gets through, in the
// order in which it was changed, and nobody's clock has been dragged along.
func TestClockFarAheadIsPutRight(t *testing.T) {
	jumping(t, func(t *testing.T, a, b *Cluster, jump func(time.Duration)) {
		must(t, a.Put("k", []byte("old")))
		sleepUntil(t, has(b, "k", "old"))
		jump(wrong)
		must(t, b.Put("k", []byte("new")))
		must(t, b.PutVolatile("fact", []byte("f")))
		sleepUntil(t, func() bool { return a.Stats().RefusedEntries > 1 })
		if last := a.Stats().LastRefusal; !strings.Contains(last, b.Self().ID) {
			t.Errorf("the report does not name the node: %s", last)
		}
		must(t, a.Put("other", []byte("o")))
		sleepUntil(t, has(b, "other", "o"))
		if !has(a, "k", "old")() || has(a, "fact", "f")() {
			t.Fatal("what is too far in the future was taken")
		}
		jump(0)
		took := max(sleepUntil(t, has(a, "k", "new")), sleepUntil(t, has(a, "fact", "f")))
		if took > 5*pingEvery {
			t.Errorf("got through only after %v", took)
		}
		for _, c := range []*Cluster{a, b} {
			m, err := c.current()
			must(t, err)
			if err := lamport.Check(lamport.Stamp{Time: m.store.Newest()}, time.Now()); err != nil {
				t.Errorf("after all: %v", err)
			}
		}
		must(t, a.Put("k", []byte("newer")))
		sleepUntil(t, has(b, "k", "newer"))
	})
}

// A clock jumps far back: the node refuses what the others change, keeps what it has with its stamps - it is not they that are wrong - and takes
// everything as soon as the clock is right again.
func TestClockFarBehindIsPutRight(t *testing.T) {
	jumping(t, func(t *testing.T, a, b *Cluster, jump func(time.Duration)) {
		must(t, b.Put("mine", []byte("m")))
		_, before, _ := b.Get("mine")
		jump(-wrong)
		must(t, a.Put("k", []byte("v")))
		must(t, b.Put("fact", []byte("f")))
		sleepUntil(t, has(a, "fact", "f"))
		sleepUntil(t, func() bool { return b.Stats().RefusedEntries > 0 })
		<-time.After(10 * pingEvery)
		if _, after, _ := b.Get("mine"); after != before {
			t.Errorf("a stamp was changed from %v to %v by a clock that is behind", before, after)
		}
		jump(0)
		if took := sleepUntil(t, has(b, "k", "v")); took > 5*pingEvery {
			t.Errorf("taken only after %v", took)
		}
	})
}

// TestPutRight: stamps are made anew only by a clock that others confirm (the third case lost a deletion: simulator, seed 700970).
func TestPutRight(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	late := now.Add(wrong).UnixNano()
	for _, c := range []struct {
		what   string
		clock  time.Time
		theirs []time.Time
		alone  bool
		want   bool
	}{
		{"right again, and a peer confirms it", now, []time.Time{now.Add(time.Hour)}, false, true},
		{"still wrong", now.Add(wrong), []time.Time{now}, false, false},
		{"wrong in the other direction now", now.Add(-wrong), []time.Time{now}, false, false},
		{"a peer whose clock is as wrong as ours was", now, []time.Time{now, now.Add(wrong)}, false, false},
		{"nobody in contact", now, nil, false, false},
		{"nobody else in the cluster", now, nil, true, true},
	} {
		if got := PutRight(late, c.clock, c.theirs, c.alone); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

// What a node has changed with a wrong clock nobody takes, and would be lost if it left (found by the simulator, seed 21912). When the clock is right
// again all of that arrives with the request to be let go, at the latest.
func TestLeaveWithAWrongClock(t *testing.T) {
	jumping(t, func(t *testing.T, a, b *Cluster, jump func(time.Duration)) {
		must(t, a.Put("k", []byte("old")))
		sleepUntil(t, has(b, "k", "old"))
		jump(wrong)
		must(t, b.Put("k", []byte("new")))
		err := b.Leave(t.Context(), LeaveOptions{})
		wantErr(t, err, ErrUnconfirmed)
		if !strings.Contains(err.Error(), ErrRefused.Error()) {
			t.Errorf("does not say why: %v", err)
		}
		jump(0)
		sleepUntil(t, func() bool { return b.Leave(t.Context(), LeaveOptions{}) == nil })
		if !has(a, "k", "new")() {
			t.Error("left, and the change is lost")
		}
	})
}

// The other one's clock was wrong, and is right again: it has refused something and does not know yet that it could be taken now.
func TestLeaveTakesAlongWhatWasRefused(t *testing.T) {
	jumping(t, func(t *testing.T, a, b *Cluster, jump func(time.Duration)) {
		jump(-wrong)
		must(t, a.Put("k", []byte("v")))
		sleepUntil(t, func() bool { return b.Stats().RefusedEntries > 0 })
		jump(0)
		sleepUntil(t, func() bool { return a.Leave(t.Context(), LeaveOptions{}) == nil })
		if !has(b, "k", "v")() {
			t.Error("left, and the change is lost")
		}
	})
}
