package resource

import (
	"testing"

	"mars/internal/history"
	"mars/internal/volume"
)

// After a failover two members may claim to write, one of them because nobody has heard of its end yet: the copy must come from the one that is
// wanted (found by the soak test: the loser was asked, because it came first).
func TestSyncSource(t *testing.T) {
	t.Parallel()
	member := func(node string, writes bool, applied history.LSN) Peer {
		return Peer{Node: node, Alive: true, Facts: &Facts{Attached: true, Consistent: true, Writable: writes, Applied: applied}}
	}
	dead := member("d", true, 90)
	dead.Alive = false
	for _, c := range []struct {
		name  string
		peers []Peer
		want  string
	}{
		{"the wanted one of two who write", []Peer{member("b", true, 50), member("c", true, 10)}, "c"},
		{"who writes, if the wanted one does not yet", []Peer{member("b", true, 10), member("c", false, 50)}, "b"},
		{"the most advanced, if nobody writes", []Peer{member("b", false, 50), member("c", false, 10)}, "b"},
		{"nobody dead", []Peer{member("b", false, 50), dead}, "b"},
		{"nobody", []Peer{dead}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			in := Input{Self: "a", Designated: "c", Switches: AllOn, Local: Local{Open: true, Status: volume.Status{}}, Peers: c.peers}
			if got := SyncSource(in); got != c.want {
				t.Errorf("copies from %q, want %q", got, c.want)
			}
		})
	}
}
