package node

import (
	"testing"
	"time"
)

// Alone, a replica waits for one gap; many at once share what one alone would do.
func TestTurns(t *testing.T) {
	var s turns
	const gap = time.Hour
	began := time.Now()
	for i := range 20 {
		if at, want := s.take(gap), began.Add(time.Duration(i+1)*gap); at.Sub(want).Abs() > time.Minute {
			t.Fatalf("turn %d is at %v, want %v", i, at, want)
		}
	}
	var alone turns
	for range 3 {
		alone.next = time.Time{} // long ago
		if d := time.Until(alone.take(gap)); d > gap || d < gap-time.Minute {
			t.Errorf("alone it waits for %v", d)
		}
	}
	for _, c := range []struct{ pause, gap, want time.Duration }{{0, 2, 2}, {15, 2, 15}, {50, 90, 90}} {
		var s turns
		if d := time.Until(s.after(c.pause*time.Hour, c.gap*time.Hour)); (d - c.want*time.Hour).Abs() > time.Minute {
			t.Errorf("%+v: %v", c, d)
		}
	}
}
