package node

import (
	"testing"
	"time"
)

// Alone, a replica does not wait; many at once share what one alone would do; and nobody waits for longer than the most, however many there are.
func TestTurns(t *testing.T) {
	s := turns{gap: time.Hour, most: 20 * time.Hour}
	for i := range 5000 {
		want := min(time.Duration(i)*time.Hour, s.most)
		if d := s.take(); (d - want).Abs() > time.Minute {
			t.Fatalf("turn %d is in %v, want %v", i, d, want)
		}
	}
	s.next = time.Now().Add(-time.Second) // the last one was long ago
	if d := s.take(); d != 0 {
		t.Errorf("alone it waits for %v", d)
	}
}
