// Package inject decides which of a sequence of operations fail. The fakes of file systems and disks share it. Everything depends on the
// order of the operations alone, so a run repeats exactly.
package inject

// Fault makes operations of type Op fail.
type Fault[Op any] struct {
	// Skip is how many matching operations still succeed after the Fault was added, before one fails.
	Skip int
	// Match selects the operations that count and fail; nil selects all.
	Match func(Op) bool
	// Err is what the operation returns. It has no other effect then.
	Err error
	// Sticky: all later matching operations fail as well, else only one does.
	Sticky bool
	// Drop matters to operations that make data durable: as on Linux, the data that could not be written count as clean from now on. They
	// can still be read, a later sync succeeds without them, a power cut loses them. Without Drop they stay dirty.
	Drop bool
}

// Plan holds the faults that are still to happen. The zero value has none. It is not safe for concurrent use.
type Plan[Op any] struct {
	faults []*Fault[Op]
	seen   int
	fired  int
}

// Add adds a fault.
func (p *Plan[Op]) Add(f Fault[Op]) { p.faults = append(p.faults, &f) }

// Clear removes all faults. The counts stay.
func (p *Plan[Op]) Clear() { p.faults = nil }

// Seen is the number of operations so far, failed ones included.
func (p *Plan[Op]) Seen() int { return p.seen }

// Fired is the number of operations that were made to fail.
func (p *Plan[Op]) Fired() int { return p.fired }

// Next counts op and returns the fault that strikes it, or nil. When several do, it is the one that was added first.
func (p *Plan[Op]) Next(op Op) *Fault[Op] {
	p.seen++
	var hit *Fault[Op]
	kept := p.faults[:0]
	for _, f := range p.faults {
		struck := f.strikes(op)
		if struck && hit == nil {
			hit = f
		}
		if !struck || f.Sticky {
			kept = append(kept, f)
		}
	}
	p.faults = kept
	if hit != nil {
		p.fired++
	}
	return hit
}

func (f *Fault[Op]) strikes(op Op) bool {
	if f.Match != nil && !f.Match(op) {
		return false
	}
	f.Skip--
	return f.Skip < 0
}
