package sim

import (
	"slices"
)

// features are the faults and operations that a run may use. Each run uses a random subset, so that rare combinations come up that a run with
// everything would drown.
var features = []string{
	"kill", "power", "crash-at-op", "crash-after-send", // crashes
	"partition", "oneway", "flap", "reset", "slow-net", // network
	"clock", "far-clock", // wall clocks
	"log-full", "disk-eio", "log-eio", "bad-fsync", "bit-rot", "slow-disk", // storage
	"primary", "force", "secondary", "invalidate", "pause", "detach", "resize", // operators
	"rotate", "membership", "two-at-once", "nonsense",
	"lifecycle", "evict", "depart", // the same, for whole resources and nodes
	"flush", "fua", "discard", "big", "busy-app", "idle-app", "preempt", // applications and scheduling
}

// rare features ruin a run for others if they are in most of them.
var rare = []string{"bit-rot", "bad-fsync", "log-eio", "disk-eio", "force", "log-full", "flap", "lifecycle", "evict", "far-clock"}

// swarm is the set of features in use.
type swarm map[string]bool

func newSwarm(s *streams, off []string) swarm {
	on := swarm{}
	for _, f := range features {
		p := 2
		if slices.Contains(rare, f) {
			p = 4
		}
		use := chance(s.shape, p) || (p == 2 && chance(s.shape, 3))
		on[f] = use && !slices.Contains(off, f)
	}
	return on
}

func (s swarm) names() []string {
	var out []string
	for _, f := range features {
		if s[f] {
			out = append(out, f)
		}
	}
	return out
}
