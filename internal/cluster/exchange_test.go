package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mars/internal/lamport"
	"mars/internal/meta"
)

func TestPartitionHeals(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b", "c")
	a, b, c := all[0], all[1], all[2]
	must(t, a.Put("both", []byte("before")))
	must(t, a.Put("dies", []byte("before")))
	must(t, a.Sync(t.Context()))
	w.cut("a", "b")
	w.cut("a", "c")
	eventually(t, a, func() bool { return !anyAlive(a) })
	must(t, a.Put("left", []byte("1")))
	must(t, a.Put("both", []byte("older")))
	must(t, a.Put("dies", []byte("older")))
	must(t, b.Put("right", []byte("2")))
	must(t, c.Put("both", []byte("newer")))
	must(t, c.Delete("dies"))
	sees(t, b, "both", "newer") // the other side works on
	if _, _, ok := b.Get("left"); ok {
		t.Fatal("the network is not cut")
	}
	w.heal()
	for _, n := range all {
		sees(t, n, "left", "1")
		sees(t, n, "right", "2")
		sees(t, n, "both", "newer")
		sees(t, n, "dies", "")
	}
	w.connected(all...)
	equal(t, all...)
}

// equal waits until all have the same metadata, tombstones included.
func equal(t *testing.T, all ...*Cluster) {
	t.Helper()
	digest := func(c *Cluster) meta.Digest {
		m, err := c.current()
		must(t, err)
		return m.store.Digest()
	}
	for _, c := range all[1:] {
		eventually(t, c, func() bool { return digest(c) == digest(all[0]) })
	}
}

// Two that cannot talk to each other learn from a third.
func TestNewsTravelAroundACut(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b", "c")
	w.cut("a", "b")
	must(t, all[0].Put("k", []byte("v")))
	sees(t, all[1], "k", "v")
}

// The rule for a secondary that resets the primary: a primary set elsewhere at the same time wins, whatever the order of arrival.
func TestOldStampLosesAgainstConcurrentPut(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b")
	a, b := all[0], all[1]
	must(t, a.Put("primary", []byte("a")))
	must(t, a.Sync(t.Context()))
	w.cut("a", "b")
	must(t, b.Put("primary", []byte("b")))
	_, seen, _ := a.Get("primary")
	must(t, a.PutAfter("primary", []byte("(none)"), seen)) // later, and yet it loses
	w.heal()
	sees(t, a, "primary", "b")
	sees(t, b, "primary", "b")
	wantErr(t, a.PutAfter("primary", []byte("(none)"), seen), meta.ErrSuperseded)
}

func TestSyncBringsEverything(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b", "c")
	for round := range 20 {
		for i, c := range all {
			must(t, c.PutVolatile(fmt.Sprintf("k%d", i), fmt.Append(nil, round)))
		}
		must(t, all[0].Sync(t.Context()))
		for i, c := range all {
			if v, _, _ := all[0].Get(fmt.Sprintf("k%d", i)); string(v) != fmt.Sprint(round) {
				t.Fatalf("round %d: k%d = %s here", round, i, v)
			}
			if v, _, _ := c.Get("k0"); string(v) != fmt.Sprint(round) {
				t.Fatalf("round %d: k0 = %s at %d", round, v, i)
			}
		}
	}
}

func TestSyncLeavesTheDeadOut(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b", "c")
	must(t, all[1].Close())
	must(t, all[0].Sync(t.Context())) // also when it has not been noticed yet
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if err := all[0].Sync(ctx); err != nil && !errors.Is(err, stop) {
		t.Fatal(err)
	}
}

// A node whose clock is 60 days ahead is not believed, is reported, and does not drag the others along.
func TestFarFutureIsRefused(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b")
	a, b := all[0], all[1]
	must(t, b.Close())
	cfg := b.cfg
	cfg.Now = func() time.Time { return time.Now().Add(60 * 24 * time.Hour) }
	b = w.open(cfg)
	must(t, b.Put("poison", []byte("x")))
	eventually(t, a, func() bool { return a.Stats().RefusedEntries > 0 })
	if last := a.Stats().LastRefusal; !strings.Contains(last, b.Self().ID) {
		t.Errorf("report does not name the node: %s", last)
	}
	must(t, a.Put("good", []byte("y")))
	sees(t, b, "good", "y")
	if _, stamp, ok := a.Get("good"); !ok || lamport.Check(stamp, time.Now().Add(-lamport.MaxAhead+time.Hour)) != nil {
		t.Fatalf("the clock was poisoned: %v", stamp)
	}
	if _, _, ok := a.Get("poison"); ok {
		t.Fatal("the poison was taken")
	}
	// Once its clock is right its changes get through again.
	must(t, b.Close())
	cfg.Now = time.Now
	b = w.open(cfg)
	must(t, b.Put("later", []byte("z")))
	w.connected(a, b)
	sees(t, a, "later", "z")
	sees(t, a, "poison", "x")
}

// The only node of a cluster has nobody to ask. When its clock is right again it lets newcomers in, who would refuse what it has stamped.
func TestFarFutureOfTheOnlyNode(t *testing.T) {
	w := newWorld(t)
	a := w.cluster("a")[0]
	must(t, a.Close())
	cfg := a.cfg
	cfg.Now = func() time.Time { return time.Now().Add(10 * 365 * 24 * time.Hour) }
	a = w.open(cfg)
	must(t, a.Put("late", []byte("x")))
	tok, err := a.IssueToken(time.Hour)
	must(t, err)
	b := w.open(w.config("b"))
	if err := b.Join(t.Context(), "", tok); !errors.Is(err, lamport.ErrFuture) {
		t.Fatalf("join a node whose clock is wrong: %v", err)
	}
	must(t, a.Close())
	cfg.Now = time.Now
	a = w.open(cfg)
	tok, err = a.IssueToken(time.Hour)
	must(t, err)
	must(t, b.Join(t.Context(), "", tok))
	sees(t, b, "late", "x")
}

func TestRestartContinues(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b")
	a, b := all[0], all[1]
	must(t, a.Put("k", []byte("1")))
	must(t, a.Sync(t.Context()))
	id, cluster := b.Self().ID, b.ID()
	must(t, b.Close())
	must(t, a.Put("k", []byte("2")))
	b = w.open(b.cfg)
	if b.Self().ID != id || b.ID() != cluster {
		t.Fatal("another identity")
	}
	sees(t, b, "k", "2")
	w.connected(a, b)
	eventually(t, a, func() bool { n, err := a.Node("b"); return err == nil && n.Addr == b.Self().Addr })
}

// The whole cluster goes down at once. Each comes up with fixed addresses, in any order.
func TestWholeClusterRestarts(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b", "c")
	must(t, all[0].Put("k", []byte("1")))
	must(t, all[0].Sync(t.Context()))
	for _, c := range all {
		c.cfg.Listen = c.Self().Addr
		must(t, c.Close())
	}
	for i := range all {
		all[i] = w.open(all[i].cfg)
	}
	w.connected(all...)
	for _, c := range all {
		sees(t, c, "k", "1")
	}
}

func TestTwoCannotRunInOneDirectory(t *testing.T) {
	w := newWorld(t)
	a := w.cluster("a")[0]
	if c, err := Open(a.cfg); err == nil {
		_ = c.Close()
		t.Fatal("opened twice")
	}
}

// All nodes write at once, to shared and to own keys, while the network comes and goes: in the end all are equal.
func TestStorm(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b", "c")
	var wg sync.WaitGroup
	var written atomic.Int64
	for i, c := range all {
		wg.Go(func() {
			for n := range 150 {
				key := fmt.Sprintf("shared/%d", n%7)
				var err error
				switch n % 5 {
				case 0:
					err = c.Put(key, fmt.Append(nil, i, n))
				case 1:
					err = c.Delete(key)
				default:
					err = c.PutVolatile(fmt.Sprintf("own/%d/%d", i, n), fmt.Append(nil, n))
				}
				if err != nil {
					t.Error(err)
				}
				written.Add(1)
			}
		})
	}
	for i := range 6 {
		eventually(t, all[0], func() bool { return written.Load() > int64(70*i) })
		if i%2 == 0 {
			w.cut("a", string('b'+rune(i/2%2)))
		} else {
			w.heal()
		}
	}
	wg.Wait()
	w.heal()
	w.connected(all...)
	equal(t, all...)
	if n := len(all[2].List("own/")); n != 3*90 {
		t.Fatalf("%d own values", n)
	}
}

func TestOneSessionPerPair(t *testing.T) {
	w := newWorld(t)
	all := w.cluster("a", "b", "c", "d")
	for _, c := range all {
		eventually(t, c, func() bool {
			m, err := c.current()
			must(t, err)
			for _, p := range m.allPeers() {
				p.mu.Lock()
				n := len(p.mu.sessions)
				p.mu.Unlock()
				if n != 1 {
					return false
				}
			}
			return true
		})
	}
}
