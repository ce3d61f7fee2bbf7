package main

import (
	"fmt"
	"slices"
	"strings"
)

// goal is what one target of a row shall reach: so many times as good as the best of some other targets, or an absolute figure.
type goal struct {
	row, target string
	times       float64  // at least; see result.ratio
	against     []string // default: all peers in the row
	atMost      float64  // absolute, in the row's unit; 0 = not meant
}

var goals = []goal{
	{row: "randwrite 4k QD32", target: marsAlone, times: 1.3},
	{row: "randwrite 4k QD32", target: marsPair, times: 1.0},
	{row: "randwrite 4k QD1 fsync=1", target: marsPair, times: 1.5},
	{row: "randwrite 4k QD32 fsync=32", target: marsPair, times: 1.5},
	{row: "randread 4k QD32", target: marsPair, times: 1.3},
	{row: "seqwrite 1M", target: marsPair, times: 0.8},
	{row: "seqread 1M", target: marsPair, times: 1.1},
	{row: "randwrite 4k QD1 p99", target: marsPair, times: 1.0},
	{row: slowLineRow, target: marsSlow, times: 0.98, against: []string{marsNoSecondary}},
	{row: slowLineRow, target: marsCut, times: 0.98, against: []string{marsNoSecondary}},
	{row: catchUpRandom, target: marsAlone, times: 5, against: []string{diskRandom}},
	{row: catchUpHot, target: marsAlone, times: 0.8, against: []string{diskSequential}},
	{row: syncOnePercent, target: marsAlone, times: 3, against: []string{rsyncDelta}},
	{row: syncOnePercent + wireSuffix, target: marsAlone, atMost: 1.3},
	{row: syncEmpty, target: marsAlone, times: 0.9, against: []string{nbdcopyTLS}},
	{row: handoverIdle, target: marsAlone, atMost: 300},
	{row: handoverLoaded, target: marsAlone, atMost: 1000},
	{row: recoveryRow, target: marsAlone, times: 1 / 1.2},
	{row: peakMemory, target: marsPair, atMost: 256 + 2},
	{row: idleMemory, target: marsAlone, atMost: 256 + 2*hundred},
}

// ours reports whether a target is marsd; all others are peers.
func ours(target string) bool { return strings.HasPrefix(target, "mars") }

// targets returns the row's targets, peers first.
func (r *result) targets() []string {
	var names []string
	for t := range r.Figures {
		names = append(names, t)
	}
	slices.SortFunc(names, func(a, b string) int {
		if ours(a) != ours(b) {
			if ours(b) {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return names
}

func (r *result) peers() []string { return slices.DeleteFunc(r.targets(), ours) }

func (r *result) goalOf(target string) *goal {
	for i, g := range goals {
		if g.row == r.Row && g.target == target {
			return &goals[i]
		}
	}
	return nil
}

// verdict is how a goal came out.
type verdict struct {
	Row    string  `json:"row"`
	Target string  `json:"target"`
	Goal   string  `json:"goal"`
	Value  float64 `json:"value"` // a ratio, or in the row's unit
	Met    bool    `json:"met"`
}

func (g *goal) text(unit string) string {
	if g.atMost > 0 {
		return fmt.Sprintf("<= %s %s", number(g.atMost), unit)
	}
	return fmt.Sprintf(">= %.2fx", g.times)
}

// judge compares the row with a goal; false if there is nothing to compare.
func (r *result) judge(g *goal) (verdict, bool) {
	v := verdict{Row: r.Row, Target: g.target, Goal: g.text(r.Unit)}
	if len(r.Figures[g.target]) == 0 {
		return v, false
	}
	v.Value = median(r.Figures[g.target])
	if g.atMost > 0 {
		v.Met = v.Value <= g.atMost
		return v, true
	}
	against := g.against
	if against == nil {
		against = r.peers()
	}
	_, best, ok := r.best(against)
	if !ok {
		return v, false
	}
	v.Value = r.ratio(v.Value, best)
	v.Met = v.Value >= g.times
	return v, true
}

// judgeAll returns the verdicts on all goals and what could not be judged.
func (r *results) judgeAll() (all []verdict, open []string) {
	for i := range goals {
		g := &goals[i]
		row := r.row(g.row)
		if row != nil {
			if v, ok := row.judge(g); ok {
				all = append(all, v)
				continue
			}
		}
		open = append(open, g.row+" ("+g.target+")")
	}
	return all, open
}
