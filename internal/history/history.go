// Package history knows what a resource's past is: a tree of timelines, of which every replica has walked one path, root to tip.
// It is pure: no IO, no clock, no goroutines. From two paths alone it decides who contains whom and where they fork (invariant I5:
// a split is decided from digests, never from flags or times), and from one path who holds the token, the right to write.
//
// A timeline is one uninterrupted tenure of one primary. Only its origin ever appends to it, and a restarted primary opens a new one, so
// that a timeline's bytes are the same on every node that has them, up to the shorter end.
package history

import (
	"encoding/hex"
	"fmt"
)

// LSN is a byte position in a resource's log. It grows for ever, across segments and timelines.
type LSN int64

func (l LSN) String() string { return fmt.Sprintf("%d", int64(l)) }

// Digest stands for everything that was logged before a position: a hash chain over all records of the path.
type Digest [16]byte

func (d Digest) String() string { return hex.EncodeToString(d[:6]) }

// MarshalText makes digests readable in JSON.
func (d Digest) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(d[:])), nil }

// UnmarshalText is the inverse of MarshalText.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != 2*len(d) {
		return fmt.Errorf("digest of %d characters, want %d", len(text), 2*len(d))
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// TimelineID is the opaque identity of a timeline; 0 is none.
type TimelineID uint64

func (t TimelineID) String() string { return fmt.Sprintf("%016x", uint64(t)) }

// Timeline says where a tenure began.
type Timeline struct {
	ID     TimelineID `json:"id"`
	No     int        `json:"no"`     // depth in the tree, 1 = first
	Origin string     `json:"origin"` // id of the node that writes it
	Parent TimelineID `json:"parent"`
	Switch LSN        `json:"switch"` // where it leaves its parent
	Digest Digest     `json:"digest"` // the parent's digest at Switch
	Passed string     `json:"passed"` // whom the parent's end record named; empty if it was not closed
	Forced bool       `json:"forced"` // opened without the token, by --force
	Stamp  int64      `json:"stamp"`  // Lamport time of opening
}

// Position is a point on the tree.
type Position struct {
	Timeline TimelineID `json:"timeline"`
	LSN      LSN        `json:"lsn"`
	Digest   Digest     `json:"digest"`
}

func (p Position) String() string { return fmt.Sprintf("%d on timeline %v", p.LSN, p.Timeline) }

// Path is the way of one replica from the root to its tip.
type Path struct {
	Timelines []Timeline `json:"timelines"` // root first; may lack the oldest ones, see MaxTimelines
	End       LSN        `json:"end"`       // end of the log on the last timeline
	EndDigest Digest     `json:"end_digest"`
	// LastData is the end of the last record that changed data; a tail behind it can be dropped without losing anything.
	LastData LSN `json:"last_data"`
	// Successor is the node named by the timeline end record that closes the last timeline; empty while that is open.
	Successor string `json:"successor,omitempty"`
}

// MaxTimelines bounds a Path. Older ones are forgotten; two paths whose common part is forgotten are unrelated and need a full sync.
const MaxTimelines = 256

// Tip returns the last timeline; the zero Timeline for an empty path.
func (p *Path) Tip() Timeline {
	if len(p.Timelines) == 0 {
		return Timeline{}
	}
	return p.Timelines[len(p.Timelines)-1]
}

// Position returns where the path ends.
func (p *Path) Position() Position {
	return Position{Timeline: p.Tip().ID, LSN: p.End, Digest: p.EndDigest}
}

// Holder returns the node that has the token: the successor named by the end record, or the origin of the open timeline.
func (p *Path) Holder() string {
	if p.Successor != "" {
		return p.Successor
	}
	return p.Tip().Origin
}

// Push appends a timeline that begins at the end of the path.
func (p *Path) Push(t Timeline) {
	p.Timelines = append(p.Timelines[:len(p.Timelines):len(p.Timelines)], t)
	if n := len(p.Timelines); n > MaxTimelines {
		p.Timelines = append([]Timeline(nil), p.Timelines[n-MaxTimelines:]...)
	}
	p.Successor = ""
}

// Clone returns a copy that shares nothing.
func (p *Path) Clone() Path {
	q := *p
	q.Timelines = append([]Timeline(nil), p.Timelines...)
	return q
}

// endOf returns where the path leaves its i-th timeline.
func (p *Path) endOf(i int) LSN {
	if i+1 < len(p.Timelines) {
		return p.Timelines[i+1].Switch
	}
	return p.End
}

// At returns the timeline on which the path passes lsn (at a switch: the older one), and false when lsn is outside.
func (p *Path) At(lsn LSN) (Timeline, bool) {
	for i, t := range p.Timelines {
		if lsn >= t.Switch && lsn <= p.endOf(i) {
			return t, true
		}
	}
	return Timeline{}, false
}

// Contains reports whether the path passes pos, as far as timelines and positions tell; the digest is compared where it is known
// (at switches and at the end). A switch belongs to the older timeline. The zero Position is the root, before the first timeline.
func (p *Path) Contains(pos Position) bool {
	if pos == (Position{}) {
		return p.fromRoot()
	}
	i := p.indexOf(pos)
	return i >= 0 && (pos.LSN != p.endOf(i) || pos.Digest == p.digestAtEndOf(i))
}

// fromRoot reports whether the path is known from its very beginning.
func (p *Path) fromRoot() bool {
	if len(p.Timelines) == 0 {
		return p.End == 0
	}
	return p.Timelines[0].Parent == 0 && p.Timelines[0].Switch == 0
}

// indexOf returns the index of the timeline on which the path passes pos, -1 if it does not. Digests are not compared.
func (p *Path) indexOf(pos Position) int {
	for i, t := range p.Timelines {
		if t.ID == pos.Timeline && pos.LSN > t.Switch && pos.LSN <= p.endOf(i) {
			return i
		}
	}
	return -1
}

// Relation says how two paths a and b relate.
type Relation struct {
	Unrelated bool     // nothing in common that is still known
	Fork      Position // the last common point; Digest is set only when it is known
	TailA     LSN      // bytes of a behind Fork
	TailB     LSN      // bytes of b behind Fork
	ModifiedA bool     // a's tail has data
	ModifiedB bool     // b's tail has data
}

// Split reports whether this is a split brain: both sides went on from the fork with data.
func (r Relation) Split() bool { return r.Unrelated || (r.ModifiedA && r.ModifiedB) }

// Contained reports whether a is a part of b: b's log can simply be appended.
func (r Relation) Contained() bool { return !r.Unrelated && r.TailA == 0 }

// Compare relates two paths. An empty path is contained in everything.
func Compare(a, b *Path) Relation {
	if len(a.Timelines) == 0 || len(b.Timelines) == 0 {
		return Relation{TailA: a.End * min(1, LSN(len(a.Timelines))), TailB: b.End * min(1, LSN(len(b.Timelines)))}
	}
	i, j, ok := lastCommon(a.Timelines, b.Timelines)
	if !ok {
		return Relation{Unrelated: true, TailA: a.End, TailB: b.End, ModifiedA: true, ModifiedB: true}
	}
	fork := min(a.endOf(i), b.endOf(j))
	r := Relation{
		Fork:      Position{Timeline: a.Timelines[i].ID, LSN: fork},
		TailA:     a.End - fork,
		TailB:     b.End - fork,
		ModifiedA: a.LastData > fork,
		ModifiedB: b.LastData > fork,
	}
	if fork == a.endOf(i) {
		r.Fork.Digest = a.digestAtEndOf(i)
	} else {
		r.Fork.Digest = b.digestAtEndOf(j)
	}
	if a.endOf(i) == b.endOf(j) && a.digestAtEndOf(i) != b.digestAtEndOf(j) {
		return Relation{Unrelated: true, TailA: a.End, TailB: b.End, ModifiedA: true, ModifiedB: true}
	}
	return r
}

func (p *Path) digestAtEndOf(i int) Digest {
	if i+1 < len(p.Timelines) {
		return p.Timelines[i+1].Digest
	}
	return p.EndDigest
}

// lastCommon finds the last timeline that both paths walked, by index in each.
func lastCommon(a, b []Timeline) (i, j int, ok bool) {
	at := make(map[TimelineID]int, len(b))
	for j, t := range b {
		at[t.ID] = j
	}
	for i := len(a) - 1; i >= 0; i-- {
		if j, ok := at[a[i].ID]; ok && a[i].Switch == b[j].Switch && a[i].Digest == b[j].Digest {
			return i, j, true
		}
	}
	return 0, 0, false
}

// TruncateTo returns the path cut back to pos, which it must contain. Its LastData is an upper bound.
func (p *Path) TruncateTo(pos Position) (Path, error) {
	switch {
	case !p.Contains(pos):
		return Path{}, fmt.Errorf("history does not contain position %v", pos)
	case pos == (Position{}):
		return Path{}, nil
	}
	i := p.indexOf(pos)
	q := Path{Timelines: append([]Timeline(nil), p.Timelines[:i+1]...), End: pos.LSN, EndDigest: pos.Digest,
		LastData: min(p.LastData, pos.LSN)}
	switch {
	case pos.LSN < p.endOf(i):
	case i+1 == len(p.Timelines):
		q.Successor = p.Successor
	default:
		q.Successor = p.Timelines[i+1].Passed
	}
	return q, nil
}
