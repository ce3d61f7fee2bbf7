package node

import (
	"strings"
	"testing"

	"mars/internal/history"
	"mars/internal/resource"
)

// What invalidate says is lost: facts of a primary that writes are always a little older than what we have from it (found by the soak test).
func TestThrownAway(t *testing.T) {
	t.Parallel()
	root := history.Timeline{ID: 1, Origin: "a"}
	forced := history.Timeline{ID: 2, Parent: 1, Origin: "a", Switch: 50, Forced: true}
	path := func(end history.LSN, ts ...history.Timeline) history.Path {
		return history.Path{Timelines: ts, End: end, LastData: end, EndDigest: history.Digest{byte(end)}}
	}
	in := func(facts ...*resource.Facts) (in resource.Input) {
		in.Self = "b"
		in.Local.Open = true
		in.Local.Path = path(100, root)
		for i, f := range facts {
			in.Peers = append(in.Peers, resource.Peer{Node: string("ac"[i]), Facts: f})
		}
		return in
	}
	for _, c := range []struct {
		name string
		in   resource.Input
		want string
	}{
		{"a primary that is known to be at 80 has sent us more", in(&resource.Facts{Writable: true, Path: path(80, root)}), "nothing is lost"},
		{"a member that is at 80 and does not write", in(&resource.Facts{Path: path(80, root)}), "from LSN 80"},
		{"a primary that has gone another way", in(&resource.Facts{Writable: true, Path: path(90, root, forced)}), "from LSN 50"},
		{"one says nothing, the other one has less", in(nil, &resource.Facts{Path: path(70, root)}), "from LSN 70"},
		{"nobody says anything", in(nil, nil), "not known"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := thrownAway(c.in); !strings.Contains(got, c.want) {
				t.Errorf("it says %q, want %q in it", got, c.want)
			}
		})
	}
}

// What the message about a split brain advises must be possible on the side on which it is read.
func TestSplitAdvice(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		writable   bool
		designated string
		want, not  string
	}{
		{"the winner", true, "a", "on node b", "here gives"},
		{"the loser, still in use", true, "b", "as soon as its device is closed; then `marsadm invalidate` here", ""},
		{"the loser", false, "b", "`marsadm invalidate` here gives this side up", "closed"},
		{"nobody is designated", false, "", "`marsadm invalidate` here gives this side up", "closed"},
		{"designated, and does not write", false, "a", "needs another primary first", "here gives"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			in := resource.Input{Self: "a", Designated: c.designated}
			in.Local.Writable = c.writable
			if got := splitAdvice(&in, "b"); !strings.Contains(got, c.want) || c.not != "" && strings.Contains(got, c.not) {
				t.Errorf("it says %q", got)
			}
		})
	}
}
