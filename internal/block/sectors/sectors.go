// Package sectors is a sparse array of bytes in memory that knows which of its sectors would survive a power cut: the common ground of the
// fakes of files and of disks.
//
// A write is visible at once and durable after Sync. A power cut leaves in each sector, independently, what was there at the last Sync or
// what any later write had put there; a sector of 512 bytes is never torn. Everything is deterministic; choices are the caller's.
package sectors

import (
	"encoding/binary"
	"io"
	"math/bits"
	"math/rand/v2"
	"slices"
)

// Size of a sector in bytes: what the medium writes atomically.
const Size = 512

const (
	pageSize   = 4096
	perPage    = pageSize / Size
	chunkPages = 256
	// maxBetween bounds the overwritten versions that are remembered per page, so that a store that is never synced stays small.
	maxBetween = 32
)

// Store is the array. The zero value is all zeroes and durable. It is not safe for concurrent use.
type Store struct {
	chunks []*chunk
	dirty  []int64         // pages with vol, in the order in which they became so
	spare  []*volatilePart // for reuse
}

type chunk [chunkPages]*page

type page struct {
	data [pageSize]byte
	vol  *volatilePart // nil: all of data is durable
}

// volatilePart is what is known of a page beside its current contents. The sets are bit masks of its sectors.
type volatilePart struct {
	unsynced uint8          // differ, or may differ, from the medium
	dropped  uint8          // subset of unsynced: were dirty when a sync failed, and are taken for clean since
	zeroed   bool           // the page may be all zeroes
	medium   [pageSize]byte // contents of the medium, valid for the unsynced sectors
	between  []version      // unsynced contents that were overwritten, oldest first
}

type version struct {
	sector int
	data   [Size]byte
}

// Choose picks one of n >= 2 versions of something after a power cut: 0 is what was durable, n-1 the newest.
type Choose func(n int) int

// Lost is the Choose of a power cut that loses everything it may lose.
func Lost(int) int { return 0 }

// Kept is the Choose of a power cut that loses nothing.
func Kept(n int) int { return n - 1 }

// Random returns a Choose that takes the newest version with a probability that is itself drawn, now: so that the extremes, all lost or all
// kept, come up as often as mixtures.
func Random(rng *rand.Rand) Choose {
	newest := [...]float64{0, 0.1, 0.5, 0.9, 1}[rng.IntN(5)]
	return func(n int) int {
		switch {
		case newest == 0:
			return 0
		case rng.Float64() < newest:
			return n - 1
		}
		return rng.IntN(n - 1)
	}
}

func (s *Store) page(no int64) *page {
	c := no / chunkPages
	if c >= int64(len(s.chunks)) || s.chunks[c] == nil {
		return nil
	}
	return s.chunks[c][no%chunkPages]
}

func (s *Store) makePage(no int64) *page {
	c := no / chunkPages
	for c >= int64(len(s.chunks)) {
		s.chunks = append(s.chunks, nil)
	}
	if s.chunks[c] == nil {
		s.chunks[c] = new(chunk)
	}
	p := &s.chunks[c][no%chunkPages]
	if *p == nil {
		*p = new(page)
	}
	return *p
}

// ReadAt fills p with the current contents at off.
func (s *Store) ReadAt(p []byte, off int64) {
	for len(p) > 0 {
		in := off % pageSize
		n := min(len(p), int(pageSize-in))
		if pg := s.page(off / pageSize); pg != nil {
			copy(p[:n], pg.data[in:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

// WriteAt changes the contents at off, not durably. off and len(p) need no alignment; the sectors that are touched change as a whole.
func (s *Store) WriteAt(p []byte, off int64) {
	for len(p) > 0 {
		in := int(off % pageSize)
		n := min(len(p), pageSize-in)
		pg := s.makePage(off / pageSize)
		s.touch(pg, off/pageSize, in, n)
		copy(pg.data[in:], p[:n])
		p, off = p[n:], off+int64(n)
	}
}

// Zero makes the range zeroes, not durably.
func (s *Store) Zero(off, n int64) {
	end := min(off+n, int64(len(s.chunks))*chunkPages*pageSize)
	for off < end {
		in := int(off % pageSize)
		k := int(min(end-off, int64(pageSize-in)))
		if pg := s.page(off / pageSize); pg != nil {
			s.touch(pg, off/pageSize, in, k)
			clear(pg.data[in : in+k])
			pg.vol.zeroed = true
		} else if s.chunks[off/pageSize/chunkPages] == nil {
			off = off / (chunkPages * pageSize) * (chunkPages * pageSize)
			k = chunkPages * pageSize
		}
		off += int64(k)
	}
}

// touch remembers the contents of the sectors of [in, in+n) of the page, which are about to change.
func (s *Store) touch(pg *page, no int64, in, n int) {
	if pg.vol == nil {
		pg.vol = s.newVolatile()
		s.dirty = append(s.dirty, no)
	}
	for i := in / Size; i*Size < in+n; i++ {
		pg.vol.remember(i, pg.data[i*Size:(i+1)*Size])
	}
}

func (s *Store) newVolatile() *volatilePart {
	if n := len(s.spare); n > 0 {
		v := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return v
	}
	return new(volatilePart)
}

func (s *Store) freeVolatile(pg *page) {
	v := pg.vol
	pg.vol = nil
	if len(s.spare) < 64 {
		v.unsynced, v.dropped, v.zeroed, v.between = 0, 0, false, nil
		s.spare = append(s.spare, v)
	}
}

func (v *volatilePart) remember(i int, now []byte) {
	bit := uint8(1) << i
	switch {
	case v.unsynced&bit == 0:
		copy(v.medium[i*Size:], now)
	case v.dropped&bit == 0: // dropped contents never reach the medium
		if len(v.between) == maxBetween {
			v.between = v.between[1:]
		}
		v.between = append(v.between, version{i, [Size]byte(now)})
	}
	v.unsynced |= bit
	v.dropped &^= bit
}

// Sync makes everything durable, except what a Drop has given up.
func (s *Store) Sync() {
	s.settle(func(no int64, pg *page) {
		pg.vol.unsynced = pg.vol.dropped
		pg.vol.between = nil
		if pg.vol.unsynced == 0 {
			s.freeIfZero(no, pg)
		}
	})
}

// SyncRange makes the sectors that the range touches durable. A dropped sector is not.
func (s *Store) SyncRange(off, n int64) {
	for no := off / pageSize; no*pageSize < off+n; no++ {
		pg := s.page(no)
		if pg == nil || pg.vol == nil {
			continue
		}
		for i := range perPage {
			if at := no*pageSize + int64(i)*Size; at < off+n && at+Size > off {
				pg.vol.settleSector(i)
			}
		}
	}
	s.settle(func(int64, *page) {})
}

func (v *volatilePart) settleSector(i int) {
	v.unsynced &^= 1 << i &^ v.dropped
	v.between = slices.DeleteFunc(v.between, func(b version) bool { return b.sector == i })
}

// Drop is a Sync that fails: what is dirty now will be taken for clean, but the medium never gets it.
func (s *Store) Drop() {
	s.settle(func(_ int64, pg *page) {
		pg.vol.dropped = pg.vol.unsynced
		pg.vol.between = nil
	})
}

// Crash is a power cut: of each sector that is not durable one version is left, and that one is durable.
func (s *Store) Crash(choose Choose) {
	s.settle(func(_ int64, pg *page) {
		for left := pg.vol.unsynced; left != 0; left &= left - 1 {
			pg.crash(bits.TrailingZeros8(left), choose)
		}
		pg.vol.unsynced = 0
	})
}

func (pg *page) crash(i int, choose Choose) {
	v := pg.vol
	now := pg.data[i*Size : (i+1)*Size]
	if v.dropped&(1<<i) != 0 {
		copy(now, v.medium[i*Size:])
		return
	}
	var between []int
	for k := range v.between {
		if v.between[k].sector == i {
			between = append(between, k)
		}
	}
	switch pick := choose(len(between) + 2); {
	case pick == 0:
		copy(now, v.medium[i*Size:])
	case pick <= len(between):
		copy(now, v.between[between[pick-1]].data[:])
	}
}

// settle calls f for each page that is not all durable and forgets those that then are.
func (s *Store) settle(f func(no int64, pg *page)) {
	kept := s.dirty[:0]
	for _, no := range s.dirty {
		pg := s.page(no)
		f(no, pg)
		if pg.vol.unsynced != 0 {
			kept = append(kept, no)
		} else {
			s.freeVolatile(pg)
		}
	}
	s.dirty = kept
}

func (s *Store) freeIfZero(no int64, pg *page) {
	if pg.vol.zeroed && pg.data == [pageSize]byte{} {
		s.chunks[no/chunkPages][no%chunkPages] = nil
	}
}

// Unsynced is the number of sectors that a power cut may change.
func (s *Store) Unsynced() int {
	n := 0
	for _, no := range s.dirty {
		n += bits.OnesCount8(s.page(no).vol.unsynced)
	}
	return n
}

// Corrupt inverts each byte of the range, on the medium and in every version: bit rot.
func (s *Store) Corrupt(off, n int64) {
	for end := off + n; off < end; off++ {
		pg := s.makePage(off / pageSize)
		in := int(off % pageSize)
		pg.data[in] ^= 0xff
		if pg.vol == nil {
			continue
		}
		pg.vol.medium[in] ^= 0xff
		for k := range pg.vol.between {
			if pg.vol.between[k].sector == in/Size {
				pg.vol.between[k].data[in%Size] ^= 0xff
			}
		}
	}
}

// Clone returns an independent copy, with all that is not durable.
func (s *Store) Clone() *Store {
	c := &Store{chunks: make([]*chunk, len(s.chunks)), dirty: append([]int64(nil), s.dirty...)}
	for i, ch := range s.chunks {
		if ch != nil {
			c.chunks[i] = ch.clone()
		}
	}
	return c
}

func (ch *chunk) clone() *chunk {
	c := new(chunk)
	for i, pg := range ch {
		if pg == nil {
			continue
		}
		c[i] = &page{data: pg.data}
		if pg.vol != nil {
			v := *pg.vol
			v.between = append([]version(nil), v.between...)
			c[i].vol = &v
		}
	}
	return c
}

// Digest writes the current contents to w in a form that depends on nothing else. Zeroes cost nothing.
func (s *Store) Digest(w io.Writer) {
	for c, ch := range s.chunks {
		if ch == nil {
			continue
		}
		for i, pg := range ch {
			if pg != nil && pg.data != [pageSize]byte{} {
				var no [8]byte
				binary.LittleEndian.PutUint64(no[:], uint64(c*chunkPages+i))
				w.Write(no[:]) // a hash never fails
				w.Write(pg.data[:])
			}
		}
	}
}
