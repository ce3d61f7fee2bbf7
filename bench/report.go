package main

import (
	"context"
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

	"mars/internal/control"
)

func (n *marsNode) status(ctx context.Context) (control.Status, error) {
	var s control.Status
	out, err := n.adm(ctx, "view", "--json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// report prints the table and saves it.
func (b *bench) report() error {
	var t strings.Builder
	b.blockTable(&t)
	b.otherTable(&t)
	fmt.Print(t.String())
	if !b.o.save {
		return nil
	}
	return b.saveResults(t.String())
}

// blockTable has one row per job with ratios against the better peer.
func (b *bench) blockTable(t *strings.Builder) {
	fmt.Fprintf(t, "| row | unit | %s | %s | %s | ratio | %s | ratio |\n|---|---|---:|---:|---:|---:|---:|---:|\n", qemu, nbdkit, marsAlone, marsPair)
	for _, row := range b.order {
		r := b.results[row]
		if len(r.Figures[qemu]) == 0 {
			continue
		}
		q, k, m, p := median(r.Figures[qemu]), median(r.Figures[nbdkit]), median(r.Figures[marsAlone]), median(r.Figures[marsPair])
		best := max(q, k)
		if r.Unit == "us" {
			best = min(q, k)
		}
		fmt.Fprintf(t, "| %s | %s | %.0f | %.0f | %.0f | %.2f | %.0f | %.2f |\n", r.Row, r.Unit, q, k, m, m/best, p, p/best)
	}
}

func (b *bench) otherTable(t *strings.Builder) {
	fmt.Fprintf(t, "\n| row | target | median | unit |\n|---|---|---:|---|\n")
	for _, row := range b.order {
		r := b.results[row]
		if len(r.Figures[qemu]) > 0 {
			continue
		}
		for _, name := range sortedKeys(r.Figures) {
			fmt.Fprintf(t, "| %s | %s | %.1f | %s |\n", r.Row, name, median(r.Figures[name]), r.Unit)
		}
	}
}

func sortedKeys(m map[string][]float64) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// machine are the facts without which figures mean nothing.
type machine struct {
	Date, Commit, Kernel, CPU, FileSystem string
	Cores                                 int
	Repetitions                           int
	Runtime                               string
	DiskBytes                             int64
}

func (b *bench) machine() machine {
	return machine{
		Date: time.Now().UTC().Format("2006-01-02"), Commit: output("git", "describe", "--always", "--dirty"), Kernel: output("uname", "-r"),
		CPU: cpuModel(), FileSystem: output("stat", "-f", "-c", "%T", filepath.Dir(b.o.dir)), Cores: runtime.NumCPU(),
		Repetitions: b.o.reps, Runtime: b.o.runtime.String(), DiskBytes: b.o.size,
	}
}

func output(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func cpuModel() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func (b *bench) saveResults(table string) error {
	m := b.machine()
	base := filepath.Join("bench", "results", m.Date+"-"+m.Commit)
	var rows []*result
	for _, row := range b.order {
		rows = append(rows, b.results[row])
	}
	data, err := json.MarshalIndent(struct {
		Machine machine
		Rows    []*result
	}{m, rows}, "", " ")
	if err != nil {
		return err
	}
	head := fmt.Sprintf("%s, commit %s, %s with %d cores, Linux %s, disks of %d MiB on %s, medians of %d runs of %s.\n\n",
		m.Date, m.Commit, m.CPU, m.Cores, m.Kernel, m.DiskBytes>>20, m.FileSystem, m.Repetitions, m.Runtime)
	return errors.Join(os.WriteFile(base+".json", append(data, '\n'), 0o644), os.WriteFile(base+".md", []byte(head+table), 0o644))
}
