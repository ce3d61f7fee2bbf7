// Bench measures marsd against named peers on this machine in one run and prints ratios: qemu-nbd and nbdkit serving the same kind of file
// on the same file system, rsync and cp for bulk. Absolute numbers say more about the machine than about the programs.
//
// Every row is measured -reps times, the targets in turn within each repetition, so that a noisy neighbour hits all of them; the table shows
// medians. Results go to bench/results as Markdown and JSON. Needs fio, qemu-nbd, nbdkit and rsync (scripts/deps.sh).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"time"
)

type options struct {
	dir     string
	bin     string
	reps    int
	runtime time.Duration
	size    int64
	only    *regexp.Regexp
	save    bool
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	var only string
	flag.StringVar(&o.dir, "dir", "bench/tmp", "`directory` for disks and daemons")
	flag.StringVar(&o.bin, "bin", "bin", "`directory` with marsd and marsadm")
	flag.IntVar(&o.reps, "reps", 3, "repetitions")
	flag.DurationVar(&o.runtime, "runtime", 4*time.Second, "of each fio job")
	flag.Int64Var(&o.size, "size", 1<<30, "of the disks in `bytes`")
	flag.StringVar(&only, "rows", ".", "`regexp` of the rows to measure")
	flag.BoolVar(&o.save, "save", true, "write bench/results")
	flag.Parse()
	re, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	o.only = re
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	b := &bench{o: o, results: map[string]*result{}}
	defer os.RemoveAll(o.dir)
	return errors.Join(b.blockRows(ctx), b.replicationRows(ctx), b.report())
}

type bench struct {
	o       options
	results map[string]*result
	order   []string
}

// result is one row: figures by target, one per repetition.
type result struct {
	Row     string               `json:"row"`
	Unit    string               `json:"unit"`
	Smaller bool                 `json:"smaller_is_better,omitempty"`
	Figures map[string][]float64 `json:"figures"`
}

func (b *bench) add(row, unit, target string, v float64) {
	r := b.results[row]
	if r == nil {
		r = &result{Row: row, Unit: unit, Figures: map[string][]float64{}}
		b.results[row] = r
		b.order = append(b.order, row)
	}
	r.Figures[target] = append(r.Figures[target], v)
	fmt.Fprintf(os.Stderr, "  %-34s %-22s %12.0f %s\n", row, target, v, unit)
}
