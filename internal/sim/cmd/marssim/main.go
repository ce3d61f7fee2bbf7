// Command marssim runs the simulator: many seeds, or one with every event shown.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"mars/internal/sim"
)

type options struct {
	seed    uint64
	runs    int
	workers int
	verbose bool
	off     string
	canary  string
	shrink  bool
	lines   int
	keep    bool
}

func main() {
	var o options
	flag.Uint64Var(&o.seed, "seed", 1, "first seed")
	flag.IntVar(&o.runs, "runs", 1, "how many seeds")
	flag.IntVar(&o.workers, "j", 2, "how many at a time")
	flag.BoolVar(&o.verbose, "v", false, "show every event")
	flag.StringVar(&o.off, "off", "", "features not to be used, with commas between")
	flag.StringVar(&o.canary, "canary", "", "bug to be built in")
	flag.BoolVar(&o.shrink, "shrink", true, "look for the fewest features that still fail")
	flag.IntVar(&o.lines, "lines", 60, "events to be shown of a failed run")
	flag.BoolVar(&o.keep, "k", false, "go on after a failure")
	flag.Parse()
	if !run(o) {
		os.Exit(1)
	}
}

// run runs all seeds and returns false if one failed.
func run(o options) bool {
	start := time.Now()
	seeds := make(chan uint64)
	results := make(chan sim.Result)
	var wg sync.WaitGroup
	for range o.workers {
		wg.Go(func() { // ends when seeds is closed
			for s := range seeds {
				results <- sim.Run(o.of(s))
			}
		})
	}
	go func() { // ends when all seeds are done
		for i := range o.runs {
			seeds <- o.seed + uint64(i)
		}
		close(seeds)
		wg.Wait()
		close(results)
	}()
	var t total
	for r := range results {
		t.add(&r)
		if r.Failure != nil {
			fmt.Println(o.report(r))
			if !o.keep {
				return false
			}
		}
		if o.runs == 1 {
			fmt.Println(r.Shape)
		}
	}
	fmt.Printf("%s in %v\n", &t, time.Since(start).Round(time.Millisecond))
	return t.failed == 0
}

func (o *options) of(seed uint64) sim.Options {
	so := sim.Options{Seed: seed, Canary: o.canary}
	if o.off != "" {
		so.Off = strings.Split(o.off, ",")
	}
	if o.verbose {
		so.Verbose = os.Stdout
	}
	return so
}

func (o *options) report(r sim.Result) string {
	if !o.shrink || o.verbose {
		return r.Report(o.lines)
	}
	small, off := sim.Shrink(o.of(r.Seed), r)
	out := small.Report(o.lines)
	if len(off) > 0 {
		out += fmt.Sprintf("shrunk: go run ./internal/sim/cmd/marssim -v -seed %d -off %s\n", r.Seed, strings.Join(off, ","))
	}
	return out
}

// total sums up many runs.
type total struct {
	runs, failed, events int
	stats                sim.Stats
}

func (t *total) add(r *sim.Result) {
	t.runs++
	t.events += r.Events
	if r.Failure != nil {
		t.failed++
	}
	t.stats.Add(&r.Stats)
}

func (t *total) String() string {
	return fmt.Sprintf("%d runs, %d failed, %d events; %+v", t.runs, t.failed, t.events, t.stats)
}
