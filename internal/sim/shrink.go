package sim

import "slices"

// Add sums up.
func (s *Stats) Add(t *Stats) {
	s.Writes += t.Writes
	s.Acked += t.Acked
	s.Flushed += t.Flushed
	s.Reads += t.Reads
	s.Crashes += t.Crashes
	s.PowerCuts += t.PowerCuts
	s.Recoveries += t.Recoveries
	s.Handovers += t.Handovers
	s.Forced += t.Forced
	s.Splits += t.Splits
	s.Syncs += t.Syncs
	s.Commands += t.Commands
	s.Refused += t.Refused
	s.Frames += t.Frames
	s.Clones += t.Clones
	s.DropTails += t.DropTails
	s.Heals += t.Heals
	s.Resets += t.Resets
	s.OpCrash += t.OpCrash
	s.Created += t.Created
	s.Deleted += t.Deleted
	s.Evicted += t.Evicted
	s.Left += t.Left
	s.Joined += t.Joined
	s.Removed += t.Removed
	s.TooEarly += t.TooEarly
	s.Amended += t.Amended
	s.SimSeconds += t.SimSeconds
}

// Shrink looks for a run with fewer features that fails in the same way. It returns the smallest one and the features it does without.
func Shrink(o Options, r Result) (Result, []string) {
	o.Verbose = nil
	off := slices.Clone(o.Off)
	for _, f := range r.Active {
		try := o
		try.Off = append(slices.Clone(off), f)
		x := Run(try)
		if x.Failure != nil && x.Failure.Checker == r.Failure.Checker {
			off, r = try.Off, x
		}
	}
	return r, off
}
