package stamp

import (
	"bytes"
	"strings"
	"testing"
)

// world is a journal and a disk to which the test applies what it likes.
type world struct {
	t    *testing.T
	j    Journal
	disk []byte
}

const diskSize = 16 * SectorSize

func newWorld(t *testing.T) *world { return &world{t: t, disk: make([]byte, diskSize)} }

// write issues and acknowledges a write of one or more sectors and returns what brings it onto the disk.
func (w *world) write(sector, n int64) (apply func()) {
	seq := w.j.Issue(sector*SectorSize, n*SectorSize)
	w.j.Ack(seq)
	return func() { Fill(w.disk[sector*SectorSize:(sector+n)*SectorSize], sector*SectorSize, seq) }
}

func (w *world) check(must Time) error {
	img, err := ReadImage(bytes.NewReader(w.disk), diskSize)
	if err != nil {
		return err
	}
	return w.j.Check(img, must)
}

func (w *world) wantErr(must Time, part string) {
	w.t.Helper()
	if err := w.check(must); err == nil || !strings.Contains(err.Error(), part) {
		w.t.Errorf("check says %v, want something with %q", err, part)
	}
}

func (w *world) wantOK(must Time) {
	w.t.Helper()
	if err := w.check(must); err != nil {
		w.t.Error(err)
	}
}

func TestPrefixesAreAccepted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	applies := []func(){w.write(0, 4), w.write(2, 4), w.write(0, 1), w.write(9, 2)}
	w.wantOK(0)
	for _, apply := range applies {
		apply()
		w.wantOK(0)
	}
	w.wantOK(w.j.Now())
}

func TestMissingWriteIsNoticed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(0, 1)
	w.wantErr(w.j.Now(), "must have write 1")
}

func TestHoleInTheOrderIsNoticed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, later := w.write(0, 1), w.write(5, 1)
	later()
	w.wantErr(0, "must have write 1")
}

func TestOldVersionIsNoticed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old, _, later := w.write(0, 1), w.write(0, 1), w.write(5, 1)
	old()
	later()
	w.wantErr(0, "has write 1 but must have write 2")
}

func TestTornSectorIsNoticed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(0, 1)()
	w.disk[300]++
	w.wantErr(0, "not what any write put there")
}

func TestMisplacedWriteIsNoticed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(0, 1)()
	copy(w.disk[SectorSize:], w.disk[:SectorSize])
	w.wantErr(0, "not what any write put there")
}

func TestConcurrentWritesMayBeInAnyOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.j.Issue(0, SectorSize), w.j.Issue(0, SectorSize)
	w.j.Ack(a)
	w.j.Ack(b)
	Fill(w.disk[:SectorSize], 0, a)
	w.wantOK(w.j.Now())
}

func TestDeadWriteDoesNotComeBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dead := w.j.Issue(0, SectorSize)
	Fill(w.disk[:SectorSize], 0, dead)
	w.wantOK(w.j.Now()) // it may have happened
	w.j.Crashed()
	w.write(0, 1) // replaces it
	w.wantErr(w.j.Now(), "has write 1 but must have write 2")
}

func TestZeroesCount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(0, 2)
	w.j.Ack(w.j.IssueZeroes(0, SectorSize))
	w.wantErr(w.j.Now(), "sector 1") // sector 0 may be zero, sector 1 may not
}

func TestThrownAwayStaysAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(0, 1)()
	lost := w.write(1, 1)
	img, err := ReadImage(bytes.NewReader(w.disk), diskSize)
	if err != nil {
		t.Fatal(err)
	}
	w.j.Adopt(img)
	w.wantOK(w.j.Now())
	lost()
	w.wantErr(w.j.Now(), "thrown away")
}

// What was there when the journal was told the truth must not vanish, unless somebody zeroes it.
func TestAdoptedContentMustStay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(3, 2)()
	img, err := ReadImage(bytes.NewReader(w.disk), diskSize)
	if err != nil {
		t.Fatal(err)
	}
	w.j.Adopt(img)
	w.wantOK(w.j.Now())
	clear(w.disk[4*SectorSize : 5*SectorSize])
	w.wantErr(0, "nobody has zeroed it")
	w.j.IssueZeroes(4*SectorSize, SectorSize)
	w.wantOK(w.j.Now())
}

func TestSeenDemandsOneWrite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(0, 1)
	durable := w.write(5, 1)
	img := func() Image {
		img, err := ReadImage(bytes.NewReader(w.disk), diskSize)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	if err := w.j.Seen(img(), 2); err == nil {
		t.Error("it is not there")
	}
	durable()
	if err := w.j.Seen(img(), 2); err != nil {
		t.Error(err)
	}
}
