package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// compareFiles writes what has changed between two result files.
func compareFiles(w io.Writer, files []string) error {
	if len(files) != 2 {
		return errors.New("usage: bench compare A.json B.json")
	}
	var s [2]saved
	for i, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(data, &s[i]); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	compare(w, &s[0], &s[1])
	return nil
}

// compare writes one line for every row and target that both have; a change is marked when it is beyond the spread of the repetitions.
func compare(w io.Writer, a, b *saved) {
	fmt.Fprintf(w, "A: commit %s of %s. B: commit %s of %s.\n", a.Machine.Commit, a.Machine.Date, b.Machine.Commit, b.Machine.Date)
	for _, d := range differences(a.Machine, b.Machine) {
		fmt.Fprintf(w, "Careful: %s.\n", d)
	}
	fmt.Fprintf(w, "\n| row | target | unit | A | B | B/A | |\n|---|---|---|---:|---:|---:|---|\n")
	for _, rb := range b.Rows {
		ra := rowOf(a.Rows, rb.Row)
		if ra == nil {
			continue
		}
		for _, t := range rb.targets() {
			if fa, fb := ra.Figures[t], rb.Figures[t]; len(fa) > 0 && len(fb) > 0 {
				ma, mb := median(fa), median(fb)
				fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s |\n", rb.Row, t, rb.Unit, number(ma), number(mb), quotient(mb, ma), rb.change(fa, fb))
			}
		}
	}
	only(w, "A", a.Rows, b.Rows)
	only(w, "B", b.Rows, a.Rows)
}

// differences are why two results may not be comparable.
func differences(a, b machine) []string {
	var out []string
	for _, f := range []struct {
		what string
		a, b any
	}{
		{"CPU", a.CPU, b.CPU}, {"cores", a.Cores, b.Cores}, {"kernel", a.Kernel, b.Kernel}, {"file system", a.FileSystem, b.FileSystem},
		{"size of the disks", a.DiskBytes, b.DiskBytes}, {"time of a job", a.Runtime, b.Runtime},
	} {
		if f.a != f.b {
			out = append(out, fmt.Sprintf("%s differs: %v, %v", f.what, f.a, f.b))
		}
	}
	return out
}

func rowOf(rows []*result, name string) *result {
	for _, r := range rows {
		if r.Row == name {
			return r
		}
	}
	return nil
}

func quotient(a, b float64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", a/b)
}

// change says better or worse when no repetition of one is within the range of the other, and admits when too few repetitions can tell.
func (r *result) change(a, b []float64) string {
	up := slices.Min(b) > slices.Max(a)
	down := slices.Max(b) < slices.Min(a)
	switch {
	case len(a) < 2 || len(b) < 2:
		return "one repetition"
	case up && !r.Smaller || down && r.Smaller:
		return "better"
	case up || down:
		return "**worse**"
	}
	return ""
}

func only(w io.Writer, name string, rows, other []*result) {
	for _, r := range rows {
		if rowOf(other, r.Row) == nil {
			fmt.Fprintf(w, "\nOnly %s has %s.\n", name, r.Row)
		}
	}
}
