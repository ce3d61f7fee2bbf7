package main

import (
	"fmt"
	"os"
	"slices"
)

// result is one row: figures by target, one per repetition.
type result struct {
	Row     string               `json:"row"`
	Unit    string               `json:"unit"`
	Smaller bool                 `json:"smaller_is_better,omitempty"`
	Figures map[string][]float64 `json:"figures"`
}

// results are the rows in the order in which they came.
type results struct {
	rows  []*result
	notes []string
}

func newResults() *results { return &results{} }

// units in which more is better; in all others, times and costs, less is.
var more = []string{"IOPS", "MiB/s", "tx/s"}

func (r *results) row(name string) *result { return rowOf(r.rows, name) }

func (r *results) add(row, unit, target string, v float64) {
	x := r.row(row)
	if x == nil {
		x = &result{Row: row, Unit: unit, Smaller: !slices.Contains(more, unit), Figures: map[string][]float64{}}
		r.rows = append(r.rows, x)
	}
	x.Figures[target] = append(x.Figures[target], v)
	fmt.Fprintf(os.Stderr, "  %-40s %-28s %12s %s\n", row, target, number(v), unit)
}

// note says what was not measured and why, once.
func (r *results) note(format string, args ...any) {
	n := fmt.Sprintf(format, args...)
	if !slices.Contains(r.notes, n) {
		r.notes = append(r.notes, n)
		fmt.Fprintln(os.Stderr, n)
	}
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

// ratio returns how many times as good a is as b: above 1 is better, whatever the unit.
func (r *result) ratio(a, b float64) float64 {
	if r.Smaller {
		a, b = b, a
	}
	if b == 0 {
		return 0
	}
	return a / b
}

// best returns the best median among the targets that have figures.
func (r *result) best(targets []string) (name string, v float64, ok bool) {
	for _, t := range targets {
		f := r.Figures[t]
		if len(f) == 0 {
			continue
		}
		if m := median(f); !ok || r.ratio(m, v) > 1 {
			name, v, ok = t, m, true
		}
	}
	return name, v, ok
}

// number prints three significant digits, and integers whole.
func number(v float64) string {
	switch {
	case v >= 100 || v == 0:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.2g", v)
}
