package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"mars/tests/vm/lab"
)

// The link over time, and what the application wants.
const (
	freeTime    = 8 * time.Second
	phase       = 15 * time.Second
	wantRate    = 400 // writes of 4 KiB per second, which every system can do when the link is free
	patience    = 90 * time.Second
	measureSpan = freeTime + 3*phase
)

// slow limits what a machine sends.
const slow = "tc qdisc replace dev eth0 root tbf rate 5mbit burst 16kb latency 200ms"

// step is a change of the link, at its time.
type step struct {
	at     time.Duration
	what   string
	script string
}

var steps = []step{
	{freeTime, "link at 5 Mbit/s", slow},
	{freeTime + phase, "link broken", "tc qdisc replace dev eth0 root netem loss 100%"},
	{freeTime + 2*phase, "link at 5 Mbit/s", slow},
	{measureSpan, "link free", "tc qdisc del dev eth0 root"},
}

// experiment is one run.
type experiment struct {
	ctx    context.Context
	s      system
	n1, n2 *lab.Machine
	start  time.Time

	mu  sync.Mutex
	run Run
}

func measure(ctx context.Context, s system) (Run, error) {
	dir, err := memory()
	if err != nil {
		return Run{}, err
	}
	defer os.RemoveAll(dir)
	l, err := build(ctx, s, dir)
	if err != nil {
		return Run{}, err
	}
	defer l.Close()
	if err := l.Boot(); err != nil {
		return Run{}, err
	}
	x := &experiment{ctx: ctx, s: s, n1: l.Machines[0], n2: l.Machines[1]}
	for _, part := range []func() error{x.setUp, x.facts, x.slowLink, x.handover} {
		if err := part(); err != nil {
			return Run{}, err
		}
	}
	return x.run, nil
}

func build(ctx context.Context, s system, dir string) (*lab.Lab, error) {
	pace, err := lab.Build(ctx, dir, "mars/tests/vm/pace")
	if err != nil {
		return nil, err
	}
	files, err := s.files(ctx, dir)
	if err != nil {
		return nil, err
	}
	all := map[string]string{"bin/pace": pace}
	maps.Copy(all, files)
	return lab.New(ctx, lab.Config{
		Machines: 2, Files: all, Dir: filepath.Join(dir, "vm"),
		Disks: []lab.Disk{{Name: "disk", Size: 512 << 20}, {Name: "store", Size: 2 << 30}},
	})
}

// memory makes a directory in memory, if that is possible: the host's disk is not what is compared.
func memory() (string, error) {
	if dir, err := os.MkdirTemp("/dev/shm", "mars-compare-"); err == nil {
		return dir, nil
	}
	return os.MkdirTemp("", "mars-compare-")
}

func (x *experiment) setUp() error { return x.s.setUp(x.ctx, x.n1, x.n2) }

// facts notes what was measured where.
func (x *experiment) facts() error {
	kernel, err := x.n1.Run(x.ctx, "uname -r")
	if err != nil {
		return err
	}
	commit, _ := exec.Command("git", "describe", "--always", "--dirty").Output() // unknown where there is no git
	x.run = Run{
		System: x.s.name(), Date: time.Now().UTC().Truncate(time.Second), Commit: strings.TrimSpace(string(commit)), Machine: host(),
		Kernel: strings.TrimSpace(kernel), Command: "go run ./tests/vm/compare " + strings.Join(os.Args[1:], " "),
	}
	return nil
}

func host() string {
	model := runtime.GOARCH
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if _, m, ok := strings.Cut(line, "model name\t: "); ok {
			model = strings.TrimSpace(m)
			break
		}
	}
	return fmt.Sprintf("%d x %s", runtime.NumCPU(), model)
}

// slowLink lets the application write while the link changes, and waits until the secondary has everything again.
func (x *experiment) slowLink() error {
	x.start = time.Now()
	app := x.n1.Start(fmt.Sprintf("exec pace -rate %d -for %v %s", wantRate, measureSpan, x.s.device()), &lines{take: x.rate}, os.Stderr)
	watch := x.n2.Start("while :; do echo $EPOCHREALTIME $("+x.s.state()+"); sleep 1; done", &lines{take: x.state}, os.Stderr)
	defer watch.Kill()
	for _, s := range steps {
		if err := x.waitUntil(s.at); err != nil {
			return err
		}
		for _, m := range []*lab.Machine{x.n1, x.n2} {
			if err := try(x.ctx, m, s.script); err != nil {
				return err
			}
		}
		x.run.Events = append(x.run.Events, Event{s.at.Seconds(), s.what})
	}
	if status, err := app.Wait(x.ctx); err != nil || status != 0 {
		return errors.Join(err, fmt.Errorf("the application ended with status %d", status))
	}
	return x.recovers()
}

func (x *experiment) waitUntil(at time.Duration) error {
	select {
	case <-time.After(time.Until(x.start.Add(at))):
		return nil
	case <-x.ctx.Done():
		return context.Cause(x.ctx)
	}
}

// recovers waits until the secondary has said some times in a row that it is up to date.
func (x *experiment) recovers() error {
	const row = 3
	end := x.start.Add(measureSpan + patience)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		x.mu.Lock()
		n := len(x.run.States)
		for n > 0 && x.run.States[n-1].Is == Follows {
			n--
		}
		good := x.run.States[n:]
		x.mu.Unlock()
		if len(good) >= row && good[len(good)-row].At > measureSpan.Seconds() {
			x.run.RecoverySeconds = max(0, good[0].At-measureSpan.Seconds())
			return nil
		}
		if time.Now().After(end) || x.ctx.Err() != nil {
			return fmt.Errorf("the secondary has not recovered in %v", patience)
		}
	}
	return nil
}

// rate and state take lines that begin with the time in seconds since 1970. The clocks of the machines are set at boot.
func (x *experiment) rate(at float64, rest string) {
	var done float64
	if _, err := fmt.Sscan(rest, &done); err != nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.run.App = append(x.run.App, Rate{At: at - seconds(x.start), Writes: done}) // the sum, for now
}

func (x *experiment) state(at float64, rest string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	is := x.s.condition(rest)
	x.run.States = append(x.run.States, State{at - seconds(x.start), is, summary(rest)})
}

// summary is enough of a long line to understand what was meant.
func summary(s string) string {
	const most = 120
	if strings.HasPrefix(s, "{") {
		return ""
	}
	return s[:min(most, len(s))]
}

func seconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

// handover measures with clocks of the machines only, so that the time that our own messages need does not count.
func (x *experiment) handover() error {
	first, second := x.s.handover()
	var sum time.Duration
	for _, part := range []struct {
		m      *lab.Machine
		script string
	}{{x.n1, first}, {x.n2, second + "; dd if=/dev/zero of=" + x.s.device() + " bs=4k count=1 oflag=direct status=none"}} {
		out, err := part.m.Run(x.ctx, "set -e; t=${EPOCHREALTIME/./}; { "+part.script+"; } >&2; echo $((${EPOCHREALTIME/./} - t))")
		if err != nil {
			return err
		}
		var us int64
		if _, err := fmt.Sscan(out, &us); err != nil {
			return err
		}
		sum += time.Duration(us) * time.Microsecond
	}
	x.run.HandoverSeconds = sum.Seconds()
	x.run.differences()
	return nil
}

// differences makes rates of the sums.
func (r *Run) differences() {
	for i := len(r.App) - 1; i >= 0; i-- {
		before := Rate{}
		if i > 0 {
			before = r.App[i-1]
		}
		r.App[i].Writes = (r.App[i].Writes - before.Writes) / (r.App[i].At - before.At)
	}
}

// lines takes apart lines that begin with a time.
type lines struct {
	take func(at float64, rest string)
	rest []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		first, rest, _ := strings.Cut(string(l.rest[:i]), " ")
		var at float64
		if _, err := fmt.Sscan(first, &at); err == nil {
			l.take(at, rest)
		}
		l.rest = l.rest[i+1:]
	}
}
