// Package stamp tells whether a disk image is a state that a volume really had.
//
// Every write gets a number and carries it, with its place, in each sector of 512 bytes. A Journal remembers what was issued and what was
// acknowledged when. From an image alone one can then see which write each sector comes from, and the journal says whether all of that
// together is a prefix of the order of writes (anytime consistency), and whether everything is there that must be.
package stamp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
)

// SectorSize is the unit in which writes can be torn.
const SectorSize = 512

const magic = 0x5350_4d41_5453_524d // "MRSTAMPS"

// Fill makes p the content of the write seq at byte offset off.
func Fill(p []byte, off int64, seq uint64) {
	for i := 0; i < len(p); i += SectorSize {
		fillSector(p[i:i+SectorSize], uint64(off+int64(i))/SectorSize, seq)
	}
}

func fillSector(p []byte, sector, seq uint64) {
	binary.LittleEndian.PutUint64(p, magic)
	binary.LittleEndian.PutUint64(p[8:], sector)
	binary.LittleEndian.PutUint64(p[16:], seq)
	x := seq*0x9e37_79b9_7f4a_7c15 ^ sector*0xd1b5_4a32_d192_ed03 | 1
	for i := 24; i < SectorSize; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:], x)
	}
}

var zeroSector [SectorSize]byte

// readSector returns the write that a sector comes from, 0 when it is all zeroes.
func readSector(p []byte, sector int64) (uint64, error) {
	if bytes.Equal(p, zeroSector[:]) {
		return 0, nil
	}
	seq := binary.LittleEndian.Uint64(p[16:])
	var want [SectorSize]byte
	fillSector(want[:], uint64(sector), seq)
	if !bytes.Equal(p, want[:]) {
		return 0, fmt.Errorf("sector %d is not what any write put there (it says: sector %d, write %d)", sector, binary.LittleEndian.Uint64(p[8:]), seq)
	}
	return seq, nil
}

// Image is which write each sector of a disk comes from.
type Image []uint64

// ReadImage reads size bytes of a disk. Sectors that nobody could have written are an error.
func ReadImage(r io.ReaderAt, size int64) (Image, error) {
	img := make(Image, size/SectorSize)
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-off)]
		if _, err := r.ReadAt(p, off); err != nil && !(errors.Is(err, io.EOF) && off+int64(len(p)) == size) {
			return nil, fmt.Errorf("read image at %d: %w", off, err)
		}
		for i := 0; i < len(p); i += SectorSize {
			s := (off + int64(i)) / SectorSize
			seq, err := readSector(p[i:i+SectorSize], s)
			if err != nil {
				return nil, err
			}
			img[s] = seq
		}
	}
	return img, nil
}

// Time is a moment in the life of a journal.
type Time uint64

const never = Time(math.MaxUint64)

type write struct {
	first, n int64 // sectors
	zero     bool
	issued   Time
	acked    Time // never: it may or may not have happened
	ended    Time // it cannot happen after this
}

// Journal remembers writes. It may be used concurrently.
type Journal struct {
	mu     sync.Mutex
	now    Time
	writes []write // number 1 is at index 0
	base   Image   // what was there before the write number since+1
	since  int
}

// Issue notes that a write of n bytes at off is about to be sent, and returns its number.
func (j *Journal) Issue(off, n int64) uint64 {
	return j.issue(write{first: off / SectorSize, n: n / SectorSize})
}

// IssueZeroes is Issue for a write of zeroes, which cannot carry its number.
func (j *Journal) IssueZeroes(off, n int64) uint64 {
	return j.issue(write{first: off / SectorSize, n: n / SectorSize, zero: true})
}

func (j *Journal) issue(w write) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.now++
	w.issued, w.acked, w.ended = j.now, never, never
	j.writes = append(j.writes, w)
	return uint64(len(j.writes))
}

// Ack notes that the write was acknowledged.
func (j *Journal) Ack(seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.now++
	w := &j.writes[seq-1]
	w.acked, w.ended = j.now, j.now
}

// Now returns the present: what is acknowledged up to here can be demanded from Check.
func (j *Journal) Now() Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.now
}

// Crashed notes that whoever had the unacknowledged writes is dead: they have happened by now, or never will.
func (j *Journal) Crashed() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.now++
	for i := range j.writes {
		j.writes[i].ended = min(j.writes[i].ended, j.now)
	}
}

// Adopt makes img the new truth, after a failover that has thrown writes away: what it does not show must never be seen again.
func (j *Journal) Adopt(img Image) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.base, j.since = img, len(j.writes)
}

// Acked returns how many writes are acknowledged.
func (j *Journal) Acked() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
	for i := range j.writes {
		if j.writes[i].acked != never {
			n++
		}
	}
	return n
}

// Check returns why img is not the state after some prefix of the writes that has at least all that was acknowledged until must.
//
// Concurrent writes may be in any order. A write that was acknowledged before another one was issued comes before it: if the later one is
// seen anywhere, the earlier one must be seen, or something that is not older, in each of its sectors.
func (j *Journal) Check(img Image, must Time) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	horizon, by := must, uint64(0)
	for s, seq := range img {
		if err := j.possible(int64(s), seq); err != nil {
			return err
		}
		if seq > uint64(j.since) && j.writes[seq-1].issued > horizon {
			horizon, by = j.writes[seq-1].issued, seq
		}
	}
	for i := j.since; i < len(j.writes); i++ {
		if w := &j.writes[i]; w.acked <= horizon {
			if err := j.seen(img, uint64(i+1), by); err != nil {
				return err
			}
		}
	}
	return nil
}

// Seen returns why img does not show the write, or something that is not older, in each of its sectors. For writes that are durable by
// themselves, beyond what Check demands.
func (j *Journal) Seen(img Image, seq uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.seen(img, seq, 0)
}

// possible checks one sector for itself.
func (j *Journal) possible(s int64, seq uint64) error {
	switch {
	case seq == 0 && j.base != nil && j.base[s] != 0 && !j.zeroed(s, 0):
		return fmt.Errorf("sector %d is zero, but held write %d and nobody has zeroed it since", s, j.base[s])
	case seq == 0:
		return nil
	case seq > uint64(len(j.writes)):
		return fmt.Errorf("sector %d comes from write %d, which was never issued", s, seq)
	case seq <= uint64(j.since) && j.base[s] != seq:
		return fmt.Errorf("sector %d comes from write %d, which was thrown away; its last content then was write %d", s, seq, j.base[s])
	}
	w := &j.writes[seq-1]
	if s < w.first || s >= w.first+w.n || w.zero {
		return fmt.Errorf("sector %d comes from write %d, which went to sectors %d to %d", s, seq, w.first, w.first+w.n-1)
	}
	return nil
}

// seen checks that a write, or something not older, is in each of its sectors.
func (j *Journal) seen(img Image, seq, by uint64) error {
	w := &j.writes[seq-1]
	for s := w.first; s < min(w.first+w.n, int64(len(img))); s++ {
		if j.notOlder(s, img[s], w) {
			continue
		}
		why := "it was acknowledged in time"
		if by != 0 {
			why = fmt.Sprintf("write %d, which was issued after its acknowledgement, is seen elsewhere", by)
		}
		return fmt.Errorf("sector %d has write %d but must have write %d: %s", s, img[s], seq, why)
	}
	return nil
}

func (j *Journal) notOlder(s int64, has uint64, w *write) bool {
	if has != 0 {
		return has > uint64(j.since) && j.writes[has-1].ended >= w.issued
	}
	return j.zeroed(s, w.issued)
}

// zeroed reports whether a write of zeroes that may have happened after a moment went to the sector.
func (j *Journal) zeroed(s int64, after Time) bool {
	for i := j.since; i < len(j.writes); i++ {
		if z := &j.writes[i]; z.zero && s >= z.first && s < z.first+z.n && z.ended >= after {
			return true
		}
	}
	return false
}
