// Bench measures marsd against named peers on this machine in one run and prints ratios: qemu-nbd and nbdkit serving the same kind of file
// on the same file system, a kernel loop device over a file, rsync and nbdcopy for bulk, the bare disk for replay. Absolute numbers say more
// about the machine than about the programs.
//
// Every row is measured -reps times, its targets in turn within each repetition, so that a noisy neighbour hits all of them; the tables show
// medians, ratios against the best peer, and whether the targets in goals.go are met. A complete run is written to bench/results as Markdown
// and JSON; `bench compare A.json B.json` shows what has changed between two of them.
//
// As root everything runs in namespaces of its own: nothing survives it, and all traffic on loopback is the bench's. Without root some rows
// are left out, and the result says which. Needs the packages of scripts/deps.sh.
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
	"syscall"
	"time"
)

type options struct {
	dir     string
	bin     string
	out     string
	reps    int
	runtime time.Duration
	size    int64
	rows    *regexp.Regexp
}

func main() {
	code, err := dispatch()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func dispatch() (int, error) {
	if len(os.Args) > 1 && os.Args[1] == "compare" {
		return 0, compareFiles(os.Stdout, os.Args[2:])
	}
	o, list, err := parseOptions()
	if err != nil || list {
		return 0, err
	}
	if os.Geteuid() == 0 && !inside() {
		return enter()
	}
	return 0, run(o)
}

func parseOptions() (o options, list bool, err error) {
	rows, size := "", int64(0)
	flag.StringVar(&o.dir, "dir", "bench/tmp", "`directory` for disks and daemons; it is emptied")
	flag.StringVar(&o.bin, "bin", "bin", "`directory` with marsd and marsadm")
	flag.StringVar(&o.out, "out", "", "`directory` for the results (default: bench/results for a complete run, else none)")
	flag.IntVar(&o.reps, "reps", 3, "repetitions")
	flag.DurationVar(&o.runtime, "runtime", 2*time.Second, "of each fio job")
	flag.Int64Var(&size, "size", 512, "of the disks in `MiB`")
	flag.StringVar(&rows, "rows", "", "`regexp` of the rows to measure (default: all)")
	quick := flag.Bool("quick", false, "everything once, small and short: does it run?")
	flag.BoolVar(&list, "list", false, "list the rows")
	flag.Parse()
	if *quick {
		o.reps, o.runtime, size = 1, time.Second, 128
	}
	o.size = size << 20
	if o.out == "" && !*quick && rows == "" {
		o.out = filepath.Join("bench", "results")
	}
	if list {
		for _, g := range groups {
			for _, name := range g.names() {
				fmt.Println(name)
			}
		}
		return o, true, nil
	}
	var errs [4]error
	o.rows, errs[0] = regexp.Compile(rows)
	o.dir, errs[1] = filepath.Abs(o.dir)
	o.bin, errs[2] = filepath.Abs(o.bin)
	if o.reps < 1 || size < 64 || o.runtime < time.Second {
		errs[3] = errors.New("at least 1 repetition, 64 MiB and 1s")
	}
	return o, false, errors.Join(errs[:]...)
}

// run measures everything that was asked for. What cannot be measured is noted and does not prevent the rest; a signal ends it.
func run(o options) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if inside() {
		if err := furnish(); err != nil {
			return err
		}
	}
	b := &bench{o: o, results: newResults()}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	began := time.Now()
	failed := b.measureAll(ctx)
	b.took = time.Since(began)
	if ctx.Err() != nil {
		failed = fmt.Errorf("interrupted: %w", context.Cause(ctx))
		b.o.out = ""
	}
	return errors.Join(failed, b.report())
}

type bench struct {
	o options
	*results
	undo []func() error
	took time.Duration
}

// group is what measures some rows together.
type group struct {
	names func() []string                                    // of its rows
	run   func(b *bench, ctx context.Context, rep int) error // one repetition
}

var groups []group // set by init: the functions name the groups themselves

func init() {
	groups = []group{
		{func() []string { return append(blockJobs.names(), peakMemory) }, (*bench).blockRows},
		{manyJobs.names, (*bench).manyRows},
		{slowLineNames, (*bench).slowLine},
		{handoverNames, (*bench).handover},
		{catchUpNames, (*bench).catchUp},
		{fullSyncNames, (*bench).fullSync},
		{recoveryNames, (*bench).recovery},
		{loopJobs.names, (*bench).loopRows},
		{idleNames, (*bench).idleRows},
	}
}

// measureAll does one repetition of everything after the other, so that the repetitions of a row are spread over the whole run.
func (b *bench) measureAll(ctx context.Context) error {
	var errs []error
	broken := map[int]bool{}
	for rep := range b.o.reps {
		for i, g := range groups {
			if ctx.Err() != nil {
				return errors.Join(errs...)
			}
			if broken[i] || !b.wanted(g.names()...) {
				continue
			}
			if err := b.oneGroup(ctx, g, rep); err != nil && ctx.Err() == nil {
				broken[i] = true
				errs = append(errs, err)
				b.note("failed in repetition %d: %v", rep+1, err)
			}
		}
	}
	return errors.Join(errs...)
}

// groupTime bounds one repetition of a group: a hang must not last for ever.
const groupTime = 10 * time.Minute

func (b *bench) oneGroup(ctx context.Context, g group, rep int) error {
	ctx, cancel := context.WithTimeout(ctx, groupTime)
	defer cancel()
	err := b.emptyDir()
	if err == nil {
		err = g.run(b, ctx, rep)
	}
	return errors.Join(err, b.unwind())
}

// wanted reports whether one of the rows is to be measured.
func (b *bench) wanted(rows ...string) bool {
	for _, r := range rows {
		if b.o.rows.MatchString(r) {
			return true
		}
	}
	return false
}

// later registers what unwind has to undo.
func (b *bench) later(f func() error) { b.undo = append(b.undo, f) }

// unwind undoes everything, the last thing first: daemons, mounts, devices, files.
func (b *bench) unwind() error {
	var errs []error
	for len(b.undo) > 0 {
		last := len(b.undo) - 1
		f := b.undo[last]
		b.undo = b.undo[:last]
		errs = append(errs, f())
	}
	return errors.Join(append(errs, b.emptyDir())...)
}

func (b *bench) emptyDir() error {
	return errors.Join(os.RemoveAll(b.o.dir), os.MkdirAll(b.o.dir, 0o700))
}
