package resource

import (
	"slices"
	"testing"

	"mars/internal/meta"
)

func used(f *Facts) { f.Users = []string{"fio"} }

func dead(p Peer) Peer {
	p.Alive = false
	return p
}

func TestMayDelete(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		member     Peer
		may, force bool // without --force, and with it
	}{
		{"a secondary", at("a", 50, nil), true, true},
		{"never heard of", Peer{Node: "a"}, true, true},
		{"a primary", at("a", 50, writable), false, true},
		{"a dead primary", dead(at("a", 50, writable)), false, true},
		{"in use", at("a", 50, used), false, false},
		{"was in use when it died", dead(at("a", 50, used)), false, true},
	} {
		all := []Peer{at("z", 50, nil), c.member}
		if err := MayDelete(all, false); (err == nil) != c.may {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := MayDelete(all, true); (err == nil) != c.force {
			t.Errorf("%s, with --force: %v", c.name, err)
		}
	}
}

// The only replica with a content is not given up (seed 348).
func TestMayRemove(t *testing.T) {
	t.Parallel()
	empty := func(f *Facts) { f.Consistent = false }
	for _, c := range []struct {
		name  string
		other Peer
		it    Peer
		may   bool
	}{
		{"dead, and another one has the content", at("a", 50, nil), dead(at("b", 50, nil)), true},
		{"dead, and another one, dead too, has the content", dead(at("a", 50, nil)), dead(at("b", 50, nil)), true},
		{"alive", at("a", 50, nil), at("b", 50, nil), false},
		{"the other one is being filled", at("a", 50, empty), dead(at("b", 50, nil)), false},
		{"the other one was never heard of", Peer{Node: "a", Alive: true}, dead(at("b", 50, nil)), false},
	} {
		if err := MayRemove([]Peer{c.other, c.it}, "b"); (err == nil) != c.may {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestMayJoin(t *testing.T) {
	t.Parallel()
	big := func(f *Facts) { f.Size = 1 << 20 }
	for size, may := range map[int64]bool{1 << 20: true, 1<<20 - 1: false} {
		if err := MayJoin([]Peer{{Node: "x"}, at("a", 50, big)}, size); (err == nil) != may {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// What was written about a deleted resource by somebody who did not know yet goes; what is on its way here (no name yet) stays.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	tree := meta.NewTree(meta.Bounds{}, nil)
	for i, k := range []string{"resource/1/name", "resource/1/facts/a", "resource/2/facts/a", "resource/2/member/b", "resource/3/facts/a", "resource/x"} {
		e := meta.Entry{Key: k, Value: []byte("v")}
		e.Stamp.Time = int64(i + 1)
		tree.Apply(e)
	}
	gone := meta.Entry{Key: "resource/2/name", Deleted: true}
	gone.Stamp.Time = 99
	tree.Apply(gone)
	got := Leftovers(tree.List(Prefix), func(key string) bool {
		e, ok := tree.Get(key)
		return ok && e.Deleted
	})
	if want := []string{"resource/2/facts/a", "resource/2/member/b"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestIsName(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]bool{
		Key("1", "name"): true, Key("1", "member", "name"): false, "resource//name": false, "node/1/name": false, "resource/name": false,
	} {
		if IsName(key) != want {
			t.Errorf("%s: want %v", key, want)
		}
	}
}
