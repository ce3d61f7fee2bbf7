// Package sim runs whole clusters of the real cores - resource.Decide, volume, translog, replay, history, the sessions of ship and fullsync, the
// merge of meta - on one goroutine, in simulated time, over simulated networks, disks and file systems that fail in every way that real ones
// do, with applications and operators who do anything at any time. Everything follows from one seed.
//
// A run has two phases. In the first one faults happen and the checkers look whether the invariants of the design hold after every event. In
// the second one everything is repaired - not the data - and the cluster must converge by itself, or, where an operator's word is needed
// (--force, invalidate, damage), after that word.
//
// What is not real here is what the goroutine shells of package node do: when a step runs, what a command waits for. These mirrors are small
// and follow package node by name.
package sim

import (
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"time"
)

// Options of one run.
type Options struct {
	Seed uint64
	// Off names features of the swarm (see features) that must not be used, whatever the seed says.
	Off []string
	// Canary names a bug to be built in, see canaries.
	Canary string
	// Only, if not empty, is the only checker whose findings count.
	Only string
	// Verbose gets every event.
	Verbose io.Writer
	// Phase1 is how long faults last in simulated time; 0 = the seed decides.
	Phase1 time.Duration
}

// Failure is a violated invariant.
type Failure struct {
	Checker string // I1 to I11, or panic
	What    string
	At      time.Duration
}

func (f *Failure) Error() string {
	return fmt.Sprintf("%s violated at %v: %s", f.Checker, f.At, f.What)
}

// Result of one run.
type Result struct {
	Seed    uint64
	Hash    string // of the trace
	Events  int
	Shape   string // what the seed has chosen
	Failure *Failure
	Tail    []string // the last events
	Active  []string // features that were in use
	Stats   Stats
}

// Stats count what happened, so that a tame run can be told from a wild one.
type Stats struct {
	Writes, Acked, Flushed, Reads     int
	Crashes, PowerCuts, Recoveries    int
	Handovers, Forced, Splits, Syncs  int
	Commands, Refused, Frames, Clones int
	DropTails, Heals, Resets, OpCrash int
	Created, Deleted, Evicted         int
	Left, Joined, Removed             int
	TooEarly, Amended                 int
	SimSeconds                        int
}

// Run simulates one cluster from its birth to its convergence.
func Run(o Options) (res Result) {
	w := newWorld(o)
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(stop); !ok {
				w.failure = &Failure{Checker: "panic", What: fmt.Sprintf("%v\n%s", p, debug.Stack()), At: w.now}
			}
		}
		res = w.result()
	}()
	w.build()
	w.chaos()
	w.heal()
	return res
}

// stop unwinds the run after a failure.
type stop struct{}

// failf reports a violated invariant and ends the run.
func (w *World) failf(checker, format string, args ...any) {
	if w.opt.Only != "" && w.opt.Only != checker {
		return
	}
	w.failure = &Failure{Checker: checker, What: fmt.Sprintf(format, args...), At: w.now}
	w.logf("FAILED %v", w.failure)
	panic(stop{})
}

func (w *World) result() Result {
	w.stats.SimSeconds = int(w.now / time.Second)
	return Result{Seed: w.opt.Seed, Hash: w.trace.sum(), Events: w.events, Shape: w.shape(), Failure: w.failure, Tail: w.trace.tail(),
		Active: w.swarm.names(), Stats: w.stats}
}

// Report describes a failed run for humans.
func (r *Result) Report(lines int) string {
	var b strings.Builder
	tail := r.Tail[max(0, len(r.Tail)-lines):]
	fmt.Fprintf(&b, "seed %d: %s\n%s\nlast events:\n", r.Seed, r.Failure.Error(), r.Shape)
	for _, l := range tail {
		fmt.Fprintf(&b, "  %s\n", l)
	}
	fmt.Fprintf(&b, "active: %s\nreplay: make sim SEED=%d RUNS=1\n", strings.Join(r.Active, " "), r.Seed)
	return b.String()
}
