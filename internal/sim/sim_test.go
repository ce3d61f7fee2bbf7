package sim

import (
	"flag"
	"sync"
	"testing"
	"time"
)

var (
	simSeed = flag.Uint64("sim.seed", 1, "first seed of TestSim")
	simRuns = flag.Int("sim.runs", 0, "runs of TestSim; 0 = as many as fit into -sim.time")
	simTime = flag.Duration("sim.time", 40*time.Second, "how long TestSim runs")
)

// TestSim runs clusters from consecutive seeds. A failure shows the seed, the shrunk trace and how to run it again.
func TestSim(t *testing.T) {
	deadline := time.Now().Add(*simTime)
	if testing.Short() {
		deadline = time.Now().Add(5 * time.Second)
	}
	seeds := make(chan uint64)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { // ends when seeds is closed
			for s := range seeds {
				o := Options{Seed: s}
				if r := Run(o); r.Failure != nil {
					small, _ := Shrink(o, r)
					t.Error(small.Report(80))
				}
			}
		})
	}
	n := 0
	for ; *simRuns == 0 && time.Now().Before(deadline) || n < *simRuns; n++ {
		if t.Failed() {
			break
		}
		seeds <- *simSeed + uint64(n)
	}
	close(seeds)
	wg.Wait()
	t.Logf("%d runs", n)
}

// TestSameSeedSameTrace: a failure that does not come back cannot be understood.
func TestSameSeedSameTrace(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 12; seed++ {
		a, b := Run(Options{Seed: seed}), Run(Options{Seed: seed})
		if a.Hash != b.Hash || a.Events != b.Events {
			t.Fatalf("seed %d: %d events with hash %s, then %d with %s", seed, a.Events, a.Hash, b.Events, b.Hash)
		}
	}
	if a, b := Run(Options{Seed: 1}), Run(Options{Seed: 2}); a.Hash == b.Hash {
		t.Error("two seeds have the same trace")
	}
}

// TestSeedsOfBugs runs the seeds of bugs that the simulator has found. What they do changes when the simulator does, so each bug has, or
// should have, its test in the package where it was.
func TestSeedsOfBugs(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes long under the race detector, which has nothing to find in one goroutine")
	}
	for _, seed := range []uint64{17, 25, 38, 45, 72, 81, 87, 105, 110, 125, 161, 222, 291, 1200, 1277, 1606, 10264, 10358, 10675, 10953, 20228, 200132} {
		if r := Run(Options{Seed: seed}); r.Failure != nil {
			t.Error(r.Report(40))
		}
	}
}
