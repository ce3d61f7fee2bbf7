package sim

import (
	"slices"
	"testing"
)

// canaries are bugs that can be built into the simulated nodes, and the checker that has to notice.
var canaries = []struct {
	bug     string
	checker string
	seed    uint64 // to begin with; the one that is printed makes the test quick again when the simulator has changed
}{
	{"apply-damage", "I1", 1},       // what is written to the disk is not what the log says
	{"leave-mixture", "I1", 251},    // a step that a crash has interrupted is not finished while replay is paused
	{"skip-flush", "I1", 1},         // the checkpoint moves before the disk is flushed
	{"lying-sync", "I2", 3},         // the log is said to be durable and is not: the disk gets ahead of it
	{"lying-sync", "I3", 3},         // the same: it leaves the node
	{"early-flush", "I4", 3},        // a flush is answered at once
	{"steal-token", "I5", 1},        // timelines are opened by force that nobody has asked for
	{"drop-data", "I6", 8},          // a tail is cut although there are data in it
	{"apply-unverified", "I7", 3},   // fetched log is not what the origin has logged
	{"meta-drop", "I8", 2},          // wishes never arrive at other nodes
	{"delete-needed", "I9", 2},      // log is deleted as soon as it is on the own disk
	{"no-flow-control", "I9", 3},    // a sender does not wait for a slow peer
	{"strangers", "I10", 1},         // nobody asks who the other one is
	{"far-future", "I8", 1},         // stamps of another year are taken
	{"silent-wait", "I11", 12},      // nobody says what is waited for
	{"hasty-invalidate", "I8", 255}, // two members throw their replicas away, each counting on the other one
}

// TestCanaries: each checker notices the bug that it is there for.
func TestCanaries(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes long under the race detector, which has nothing to find in one goroutine")
	}
	for _, c := range canaries {
		t.Run(c.bug+"/"+c.checker, func(t *testing.T) {
			t.Parallel()
			for _, seed := range seedsFrom(c.seed) {
				r := Run(Options{Seed: seed, Canary: c.bug, Only: c.checker})
				if r.Failure != nil && r.Failure.Checker == c.checker {
					t.Logf("seed %d: %v", seed, r.Failure)
					return
				}
			}
			t.Error("not noticed")
		})
	}
}

// seedsFrom is where a bug is looked for: at seed, and then everywhere.
func seedsFrom(seed uint64) []uint64 {
	all := []uint64{seed}
	for s := uint64(1); s <= 400; s++ {
		all = append(all, s)
	}
	return all
}

// TestShrink: what has nothing to do with a failure is left out.
func TestShrink(t *testing.T) {
	t.Parallel()
	o := Options{Seed: 1, Canary: "early-flush", Only: "I4"}
	r := Run(o)
	for ; r.Failure == nil; r = Run(o) {
		o.Seed++
	}
	small, off := Shrink(o, r)
	if small.Failure == nil || small.Failure.Checker != "I4" {
		t.Fatalf("the shrunk run does not fail: %v", small.Failure)
	}
	if len(small.Active)+len(off) != len(r.Active) {
		t.Errorf("%d features, %d left out, %d remain", len(r.Active), len(off), len(small.Active))
	}
	if slices.Contains(off, "flush") {
		t.Error("it fails without flushes")
	}
	again := o
	again.Off = off
	if x := Run(again); x.Hash != small.Hash {
		t.Error("the shrunk run does not come back")
	}
}
