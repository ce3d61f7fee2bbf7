package sim

import (
	"flag"
	"sync"
	"testing"
)

var (
	simSeed = flag.Uint64("sim.seed", 1, "first seed of TestSim; make sim is for new ones")
	simRuns = flag.Uint64("sim.runs", 2000, "how many seeds TestSim runs")
)

// TestSim runs clusters from consecutive seeds, always the same ones, however fast the machine is: who changes something shall not be stopped by a
// bug that was there before. A failure shows the seed, the shrunk trace and how to run it again.
func TestSim(t *testing.T) {
	if testing.Short() {
		*simRuns = 100
	}
	simulate(t, *simSeed, *simSeed+*simRuns)
}

// simulate runs the seeds from first to before end, on two processors.
func simulate(t *testing.T, first, end uint64) {
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
	next := first
	for ; next < end && !t.Failed(); next++ {
		seeds <- next
	}
	close(seeds)
	wg.Wait()
	t.Logf("seeds %d to %d", first, next-1)
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
	for _, seed := range []uint64{17, 25, 38, 45, 72, 81, 87, 105, 110, 125, 161, 222, 291, 1200, 1277, 1606, 10264, 10358, 10675, 10953, 20228, 200132,
		348, 10108, 10699, 30020, 50371, 90691, 120396, 4334, 4799, 200154, 21912, 21328, 2172, 23250, 1393} {
		if r := Run(Options{Seed: seed}); r.Failure != nil {
			t.Error(r.Report(40))
		}
	}
}
