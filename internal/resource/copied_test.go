package resource

import (
	"testing"

	"mars/internal/history"
	"mars/internal/volume"
)

// A part was copied from a member that has left, and whose history nobody else has: the copy can never become consistent, and is begun anew instead
// of waiting for ever without a word (simulator, seed 10699).
func TestCopyOfAHistoryThatIsGone(t *testing.T) {
	t.Parallel()
	gone := history.Position{Timeline: 9, LSN: 80}
	on := history.Position{Timeline: 1, LSN: 80}
	for _, c := range []struct {
		name  string
		seen  history.Position
		peer  Peer
		over  bool
		waits bool
	}{
		{"nobody has it", gone, at("a", 50, writable), true, false},
		{"somebody may still get there", on, at("a", 50, writable), false, false},
		{"somebody has it", on, at("a", 90, nil), false, false},
		{"nobody has it, and there is nobody to copy from", gone, dead(at("a", 50, nil)), false, true},
		{"a member was never heard of", gone, Peer{Node: "a", Alive: true}, false, true},
		{"it is reached", history.Position{Timeline: 9, LSN: 50}, at("a", 50, writable), false, false},
	} {
		in := self(50, c.peer)
		in.Local.Consistent = false
		in.Local.Sync = &volume.SyncState{Copied: true, Until: &history.Position{Timeline: 1, LSN: 50}, Seen: []history.Position{c.seen}}
		p := Decide(in)
		if p.StartOver != c.over || (p.WaitsFor != "") != c.waits {
			t.Errorf("%s: starts over: %v, waits for %q", c.name, p.StartOver, p.WaitsFor)
		}
	}
}
