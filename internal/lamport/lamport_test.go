package lamport

import (
	"errors"
	"math"
	"sync"
	"testing"
	"time"
)

var t0 = time.Unix(1_700_000_000, 0)

func fixed(t *time.Time) func() time.Time { return func() time.Time { return *t } }

func TestClockGrowsWhenWallClockJumpsBack(t *testing.T) {
	now := t0
	c := New("a", fixed(&now), 0)
	first := c.Next()
	if first.Time != t0.UnixNano() || first.Node != "a" {
		t.Fatalf("first stamp %v is not the wall clock", first)
	}
	now = t0.Add(-time.Hour)
	if second := c.Next(); second.Compare(first) <= 0 {
		t.Fatalf("%v after %v", second, first)
	}
	now = t0.Add(time.Hour)
	if third := c.Next(); third.Time != now.UnixNano() {
		t.Fatalf("%v fell behind the wall clock", third)
	}
}

func TestClockIsNewerThanObservedAndThanFloor(t *testing.T) {
	now := t0
	c := New("a", fixed(&now), t0.Add(time.Minute).UnixNano())
	if s := c.Next(); s.Time <= t0.Add(time.Minute).UnixNano() {
		t.Fatalf("%v is behind the floor", s)
	}
	seen := Stamp{Time: t0.Add(2 * time.Minute).UnixNano(), Node: "z"}
	if err := c.Observe(seen); err != nil {
		t.Fatal(err)
	}
	s := c.Next()
	if s.Compare(seen) <= 0 {
		t.Fatalf("%v is not newer than %v which was seen", s, seen)
	}
	if c.Floor() != s.Time {
		t.Fatalf("floor %d, want %d", c.Floor(), s.Time)
	}
	if err := c.Observe(Stamp{Time: 1, Node: "old"}); err != nil || c.Floor() != s.Time {
		t.Fatalf("an old stamp moved the clock: %v", err)
	}
}

func TestFarFutureIsRefused(t *testing.T) {
	now := t0
	c := New("a", fixed(&now), 0)
	edge := t0.Add(MaxAhead).UnixNano()
	for _, bad := range []int64{edge + 1, math.MaxInt64} {
		err := c.Observe(Stamp{Time: bad, Node: "b"})
		future, ok := errors.AsType[*FutureError](err)
		if !ok || !errors.Is(err, ErrFuture) || future.Stamp.Node != "b" {
			t.Fatalf("stamp %d: %v", bad, err)
		}
	}
	if c.Floor() != 0 {
		t.Fatal("a refused stamp moved the clock")
	}
	if err := c.Observe(Stamp{Time: edge, Node: "b"}); err != nil {
		t.Fatalf("a stamp at the limit: %v", err)
	}
}

func TestCompareIsATotalOrder(t *testing.T) {
	var all []Stamp
	for _, tm := range []int64{-1, 0, 1, math.MaxInt64} {
		for _, n := range []string{"", "a", "b"} {
			all = append(all, Stamp{tm, n})
		}
	}
	for i, a := range all {
		for j, b := range all {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := a.Compare(b); got != want {
				t.Errorf("Compare(%v, %v) = %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestConcurrentStampsAreDistinct(t *testing.T) {
	c := New("a", fixed(new(t0)), 0)
	const workers, each = 8, 500
	got := make(chan int64, workers*each)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				got <- c.Next().Time
			}
		})
	}
	wg.Wait()
	close(got)
	seen := map[int64]bool{}
	for v := range got {
		if seen[v] {
			t.Fatalf("stamp %d was given twice", v)
		}
		seen[v] = true
	}
}

func TestAgree(t *testing.T) {
	t0 := earliest.AddDate(1, 0, 0)
	for ahead, want := range map[time.Duration]bool{0: true, MaxAhead / 2: true, MaxAhead/2 + 1: false, 100 * MaxAhead: false} {
		if Agree(t0, t0.Add(ahead)) != want || Agree(t0.Add(ahead), t0) != want {
			t.Errorf("%s apart: want %v", ahead, want)
		}
	}
	if never := time.Unix(0, 0); Agree(never, never) {
		t.Error("two clocks that were never set agree")
	}
}
