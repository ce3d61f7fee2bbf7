package sectors

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"slices"
	"testing"
)

// oracle keeps per sector what may be on the medium, in the plainest way.
type oracle struct {
	now      []byte
	versions [][]string // per sector, oldest first: what was synced last and all since
	dropped  []bool     // the newest of versions cannot reach the medium
}

func newOracle(sectors int) *oracle {
	o := &oracle{now: make([]byte, sectors*Size), dropped: make([]bool, sectors)}
	for range sectors {
		o.versions = append(o.versions, []string{string(make([]byte, Size))})
	}
	return o
}

func (o *oracle) write(p []byte, off int) {
	copy(o.now[off:], p)
	for i := off / Size; i*Size < off+len(p); i++ {
		if o.dropped[i] {
			o.versions[i], o.dropped[i] = o.versions[i][:1], false
		}
		o.versions[i] = append(o.versions[i], string(o.now[i*Size:(i+1)*Size]))
	}
}

func (o *oracle) sync(off, n int) {
	for i := off / Size; i*Size < off+n; i++ {
		if !o.dropped[i] {
			o.versions[i] = o.versions[i][len(o.versions[i])-1:]
		}
	}
}

func (o *oracle) drop() {
	for i := range o.versions {
		if len(o.versions[i]) > 1 {
			o.versions[i], o.dropped[i] = o.versions[i][:1], true
		}
	}
}

func TestStoreAgainstOracle(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 0))
		const n = 20 * Size
		s, o := new(Store), newOracle(n/Size)
		for range rng.IntN(60) {
			randomStep(rng, s, o, n)
			got := make([]byte, n)
			s.ReadAt(got, 0)
			if !bytes.Equal(got, o.now) {
				t.Fatalf("seed %d: contents differ before the crash", seed)
			}
		}
		checkCrash(t, seed, s, o)
	}
}

func randomStep(rng *rand.Rand, s *Store, o *oracle, n int) {
	off := rng.IntN(n)
	p := bytes.Repeat([]byte{byte(rng.IntN(256))}, 1+rng.IntN(min(n-off, 5000)))
	switch rng.IntN(12) {
	case 0:
		s.Sync()
		o.sync(0, n)
	case 1:
		s.SyncRange(int64(off), int64(len(p)))
		o.sync(off, len(p))
	case 2:
		s.Drop()
		o.drop()
	case 3, 4:
		s.Zero(int64(off), int64(len(p)))
		clear(p)
		o.write(p, off)
	default:
		s.WriteAt(p, int64(off))
		o.write(p, off)
	}
}

func checkCrash(t *testing.T, seed uint64, s *Store, o *oracle) {
	t.Helper()
	random, kept := s.Clone(), s.Clone()
	random.Crash(Random(rand.New(rand.NewPCG(seed, 1))))
	kept.Crash(Kept)
	s.Crash(Lost)
	for i, versions := range o.versions {
		if got := sector(s, i); got != versions[0] {
			t.Fatalf("seed %d, sector %d: all lost: not what was synced last", seed, i)
		}
		if got := sector(kept, i); got != versions[len(versions)-1] {
			t.Fatalf("seed %d, sector %d: all kept: not the newest", seed, i)
		}
		if got := sector(random, i); !slices.Contains(versions, got) {
			t.Fatalf("seed %d, sector %d: contents that were never written", seed, i)
		}
	}
	if s.Unsynced() != 0 || len(s.dirty) != 0 {
		t.Fatalf("seed %d: %d sectors unsynced after a crash", seed, s.Unsynced())
	}
}

func sector(s *Store, i int) string {
	var buf [Size]byte
	s.ReadAt(buf[:], int64(i)*Size)
	return string(buf[:])
}

func digest(s *Store) [32]byte {
	h := sha256.New()
	s.Digest(h)
	return [32]byte(h.Sum(nil))
}

func TestDigestIgnoresHowTheContentsCameAbout(t *testing.T) {
	var a, b Store
	empty := digest(&a)
	a.WriteAt([]byte("hello"), 5<<20)
	b.WriteAt([]byte("HELLO"), 5<<20)
	b.WriteAt(make([]byte, 9000), 70000)
	if digest(&a) == digest(&b) || digest(&a) == empty {
		t.Error("different contents, same digest")
	}
	b.WriteAt([]byte("hello"), 5<<20)
	b.Sync()
	if digest(&a) != digest(&b) {
		t.Error("same contents, different digests")
	}
	b.Zero(0, 1<<40) // far behind the end
	if digest(&b) != empty {
		t.Error("zeroes are not as nothing")
	}
}

func TestZeroedPagesAreFreed(t *testing.T) {
	var s Store
	s.WriteAt(bytes.Repeat([]byte{1}, 64<<10), 0)
	s.Sync()
	s.Zero(0, 64<<10)
	s.Sync()
	for no := range int64(16) {
		if s.page(no) != nil {
			t.Fatalf("page %d is still there", no)
		}
	}
}

func TestHotSectorKeepsABoundedNumberOfVersions(t *testing.T) {
	var s Store
	for i := range 1000 {
		s.WriteAt([]byte{byte(i)}, 0)
	}
	if n := len(s.page(0).vol.between); n != maxBetween {
		t.Errorf("%d versions kept", n)
	}
}
