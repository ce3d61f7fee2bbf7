package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestGoalsNameRowsThatAreMeasured(t *testing.T) {
	var names []string
	for _, g := range groups {
		names = append(names, g.names()...)
	}
	for i, n := range names {
		if slices.Contains(names[:i], n) {
			t.Errorf("row %q is there twice", n)
		}
	}
	for _, g := range goals {
		if !slices.Contains(names, g.row) {
			t.Errorf("no group measures %q", g.row)
		}
		if (g.times > 0) == (g.atMost > 0) {
			t.Errorf("%q: either a ratio or a figure", g.row)
		}
	}
}

func TestJudge(t *testing.T) {
	rate := &result{Row: "r", Unit: "IOPS", Figures: map[string][]float64{qemu: {90, 100, 300}, nbdkit: {50}, marsAlone: {140, 130, 1}}}
	cost := &result{Row: "c", Unit: "us", Smaller: true, Figures: map[string][]float64{qemu: {40}, nbdkit: {20}, marsAlone: {25}}}
	for _, c := range []struct {
		row   *result
		goal  goal
		value float64
		met   bool
	}{
		{rate, goal{target: marsAlone, times: 1.3}, 1.3, true},
		{rate, goal{target: marsAlone, times: 1.31}, 1.3, false},
		{rate, goal{target: marsAlone, times: 2.6, against: []string{nbdkit}}, 2.6, true},
		{cost, goal{target: marsAlone, times: 1}, 0.8, false},
		{cost, goal{target: marsAlone, times: 0.8}, 0.8, true},
		{cost, goal{target: marsAlone, atMost: 25}, 25, true},
		{cost, goal{target: marsAlone, atMost: 24}, 25, false},
	} {
		v, ok := c.row.judge(&c.goal)
		if !ok || v.Value != c.value || v.Met != c.met {
			t.Errorf("%+v: %+v %v", c.goal, v, ok)
		}
	}
	if _, ok := rate.judge(&goal{target: marsPair, times: 1}); ok {
		t.Error("a target without figures was judged")
	}
	if _, ok := rate.judge(&goal{target: marsAlone, times: 1, against: []string{"nobody"}}); ok {
		t.Error("judged against nobody")
	}
}

func TestTablesHaveAFigureInEveryColumn(t *testing.T) {
	r := newResults()
	r.add("randread 4k QD32", "IOPS", marsPair, 130)
	r.add("randread 4k QD32", "IOPS", qemu, 100)
	r.add("randread 4k QD32", "IOPS", nbdkit, 50)
	r.add("other", "ms", marsAlone, 7)
	var b strings.Builder
	r.tables(&b)
	for _, want := range []string{"| nbdkit | qemu-nbd | mars + secondary |", "| 50.0 | 100 | 130 (1.30x met) |", "| other | ms | 7.00 |"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestCompareMarksWhatIsBeyondTheSpread(t *testing.T) {
	rate := &result{Row: "r", Unit: "IOPS"}
	cost := &result{Row: "c", Unit: "us", Smaller: true}
	for _, c := range []struct {
		r    *result
		a, b []float64
		want string
	}{
		{rate, []float64{1, 2, 3}, []float64{4, 5, 6}, "better"},
		{rate, []float64{4, 5, 6}, []float64{1, 2, 3}, "**worse**"},
		{rate, []float64{1, 2, 4}, []float64{4, 5, 6}, ""},
		{cost, []float64{1, 2, 3}, []float64{4, 5, 6}, "**worse**"},
		{cost, []float64{4, 5, 6}, []float64{1, 2, 3}, "better"},
		{rate, []float64{1}, []float64{4, 5, 6}, "one repetition"},
	} {
		if got := c.r.change(c.a, c.b); got != c.want {
			t.Errorf("%s %v -> %v: %q, want %q", c.r.Row, c.a, c.b, got, c.want)
		}
	}
	a := &saved{Machine: machine{CPU: "slow"}, Rows: []*result{{Row: "gone", Figures: map[string][]float64{qemu: {1}}}}}
	b := &saved{Machine: machine{CPU: "fast"}}
	var out strings.Builder
	compare(&out, a, b)
	if s := out.String(); !strings.Contains(s, "CPU differs") || !strings.Contains(s, "Only A has gone") {
		t.Error(s)
	}
}

func TestParseFio(t *testing.T) {
	out := `fio: a note
{"jobs":[{"error":0,"read":{"iops":1,"bw_bytes":1048576,"total_ios":3},
"write":{"iops":2,"bw_bytes":2097152,"total_ios":6,"clat_ns":{"percentile":{"50.000000":5000,"99.900000":7000}}}}]}`
	f, err := parseFio([]byte(out), "MiB/s")
	if err != nil || f.rate != 3 || f.ios != 9 || f.lat["50.000000"] != 5000 {
		t.Errorf("%+v %v", f, err)
	}
	if f, err := parseFio([]byte(out), "IOPS"); err != nil || f.rate != 3 {
		t.Errorf("%+v %v", f, err)
	}
	for _, bad := range []string{"", "{}", `{"jobs":[{"error":5}]}`, `{"jobs":[{"error":0}]}`} {
		if _, err := parseFio([]byte(bad), "IOPS"); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestUnwindEndsChildrenAndTheirs(t *testing.T) {
	b := &bench{o: options{dir: t.TempDir()}, results: newResults()}
	p, err := b.start("sh", "-c", "sleep 1000 & wait")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.cpu(); err != nil {
		t.Error(err)
	}
	if err := b.unwind(); err != nil {
		t.Fatal(err)
	}
	gone := func() error {
		if syscall.Kill(-p.pid(), 0) == nil {
			return os.ErrExist
		}
		return nil
	}
	if err := waitFor(t.Context(), "somebody of the process group lives", gone); err != nil {
		t.Error(err)
	}
}

func TestCommandEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := command(ctx, "sh", "-c", "sleep 1000 & wait"); err == nil {
		t.Error("no error")
	}
}

// TestDisksOfTheSameContentAreAlike: replicas must begin alike, and the share of different blocks must be what the row says.
func TestDisksOfTheSameContentAreAlike(t *testing.T) {
	b := &bench{o: options{dir: t.TempDir()}}
	read := func(name string, c content) []byte {
		path, err := b.disk(name, 16<<20, c)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	one, same, some := read("a", content{seed: 7}), read("b", content{seed: 7}), read("c", content{seed: 7, every: 100})
	if !slices.Equal(one, same) {
		t.Error("not alike")
	}
	differ := 0
	for at := 0; at < len(one); at += 4096 {
		if !slices.Equal(one[at:at+4096], some[at:at+4096]) {
			differ++
		}
	}
	if blocks := len(one) / 4096; differ < blocks/200 || differ > blocks/50 {
		t.Errorf("%d of %d blocks differ", differ, blocks)
	}
}
