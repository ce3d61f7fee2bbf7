package meta

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"mars/internal/lamport"
)

// smallWorld is every version of key that differs in what the order looks at.
func smallWorld(key string) []Entry {
	var all []Entry
	for _, tm := range []int64{1, 2, 3} {
		for _, node := range []string{"a", "b"} {
			st := lamport.Stamp{Time: tm, Node: node}
			all = append(all, Entry{Key: key, Stamp: st, Deleted: true}, Entry{Key: key, Stamp: st}, Entry{Key: key, Stamp: st, Value: []byte("x")})
		}
	}
	return all
}

func same(a, b Entry) bool {
	return a.Key == b.Key && a.Stamp == b.Stamp && a.Deleted == b.Deleted && bytes.Equal(a.Value, b.Value)
}

func TestMergeLaws(t *testing.T) {
	world := smallWorld("k")
	for _, a := range world {
		if !same(Merge(a, a), a) {
			t.Fatalf("not idempotent: %v", a)
		}
		for _, b := range world {
			if !same(Merge(a, b), Merge(b, a)) {
				t.Fatalf("not commutative: %v %v", a, b)
			}
			for _, c := range world {
				if !same(Merge(Merge(a, b), c), Merge(a, Merge(b, c))) {
					t.Fatalf("not associative: %v %v %v", a, b, c)
				}
			}
		}
	}
}

func apply(t *testing.T, tree *Tree, entries ...Entry) {
	t.Helper()
	for _, e := range entries {
		if _, err := tree.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
}

// Every order of any four versions of two keys, each delivered twice, gives the same tree.
func TestTreeForgetsTheOrderOfDelivery(t *testing.T) {
	world := append(smallWorld("k")[:6], smallWorld("l")[:6]...)
	for i := range world {
		for j := range i {
			for k := range j {
				for l := range k {
					permute([]Entry{world[i], world[j], world[k], world[l]}, func(first Digest, order []Entry) {
						tree := NewTree(Bounds{}, finalL)
						apply(t, tree, order...)
						apply(t, tree, order...)
						if tree.Digest() != first {
							t.Fatalf("order matters: %v", order)
						}
					})
				}
			}
		}
	}
}

func finalL(key string) bool { return key == "l" }

// permute calls f with each order of entries and the digest of the tree made in the given order.
func permute(entries []Entry, f func(first Digest, order []Entry)) {
	tree := NewTree(Bounds{}, finalL)
	for _, e := range entries {
		_, _ = tree.Apply(e)
	}
	var rec func(n int)
	rec = func(n int) {
		if n == len(entries) {
			f(tree.Digest(), entries)
			return
		}
		for i := n; i < len(entries); i++ {
			entries[n], entries[i] = entries[i], entries[n]
			rec(n + 1)
			entries[n], entries[i] = entries[i], entries[n]
		}
	}
	rec(0)
}

// oracle is a tree as simple as can be.
type oracle map[string]Entry

func (o oracle) apply(e Entry) {
	if old, ok := o[e.Key]; !ok || e.Compare(old) > 0 {
		o[e.Key] = e
	}
}

func randomEntry(r *rand.Rand) Entry {
	e := Entry{Key: fmt.Sprintf("%c/%c", 'a'+r.IntN(4), 'a'+r.IntN(6)), Stamp: lamport.Stamp{Time: r.Int64N(40), Node: string('a' + rune(r.IntN(3)))}}
	if e.Deleted = r.IntN(4) == 0; !e.Deleted {
		e.Value = []byte(strings.Repeat("v", r.IntN(5)))
	}
	return e
}

func TestTreeAgreesWithOracle(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		tree, want := NewTree(Bounds{}, nil), oracle{}
		mark, atMark := uint64(0), oracle{}
		for range 300 {
			e := randomEntry(r)
			apply(t, tree, e)
			want.apply(e)
			if r.IntN(50) == 0 {
				mark, atMark = tree.Seq(), maps.Clone(want)
			}
		}
		compareWithOracle(t, tree, want)
		for _, e := range tree.Since(mark) {
			atMark.apply(e)
		}
		if !maps.EqualFunc(atMark, want, same) {
			t.Fatalf("seed %d: state + Since(%d) is not the new state", seed, mark)
		}
	}
}

func compareWithOracle(t *testing.T, tree *Tree, want oracle) {
	t.Helper()
	var size int64
	for key, e := range want {
		if got, ok := tree.Get(key); !ok || !same(got, e) {
			t.Fatalf("Get(%s) = %v, want %v", key, got, e)
		}
		size += int64(len(key) + len(e.Value))
	}
	if tree.Len() != len(want) || tree.Bytes() != size {
		t.Fatalf("%d entries, %d bytes; want %d, %d", tree.Len(), tree.Bytes(), len(want), size)
	}
	for _, prefix := range []string{"", "a", "a/", "b/c", "zz"} {
		var keys []string
		for _, key := range slices.Sorted(maps.Keys(want)) {
			if strings.HasPrefix(key, prefix) && !want[key].Deleted {
				keys = append(keys, key)
			}
		}
		var got []string
		for _, e := range tree.List(prefix) {
			got = append(got, e.Key)
		}
		if !slices.Equal(got, keys) {
			t.Fatalf("List(%q) = %v, want %v", prefix, got, keys)
		}
	}
}

// Two trees that send each other what differs become equal, and then have nothing to send.
func TestDifferingMakesEqual(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 2))
		final := func(key string) bool { return strings.HasPrefix(key, "a") }
		a, b := NewTree(Bounds{}, final), NewTree(Bounds{}, final)
		for range r.IntN(60) {
			e := randomEntry(r)
			if r.IntN(3) > 0 {
				apply(t, a, e)
			}
			if r.IntN(3) > 0 {
				apply(t, b, e)
			}
		}
		toB, toA := a.Differing(b.Digest()), b.Differing(a.Digest())
		apply(t, b, toB...)
		apply(t, a, toA...)
		if a.Digest() != b.Digest() || a.Differing(b.Digest()) != nil {
			t.Fatalf("seed %d: trees differ", seed)
		}
	}
}

func TestPurgeForgetsOldTombstonesOnly(t *testing.T) {
	tree := NewTree(Bounds{}, nil)
	dead := func(key string, tm int64) Entry {
		return Entry{Key: key, Deleted: true, Stamp: lamport.Stamp{Time: tm, Node: "a"}}
	}
	apply(t, tree, dead("old", 5), dead("keep/old", 5), dead("new", 10), Entry{Key: "live", Stamp: lamport.Stamp{Time: 1, Node: "a"}})
	gone := tree.Purge(10, func(key string) bool { return strings.HasPrefix(key, "keep/") })
	if !slices.Equal(gone, []string{"old"}) || tree.Len() != 3 {
		t.Fatalf("purged %v, %d left", gone, tree.Len())
	}
	want := NewTree(Bounds{}, nil)
	apply(t, want, tree.Since(0)...)
	if tree.Digest() != want.Digest() || tree.Bytes() != want.Bytes() || len(tree.Since(0)) != 3 {
		t.Fatal("digest, size or log do not fit what is left")
	}
}

// The deletion of a final key is never undone, not by what was written later either.
func TestFinalDeletion(t *testing.T) {
	at := func(tm int64) lamport.Stamp { return lamport.Stamp{Time: tm, Node: "a"} }
	tree := NewTree(Bounds{}, func(key string) bool { return key == "final" })
	for _, key := range []string{"final", "other"} {
		apply(t, tree, Entry{Key: key, Stamp: at(1)}, Entry{Key: key, Stamp: at(2), Deleted: true}, Entry{Key: key, Stamp: at(3)})
		if e, _ := tree.Get(key); e.Deleted != (key == "final") {
			t.Errorf("%s: %+v", key, e)
		}
	}
	apply(t, tree, Entry{Key: "late", Stamp: at(9)})
	late := NewTree(Bounds{}, func(string) bool { return true })
	apply(t, late, Entry{Key: "late", Stamp: at(9)}, Entry{Key: "late", Stamp: at(2), Deleted: true})
	if e, _ := late.Get("late"); !e.Deleted || e.Stamp != at(2) {
		t.Errorf("a deletion that is older than the value: %+v", e)
	}
}

func TestRoom(t *testing.T) {
	tree := NewTree(Bounds{Entries: 2, Bytes: 20}, nil)
	e := func(key string, size int) Entry { return Entry{Key: key, Value: make([]byte, size)} }
	apply(t, tree, e("a", 9))
	for _, c := range []struct {
		e  Entry
		ok bool
	}{{e("b", 9), true}, {e("b", 10), false}, {e("a", 19), true}, {e("a", 20), false}} {
		if err := tree.Room(c.e); (err == nil) != c.ok || (!c.ok && !errors.Is(err, ErrFull)) {
			t.Errorf("%s with %d bytes: %v", c.e.Key, len(c.e.Value), err)
		}
	}
	apply(t, tree, e("b", 0))
	if err := tree.Room(e("c", 0)); !errors.Is(err, ErrFull) {
		t.Errorf("third entry: %v", err)
	}
	if err := tree.Room(Entry{Key: "a", Deleted: true}); err != nil {
		t.Errorf("deleting: %v", err)
	}
}

func TestInvalidEntriesAreRefused(t *testing.T) {
	long := strings.Repeat("x", MaxKey+1)
	for name, e := range map[string]Entry{
		"no key":             {},
		"long key":           {Key: long},
		"control characters": {Key: "a\nb"},
		"not UTF-8":          {Key: "\xff"},
		"long value":         {Key: "a", Value: make([]byte, MaxValue+1)},
		"long node":          {Key: "a", Stamp: lamport.Stamp{Node: long}},
		"value and deleted":  {Key: "a", Value: []byte("x"), Deleted: true},
	} {
		tree := NewTree(Bounds{}, nil)
		if changed, err := tree.Apply(e); !errors.Is(err, ErrInvalid) || changed || tree.Len() != 0 {
			t.Errorf("%s: changed %v, %v", name, changed, err)
		}
	}
}

func TestDecodeOfEachPrefixFails(t *testing.T) {
	e := Entry{Key: "key", Value: []byte("value"), Stamp: lamport.Stamp{Time: -7, Node: "node"}}
	b := e.Append(nil)
	for n := range b {
		if _, _, err := Decode(b[:n]); !errors.Is(err, ErrInvalid) {
			t.Fatalf("%d of %d bytes: %v", n, len(b), err)
		}
	}
	got, rest, err := Decode(append(b, "rest"...))
	if err != nil || !same(got, e) || string(rest) != "rest" {
		t.Fatalf("%v %q %v", got, rest, err)
	}
}

// The layout of an entry is for ever.
func TestGoldenEntry(t *testing.T) {
	e := Entry{Key: "k", Value: []byte("v"), Stamp: lamport.Stamp{Time: 258, Node: "n"}}
	want := []byte{1, 0, 'k', 1, 'n', 2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 'v'}
	if got := e.Append(nil); !bytes.Equal(got, want) {
		t.Fatalf("got  % x\nwant % x", got, want)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Entry{Key: "k", Value: []byte("v"), Stamp: lamport.Stamp{Time: 1, Node: "n"}}.Append(nil))
	f.Add(Entry{Key: "k", Deleted: true, Stamp: lamport.Stamp{Time: 1 << 62, Node: "n"}}.Append([]byte(nil)))
	f.Add([]byte{1, 0, 'k', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, rest, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("error of the wrong kind: %v", err)
			}
			return
		}
		if err := e.Check(); err != nil {
			t.Fatalf("decoded entry is invalid: %v", err)
		}
		if again := e.Append(nil); !bytes.Equal(again, b[:len(b)-len(rest)]) {
			t.Fatalf("encodes differently: % x", again)
		}
	})
}

func BenchmarkApply(b *testing.B) {
	tree := NewTree(Bounds{}, nil)
	for i := 0; b.Loop(); i++ {
		_, _ = tree.Apply(Entry{Key: fmt.Sprintf("resource/r%d/pos", i%1000), Value: []byte("1234567890"), Stamp: lamport.Stamp{Time: int64(i), Node: "a"}})
	}
}
