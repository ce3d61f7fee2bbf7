package inject

import (
	"errors"
	"fmt"
	"testing"
)

func TestPlan(t *testing.T) {
	e1, e2, e3 := errors.New("once"), errors.New("sticky"), errors.New("late")
	even := func(op int) bool { return op%2 == 0 }
	var p Plan[int]
	if p.Next(0) != nil {
		t.Fatal("the zero value fails operations")
	}
	p.Add(Fault[int]{Skip: 2, Err: e1})
	p.Add(Fault[int]{Skip: 1, Err: e2, Match: even, Sticky: true})
	p.Add(Fault[int]{Skip: 5, Err: e3})
	got := ""
	for _, op := range []int{1, 2, 3, 4, 5, 6, 8} {
		if f := p.Next(op); f != nil {
			got += fmt.Sprintf("%d:%v ", op, f.Err)
		}
	}
	// The sixth operation is struck by two: the one that was added first tells, and the other one, which strikes once, is over.
	if want := "3:once 4:sticky 6:sticky 8:sticky "; got != want {
		t.Errorf("failures %q, want %q", got, want)
	}
	if p.Seen() != 8 || p.Fired() != 4 {
		t.Errorf("seen %d, fired %d", p.Seen(), p.Fired())
	}
	p.Clear()
	if p.Next(2) != nil {
		t.Error("a fault survived Clear")
	}
}
