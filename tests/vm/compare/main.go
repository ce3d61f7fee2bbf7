// Compare runs MARS and DRBD on the same virtual machines, disks and link, while the link gets slow and breaks, and draws what the application and
// the secondary have seen.
//
//	go run ./tests/vm/compare -out docs/slow-link.json mars drbd-a       # run, and draw docs/slow-link.svg
//	go run ./tests/vm/compare -out docs/slow-link.json                   # draw again what was measured
//
// Runs are added to the file; a new one takes the place of an older one of the same system.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	out := flag.String("out", "docs/slow-link.json", "`file` of results")
	front := flag.String("front", "loop", "how MARS shows its device: `loop, nbd or ublk`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := compare(ctx, *out, *front, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

func compare(ctx context.Context, out, front string, names []string) error {
	r, err := load(out)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil { // before the long part
		return err
	}
	for _, name := range names {
		s, err := systemOf(name, front)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
		run, err := measure(ctx, s)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		r.add(run)
		if err := r.save(out); err != nil {
			return err
		}
	}
	return os.WriteFile(strings.TrimSuffix(out, ".json")+".svg", []byte(draw(r)), 0o644)
}

// Results is the file.
type Results struct {
	Runs []Run
}

// Run is what one system did. Times are seconds since the application started.
type Run struct {
	System  string // as the picture names it
	Date    time.Time
	Commit  string
	Machine string // the host
	Kernel  string // of the virtual machines
	Command string
	Events  []Event
	App     []Rate
	States  []State
	// RecoverySeconds is how long after the link was free again the secondary had everything.
	RecoverySeconds float64
	// HandoverSeconds is from the command, with nothing to do and all in sync, to the first completed write at the other node.
	HandoverSeconds float64
}

// Event is something that was done to the link or the application.
type Event struct {
	At   float64
	What string
}

// Rate is how many writes per second the application has completed until At, since the one before.
type Rate struct {
	At     float64
	Writes float64
}

// State is what the secondary says about itself.
type State struct {
	At     float64
	Is     Condition
	Detail string
}

// Condition of a secondary.
type Condition string

// The conditions, from good to bad.
const (
	Follows      Condition = "up to date"             // as far as it knows
	Behind       Condition = "consistent, but behind" // a state that the primary had; it could take over
	Inconsistent Condition = "inconsistent"           // a mixture of states; it could not
)

func load(file string) (*Results, error) {
	var r Results
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return &r, nil
	}
	if err != nil {
		return nil, err
	}
	return &r, json.Unmarshal(b, &r)
}

func (r *Results) add(run Run) {
	for i := range r.Runs {
		if r.Runs[i].System == run.System {
			r.Runs[i] = run
			return
		}
	}
	r.Runs = append(r.Runs, run)
}

func (r *Results) save(file string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
