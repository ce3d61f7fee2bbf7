// Package meta is the cluster's replicated metadata: a tree of small values that every node holds completely, that any node may change at
// any time, also while it is alone, and that becomes the same everywhere when nodes talk to each other.
//
// Tree is the pure part: a merge in which the newest stamp wins (package lamport), deletions being tombstones. Keys that are never used again once
// they are deleted are final: their deletion wins against every value, so that no wrong clock brings them back. The merge is commutative,
// associative and idempotent, so that neither the order nor the number of deliveries matters. It does no IO, knows no clock and starts
// nothing. Store is a Tree on disk with a clock.
//
// What it does not do: it does not know who may write which key (that is a convention of its users: a node writes facts only about itself,
// wishes may be written by anybody), and it gives no atomicity over several keys between nodes.
package meta

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
)

// Buckets is the number of parts into which a Digest divides the keys.
const Buckets = 256

// ErrFull says that a new entry does not fit into the configured bounds.
var ErrFull = errors.New("metadata store is full")

// Sum identifies a set of entries.
type Sum [16]byte

func (s *Sum) xor(t Sum) {
	for i := range s {
		s[i] ^= t[i]
	}
}

// Digest summarises a tree: bucket by bucket, equal sums mean equal entries (tombstones included). It guards against difference, not
// against malice: who may speak to us at all may write anything.
type Digest [Buckets]Sum

// Bounds limits a tree as a whole. Zero values mean the defaults.
type Bounds struct {
	// Entries counts all keys, tombstones included; default 200,000.
	Entries int
	// Bytes counts keys and values; default 256 MiB.
	Bytes int64
}

func (b Bounds) withDefaults() Bounds {
	if b.Entries == 0 {
		b.Entries = 200_000
	}
	if b.Bytes == 0 {
		b.Bytes = 256 << 20
	}
	return b
}

// Tree holds the newest known version of every key. It is not safe for concurrent use.
type Tree struct {
	bounds Bounds
	final  func(key string) bool
	items  map[string]*item
	keys   []string // sorted
	log    item     // ring, oldest change first; log itself is the anchor
	seq    uint64
	bytes  int64
	newest int64 // no stamp has a later time
	digest Digest
}

type item struct {
	entry      Entry
	seq        uint64
	bucket     byte
	sum        Sum
	prev, next *item
}

// NewTree returns an empty tree. The deletion of a final key wins against every value, whatever the stamps say; nil = there are no such keys.
func NewTree(b Bounds, final func(key string) bool) *Tree {
	t := &Tree{bounds: b.withDefaults(), final: final, items: map[string]*item{}}
	t.log.prev, t.log.next = &t.log, &t.log
	return t
}

// Apply merges e into the tree and tells whether that changed anything. The tree keeps e.Value. An entry that fails Check changes nothing.
// The bounds of the whole tree are not enforced here but by Room, because what is on disk already must go in.
func (t *Tree) Apply(e Entry) (changed bool, err error) {
	if err := e.Check(); err != nil {
		return false, err
	}
	it := t.items[e.Key]
	if it == nil {
		it = t.insert(e.Key)
	} else if !t.newer(e, it.entry) {
		return false, nil
	}
	t.replace(it, e)
	return true, nil
}

// newer tells whether e wins against old, another version of the same key.
func (t *Tree) newer(e, old Entry) bool {
	if e.Deleted != old.Deleted && t.final != nil && t.final(e.Key) {
		return e.Deleted
	}
	return e.Compare(old) > 0
}

// Room tells whether e fits into the bounds; the error wraps ErrFull. Changes that do not grow the tree always fit.
func (t *Tree) Room(e Entry) error {
	var old int
	it := t.items[e.Key]
	if it != nil {
		old = len(it.entry.Key) + len(it.entry.Value)
	}
	grow := int64(len(e.Key) + len(e.Value) - old)
	if it == nil && len(t.items) >= t.bounds.Entries {
		return fmt.Errorf("%w: %d entries, no room for %s: delete resources or nodes that are no longer used", ErrFull, len(t.items), e.Key)
	}
	if grow > 0 && t.bytes+grow > t.bounds.Bytes {
		return fmt.Errorf("%w: %d bytes, no room for %s: delete resources or nodes that are no longer used", ErrFull, t.bytes, e.Key)
	}
	return nil
}

func (t *Tree) insert(key string) *item {
	it := &item{bucket: bucketOf(key)}
	it.prev, it.next = it, it
	t.items[key] = it
	i := sort.SearchStrings(t.keys, key)
	t.keys = slices.Insert(t.keys, i, key)
	return it
}

// replace gives it a new version, at the end of the log of changes.
func (t *Tree) replace(it *item, e Entry) {
	t.bytes += int64(len(e.Key)+len(e.Value)) - int64(len(it.entry.Key)+len(it.entry.Value))
	t.digest[it.bucket].xor(it.sum)
	it.sum = sumOf(e)
	t.digest[it.bucket].xor(it.sum)
	it.entry = e
	t.newest = max(t.newest, e.Stamp.Time)
	t.seq++
	it.seq = t.seq
	it.unlink()
	it.prev, it.next = t.log.prev, &t.log
	it.prev.next, it.next.prev = it, it
}

func (it *item) unlink() { it.prev.next, it.next.prev = it.next, it.prev }

func bucketOf(key string) byte { return sumBytes([]byte(key))[0] }

func sumOf(e Entry) Sum { return sumBytes(e.Append(nil)) }

func sumBytes(b []byte) Sum {
	full := sha256.Sum256(b)
	return Sum(full[:len(Sum{})])
}

// Get returns the newest version of key, which may be a tombstone.
func (t *Tree) Get(key string) (Entry, bool) {
	it := t.items[key]
	if it == nil {
		return Entry{}, false
	}
	return it.entry, true
}

// List returns the entries whose keys begin with prefix, without tombstones, sorted by key.
func (t *Tree) List(prefix string) []Entry {
	var out []Entry
	for i := sort.SearchStrings(t.keys, prefix); i < len(t.keys) && strings.HasPrefix(t.keys[i], prefix); i++ {
		if e := t.items[t.keys[i]].entry; !e.Deleted {
			out = append(out, e)
		}
	}
	return out
}

// Seq is the number of the latest change. Numbers are local to this tree object: they say nothing to anybody else and do not outlive it.
func (t *Tree) Seq() uint64 { return t.seq }

// Since returns the newest versions, tombstones included, of all keys that changed after the change number seq, oldest change first.
func (t *Tree) Since(seq uint64) []Entry {
	first := &t.log
	n := 0
	for first.prev != &t.log && first.prev.seq > seq {
		first = first.prev
		n++
	}
	out := make([]Entry, 0, n)
	for it := first; it != &t.log; it = it.next {
		out = append(out, it.entry)
	}
	return out
}

// Digest summarises the tree.
func (t *Tree) Digest() Digest { return t.digest }

// Differing returns the entries, tombstones included, of all buckets whose sums differ from those in other, sorted by key: what a tree with
// the digest other may lack.
func (t *Tree) Differing(other Digest) []Entry {
	if t.digest == other {
		return nil
	}
	var out []Entry
	for _, key := range t.keys {
		it := t.items[key]
		if t.digest[it.bucket] != other[it.bucket] {
			out = append(out, it.entry)
		}
	}
	return out
}

// Purge forgets the tombstones whose stamps are older than before (nanoseconds since the epoch), except those that keep wants, and returns
// their keys.
func (t *Tree) Purge(before int64, keep func(key string) bool) []string {
	var gone []string
	t.keys = slices.DeleteFunc(t.keys, func(key string) bool {
		it := t.items[key]
		if !it.entry.Deleted || it.entry.Stamp.Time >= before || keep(key) {
			return false
		}
		t.remove(it)
		gone = append(gone, key)
		return true
	})
	return gone
}

func (t *Tree) remove(it *item) {
	t.bytes -= int64(len(it.entry.Key) + len(it.entry.Value))
	t.digest[it.bucket].xor(it.sum)
	it.unlink()
	delete(t.items, it.entry.Key)
}

// Newest returns a time, in nanoseconds since the epoch, such that no stamp in the tree is newer.
func (t *Tree) Newest() int64 { return t.newest }

// After returns the entries with stamps newer than limit, and the newest time among all the others.
func (t *Tree) After(limit int64) (late []Entry, rest int64) {
	for _, key := range t.keys {
		if e := t.items[key].entry; e.Stamp.Time > limit {
			late = append(late, e)
		} else {
			rest = max(rest, e.Stamp.Time)
		}
	}
	return late, rest
}

// Restamp puts the entries in the place of those with the same keys, also where that makes them older. That is no merge: see Store.Amend for
// when it is right.
func (t *Tree) Restamp(entries []Entry) {
	for _, e := range entries {
		t.replace(t.items[e.Key], e)
	}
	_, t.newest = t.After(math.MaxInt64)
}

// Len is the number of keys, tombstones included.
func (t *Tree) Len() int { return len(t.items) }

// Bytes is the size of all keys and values.
func (t *Tree) Bytes() int64 { return t.bytes }
