package sim

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// event is something that happens at a time.
type event struct {
	at  time.Duration
	seq uint64
	run func()
}

// agenda is the heap of events; those of the same time happen in the order in which they were made.
type agenda []event

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].at < a[j].at || a[i].at == a[j].at && a[i].seq < a[j].seq
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(event)) }
func (a *agenda) Pop() any {
	old := *a
	e := old[len(old)-1]
	old[len(old)-1] = event{}
	*a = old[:len(old)-1]
	return e
}

// after makes f happen in d.
func (w *World) after(d time.Duration, f func()) {
	w.seq++
	heap.Push(&w.agenda, event{w.now + max(d, 0), w.seq, f})
}

// runUntil lets everything happen that is due before the time end, or until done.
func (w *World) runUntil(end time.Duration, done func() bool) {
	for len(w.agenda) > 0 && w.agenda[0].at < end {
		e := heap.Pop(&w.agenda).(event)
		w.now = e.at
		w.events++
		e.run()
		if done != nil && done() {
			return
		}
	}
	w.now = max(w.now, end)
}

// streams are the generators, one for each subsystem, so that a change in one does not change what the others draw.
type streams struct {
	shape, net, disk, app, op, fault, check, id *rand.Rand
}

func newStreams(seed uint64) streams {
	n := uint64(0)
	next := func() *rand.Rand { n++; return rand.New(rand.NewPCG(seed, n)) }
	return streams{next(), next(), next(), next(), next(), next(), next(), next()}
}

// between draws a duration from [lo, hi).
func between(r *rand.Rand, lo, hi time.Duration) time.Duration {
	return lo + time.Duration(r.Int64N(int64(hi-lo)))
}

// chance is true with probability 1/n.
func chance(r *rand.Rand, n int) bool { return r.IntN(n) == 0 }

// traceLines is how many lines of the trace are kept for the report.
const traceLines = 600

// trace is what happened: all of it as a hash, the end of it as text.
type trace struct {
	hash  uint64
	lines [traceLines]string
	n     int
}

func (t *trace) add(line string) {
	h := fnv.New64a()
	fmt.Fprintf(h, "%x %s", t.hash, line)
	t.hash = h.Sum64()
	t.lines[t.n%traceLines] = line
	t.n++
}

func (t *trace) sum() string { return fmt.Sprintf("%016x", t.hash) }

func (t *trace) tail() []string {
	var out []string
	for i := max(0, t.n-traceLines); i < t.n; i++ {
		out = append(out, t.lines[i%traceLines])
	}
	return out
}

func (w *World) logf(format string, args ...any) {
	line := fmt.Sprintf("%10.4fs ", w.now.Seconds()) + fmt.Sprintf(format, args...)
	w.trace.add(line)
	if w.opt.Verbose != nil {
		fmt.Fprintln(w.opt.Verbose, line)
	}
}
