// Package extent maps ranges of a volume to the place in the log where their newest contents are. It is pure and not safe for concurrent
// use. Later insertions hide earlier ones; memory is one entry per distinct run, independent of its length.
package extent

import (
	"mars/internal/history"

	"github.com/tidwall/btree"
)

// Source says where the contents of a range come from.
type Source struct {
	// Data is the LSN of the first payload byte; meaningless if Zero.
	Data history.LSN
	// Zero: the range reads as zeroes.
	Zero bool
	// Keep: zeroes that must stay allocated.
	Keep bool
}

func (s Source) skip(n int64) Source {
	if !s.Zero {
		s.Data += history.LSN(n)
	}
	return s
}

// Extent is a run [Off, Off+Len) with one source.
type Extent struct {
	Off, Len int64
	Src      Source
}

func (e Extent) end() int64 { return e.Off + e.Len }

type value struct {
	len int64
	src Source
}

// Map is the set of extents, which never overlap. The zero Map is not ready: use New.
type Map struct{ tree *btree.Map[int64, value] }

// New returns an empty map.
func New() *Map { return &Map{tree: btree.NewMap[int64, value](64)} }

// Len returns the number of extents.
func (m *Map) Len() int { return m.tree.Len() }

// Insert puts e over whatever was there.
func (m *Map) Insert(e Extent) {
	if e.Len <= 0 {
		return
	}
	if old, ok := m.tree.Get(e.Off); ok && old.len == e.Len {
		m.tree.Set(e.Off, value{e.Len, e.Src}) // the usual rewrite of the same block
		return
	}
	m.clear(e.Off, e.end())
	m.tree.Set(e.Off, value{e.Len, e.Src})
}

// clear cuts [from, to) out of the map.
func (m *Map) clear(from, to int64) {
	var hit []Extent
	m.overlapping(from, to, func(x Extent) { hit = append(hit, x) })
	for _, x := range hit {
		m.tree.Delete(x.Off)
		if x.Off < from {
			m.tree.Set(x.Off, value{from - x.Off, x.Src})
		}
		if x.end() > to {
			m.tree.Set(to, value{x.end() - to, x.Src.skip(to - x.Off)})
		}
	}
}

// overlapping calls f for every extent that touches [from, to), whole, in order.
func (m *Map) overlapping(from, to int64, f func(Extent)) {
	start := from
	m.tree.Descend(from, func(k int64, v value) bool {
		if k+v.len > from {
			start = k
		}
		return false
	})
	m.tree.Ascend(start, func(k int64, v value) bool {
		if k >= to {
			return false
		}
		if k+v.len > from {
			f(Extent{k, v.len, v.src})
		}
		return true
	})
}

// Lookup appends to dst the parts of extents inside [off, off+n), clipped, in order; gaps are left out.
func (m *Map) Lookup(dst []Extent, off, n int64) []Extent {
	to := off + n
	m.overlapping(off, to, func(x Extent) {
		if x.Off < off {
			x = Extent{off, x.end() - off, x.Src.skip(off - x.Off)}
		}
		if x.end() > to {
			x.Len = to - x.Off
		}
		dst = append(dst, x)
	})
	return dst
}

// Each calls f for every extent in order of offset until it returns false.
func (m *Map) Each(f func(Extent) bool) {
	m.tree.Scan(func(k int64, v value) bool { return f(Extent{k, v.len, v.src}) })
}
