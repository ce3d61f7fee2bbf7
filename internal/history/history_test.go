package history

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// unit is one log record of one byte in the model of a replica.
type unit struct {
	timeline TimelineID
	data     bool
	ends     string // successor, if it is an end record
	starts   *Timeline
}

// replica is the obvious model beside a Path: everything that was ever logged on it.
type replica struct {
	path  Path
	units []unit
	own   TimelineID // the timeline that only this replica appends to
}

func (r *replica) digest(n int) (d Digest) {
	h := sha256.New()
	for _, u := range r.units[:n] {
		fmt.Fprintln(h, u.timeline, u.data, u.ends, u.starts != nil)
	}
	copy(d[:], h.Sum(nil))
	return d
}

func (r *replica) position(n int) Position {
	if n == 0 {
		return Position{}
	}
	return Position{Timeline: r.units[n-1].timeline, LSN: LSN(n), Digest: r.digest(n)}
}

func (r *replica) add(u unit) {
	switch {
	case u.starts != nil:
		r.path.Push(*u.starts)
	case u.ends != "":
		r.path.Successor = u.ends
	}
	r.units = append(r.units[:len(r.units):len(r.units)], u)
	n := len(r.units)
	r.path.End, r.path.EndDigest = LSN(n), r.digest(n)
	if u.data {
		r.path.LastData = LSN(n)
	}
}

// world lets replicas write, open timelines, fetch from each other and be cut.
func world(rng *rand.Rand) []*replica {
	list := []*replica{{}, {}, {}, {}}
	next := TimelineID(0)
	open := func(r *replica) {
		next++
		tip := r.path.Tip()
		r.own = next
		r.add(unit{timeline: next, starts: &Timeline{ID: next, No: tip.No + 1, Origin: "n", Parent: tip.ID, Switch: r.path.End,
			Digest: r.path.EndDigest, Passed: r.path.Successor}})
	}
	open(list[0])
	for range 30 {
		r, src := list[rng.IntN(len(list))], list[rng.IntN(len(list))]
		switch rng.IntN(6) {
		case 0:
			open(r)
		case 1:
			if r.own == r.path.Tip().ID && r.path.Successor == "" && r.own != 0 {
				r.add(unit{timeline: r.own, ends: "m"})
			}
		case 2, 3:
			if r.own == r.path.Tip().ID && r.path.Successor == "" && r.own != 0 {
				r.add(unit{timeline: r.own, data: rng.IntN(2) == 0})
			}
		default:
			if n := common(r, src); n == len(r.units) {
				for _, u := range src.units[n : n+rng.IntN(len(src.units)-n+1)] {
					r.add(u)
					r.own = 0
				}
			}
		}
	}
	return list
}

func common(a, b *replica) int {
	n := 0
	for n < len(a.units) && n < len(b.units) && a.units[n].timeline == b.units[n].timeline {
		n++
	}
	return n
}

func modified(r *replica, from int) bool {
	for _, u := range r.units[from:] {
		if u.data {
			return true
		}
	}
	return false
}

func seeds(t *testing.T, n uint64) (from, to uint64) {
	t.Helper()
	if s := os.Getenv("MARS_TEST_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return seed, seed + 1
	}
	return 0, n
}

// TestAgainstModel compares everything that a Path decides with what is obvious from the complete logs.
func TestAgainstModel(t *testing.T) {
	from, to := seeds(t, 300)
	for seed := from; seed < to; seed++ {
		list := world(rand.New(rand.NewPCG(seed, 1)))
		for i, a := range list {
			for j, b := range list {
				err := checkCompare(a, b)
				if err == nil {
					err = checkPositions(a, b)
				}
				if err != nil {
					t.Fatalf("replicas %d and %d: %v\nMARS_TEST_SEED=%d go test -run '^%s$' ./internal/history", i, j, err, seed, t.Name())
				}
			}
		}
	}
}

func checkCompare(a, b *replica) error {
	r := Compare(&a.path, &b.path)
	n := common(a, b)
	want := Relation{Fork: a.position(n), TailA: LSN(len(a.units) - n), TailB: LSN(len(b.units) - n),
		ModifiedA: modified(a, n), ModifiedB: modified(b, n)}
	switch {
	case len(a.units) == 0 || len(b.units) == 0:
		want.ModifiedA, want.ModifiedB = false, false // nothing to compare with
	case n == 0:
		want = Relation{Unrelated: true, TailA: a.path.End, TailB: b.path.End, ModifiedA: true, ModifiedB: true}
	}
	if r != want {
		return fmt.Errorf("%+v, want %+v", r, want)
	}
	return nil
}

// checkPositions asks a about every position of b.
func checkPositions(a, b *replica) error {
	for n := range len(b.units) + 1 {
		pos := b.position(n)
		if got, want := a.path.Contains(pos), n <= common(a, b); got != want {
			return fmt.Errorf("contains %v: %v, want %v", pos, got, want)
		}
		cut, err := a.path.TruncateTo(pos)
		if (err == nil) != (n <= common(a, b)) {
			return fmt.Errorf("truncate to %v: %v", pos, err)
		}
		if err != nil {
			continue
		}
		model := &replica{}
		for _, u := range a.units[:n] {
			model.add(u)
		}
		if cut.LastData < model.path.LastData {
			return fmt.Errorf("cut to %v: data up to %d, want %d", pos, cut.LastData, model.path.LastData)
		}
		cut.LastData = model.path.LastData
		x, _ := json.Marshal(cut)
		y, _ := json.Marshal(model.path)
		if string(x) != string(y) && n > 0 {
			return fmt.Errorf("cut to %v: %s, want %s", pos, x, y)
		}
	}
	return nil
}

// TestWrongDigests are noticed wherever the digest is known.
func TestWrongDigests(t *testing.T) {
	r := list4()
	for _, n := range []int{2, len(r.units)} { // a switch, and the end
		pos := r.position(n)
		if !r.path.Contains(pos) {
			t.Fatalf("%v", pos)
		}
		pos.Digest[0]++
		if _, err := r.path.TruncateTo(pos); err == nil || r.path.Contains(pos) {
			t.Errorf("%v with another digest: %v", pos, err)
		}
	}
	other := list4()
	other.path.EndDigest[0]++
	if c := Compare(&r.path, &other.path); !c.Unrelated || !c.Split() {
		t.Errorf("equal length, other contents: %+v", c)
	}
}

// list4 is a path of two timelines with two records each.
func list4() *replica {
	r := new(replica)
	r.add(unit{timeline: 1, starts: &Timeline{ID: 1, No: 1}})
	r.add(unit{timeline: 1, data: true})
	r.add(unit{timeline: 2, starts: &Timeline{ID: 2, No: 2, Parent: 1, Switch: 2, Digest: r.path.EndDigest}})
	r.add(unit{timeline: 2, data: true})
	return r
}

// TestForgotten: a path is bounded; what is forgotten is no longer contained, but common later timelines are still found.
func TestForgotten(t *testing.T) {
	r := new(replica)
	for i := range MaxTimelines + 10 {
		id := TimelineID(i + 1)
		r.add(unit{timeline: id, starts: &Timeline{ID: id, Parent: r.path.Tip().ID, Switch: r.path.End, Digest: r.path.EndDigest}})
	}
	if len(r.path.Timelines) != MaxTimelines {
		t.Errorf("%d timelines", len(r.path.Timelines))
	}
	for n, want := range map[int]bool{0: false, 5: false, 11: true, MaxTimelines: true} {
		if got := r.path.Contains(r.position(n)); got != want {
			t.Errorf("position %d: %v", n, got)
		}
	}
	older := r.path.Clone()
	older.Timelines = older.Timelines[:20]
	older.End, older.EndDigest = r.path.Timelines[20].Switch, r.path.Timelines[20].Digest
	if c := Compare(&older, &r.path); !c.Contained() || c.TailB != r.path.End-older.End {
		t.Errorf("%+v", c)
	}
}

func TestDigestText(t *testing.T) {
	d := Digest{1, 2, 255}
	b, err := json.Marshal(d)
	var e Digest
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err != nil || d != e {
		t.Errorf("%s: %v %v", b, e, err)
	}
	for _, bad := range []string{`""`, `"00"`, `"zz000000000000000000000000000000"`} {
		if json.Unmarshal([]byte(bad), &e) == nil {
			t.Errorf("%s accepted", bad)
		}
	}
}
