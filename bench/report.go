package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report prints the result as Markdown, and saves it when that is asked for.
func (b *bench) report() error {
	verdicts, open := b.judgeAll()
	var t strings.Builder
	b.tables(&t)
	b.goalTable(&t, verdicts, open)
	for _, n := range b.notes {
		fmt.Fprintf(&t, "\nNot measured: %s\n", n)
	}
	fmt.Print(t.String())
	if b.o.out == "" {
		return nil
	}
	return b.save(t.String(), verdicts)
}

// tables writes one table for each set of targets, so that every row has a figure in every column.
func (r *results) tables(t *strings.Builder) {
	var done []string
	for _, first := range r.rows {
		key := strings.Join(first.targets(), " | ")
		if slices.Contains(done, key) {
			continue
		}
		done = append(done, key)
		fmt.Fprintf(t, "\n| row | unit | %s | spread |\n|---|---|%s---:|\n", key, strings.Repeat("---:|", len(first.targets())))
		for _, row := range r.rows {
			if strings.Join(row.targets(), " | ") == key {
				row.line(t)
			}
		}
	}
}

// line writes the medians; ours with the ratio to the best peer, and with the goal if there is one.
func (r *result) line(t *strings.Builder) {
	fmt.Fprintf(t, "| %s | %s |", r.Row, r.Unit)
	_, best, hasPeer := r.best(r.peers())
	for _, name := range r.targets() {
		m := median(r.Figures[name])
		fmt.Fprintf(t, " %s", number(m))
		if g := r.goalOf(name); g != nil {
			if v, ok := r.judge(g); ok {
				t.WriteString(v.short(g))
			}
		} else if ours(name) && hasPeer {
			fmt.Fprintf(t, " (%.2fx)", r.ratio(m, best))
		}
		t.WriteString(" |")
	}
	fmt.Fprintf(t, " %.0f %% |\n", 100*r.spread())
}

func (v verdict) short(g *goal) string {
	if g.atMost > 0 {
		return " (" + v.word() + ")"
	}
	return fmt.Sprintf(" (%.2fx %s)", v.Value, v.word())
}

func (v verdict) word() string {
	if v.Met {
		return "met"
	}
	return "**missed**"
}

// spread is the largest distance between repetitions of one target, in parts of the median.
func (r *result) spread() (most float64) {
	for _, f := range r.Figures {
		if m := median(f); m > 0 {
			most = max(most, (slices.Max(f)-slices.Min(f))/m)
		}
	}
	return most
}

func (b *bench) goalTable(t *strings.Builder, verdicts []verdict, open []string) {
	t.WriteString("\n| goal | target | wanted | measured | |\n|---|---|---:|---:|---|\n")
	met := 0
	for _, v := range verdicts {
		fmt.Fprintf(t, "| %s | %s | %s | %s | %s |\n", v.Row, v.Target, v.Goal, number(v.Value), v.word())
		if v.Met {
			met++
		}
	}
	fmt.Fprintf(t, "\nGoals: %d met, %d missed, %d not measured.\n", met, len(verdicts)-met, len(open))
	if len(open) > 0 {
		fmt.Fprintf(t, "\nNot measured: %s.\n", strings.Join(open, "; "))
	}
}

// machine are the facts without which figures mean nothing.
type machine struct {
	Date, Commit, Kernel, CPU, FileSystem string
	Cores                                 int
	MemoryMiB                             int64
	Repetitions                           int
	Runtime                               string
	DiskBytes                             int64
	Took                                  string
	Peers                                 []string
}

func (b *bench) machine() machine {
	return machine{
		Date: time.Now().UTC().Format("2006-01-02"), Commit: output("git", "describe", "--always", "--dirty"), Kernel: output("uname", "-r"),
		CPU: procValue("/proc/cpuinfo", "model name"), FileSystem: output("stat", "-f", "-c", "%T", filepath.Dir(b.o.dir)), Cores: runtime.NumCPU(),
		MemoryMiB: memoryMiB(), Repetitions: b.o.reps, Runtime: b.o.runtime.String(), DiskBytes: b.o.size, Took: b.took.Round(time.Second).String(),
		Peers: []string{output("fio", "--version"), output("qemu-nbd", "--version"), output("nbdkit", "--version"), output("nbdcopy", "--version"), output("rsync", "--version")},
	}
}

// output returns the first line that a program prints.
func output(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return name + ": unknown"
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return strings.TrimSpace(line)
}

func procValue(file, key string) string {
	data, _ := os.ReadFile(file)
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func memoryMiB() int64 {
	var kib int64
	fmt.Sscanf(procValue("/proc/meminfo", "MemTotal"), "%d kB", &kib)
	return kib >> 10
}

// saved is a result file.
type saved struct {
	Machine  machine
	Verdicts []verdict
	Notes    []string
	Rows     []*result
}

const preface = `Medians. In brackets: how many times as good as the best peer (more of a rate, less of a time or cost), and whether the goal is met. The
spread is that of the target with the largest one, between its best and worst repetition. CPU is the serving process's own, until it has
nothing left to do for the job; the kernel's share that runs in its own threads is in nobody's figure.
`

func (b *bench) save(tables string, verdicts []verdict) error {
	m := b.machine()
	data, err := json.MarshalIndent(saved{m, verdicts, b.notes, b.rows}, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(b.o.out, 0o755); err != nil {
		return err
	}
	head := fmt.Sprintf("%s, commit %s, %s with %d cores and %d MiB, Linux %s, disks of %d MiB on %s, %d repetitions of %s, in all %s.\n%s.\n\n",
		m.Date, m.Commit, m.CPU, m.Cores, m.MemoryMiB, m.Kernel, m.DiskBytes>>20, m.FileSystem, m.Repetitions, m.Runtime, m.Took, strings.Join(m.Peers, "; "))
	base := filepath.Join(b.o.out, m.Date+"-"+m.Commit)
	return errors.Join(os.WriteFile(base+".json", append(data, '\n'), 0o644), os.WriteFile(base+".md", []byte(head+preface+tables), 0o644))
}
