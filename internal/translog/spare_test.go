package translog

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"mars/internal/history"
	"mars/internal/vfs/crashfs"
)

// fill appends segments of records and makes them durable.
func fill(t *testing.T, l *Log, segments int, b byte) {
	t.Helper()
	for range segments {
		l.Rotate()
		for range 3 {
			appendOne(t, l, 1000, b)
		}
	}
	must(t, l.SyncTo(l.End()))
}

func spareFiles(t *testing.T, fs *crashfs.FS) []string {
	t.Helper()
	names, err := fs.ReadDir("log")
	must(t, err)
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, sparePrefix) })
}

func TestDeletedSegmentsAreWrittenAgain(t *testing.T) {
	fs := crashfs.New()
	l := openNew(t, testConfig(fs))
	l.KeepSpares(2)
	fill(t, l, 5, 1)
	freed, err := l.DeleteBelow(l.End())
	must(t, err)
	if n := len(spareFiles(t, fs)); n != 2 || l.SpaceUsed() != 3*l.cfg.SegmentSize || freed == 0 {
		t.Fatalf("%d spares, %d bytes used, %d freed", n, l.SpaceUsed(), freed)
	}
	start := l.EndPosition()
	refused := false
	l.cfg.Reserve = func(int64) error { refused = true; return nil }
	fill(t, l, 2, 2)
	if refused || len(spareFiles(t, fs)) != 0 {
		t.Error("fresh space was asked for although there were spares")
	}
	got, err := collect(l, start)
	must(t, err)
	if len(got) != 6 || got[5].payload != string(pattern(1000, 2)) {
		t.Errorf("%d records in used space", len(got))
	}
	fill(t, l, 1, 3)
	if !refused {
		t.Error("no space was asked for without a spare")
	}
}

// After a restart too nothing of the former life of a file is seen, and spares left behind are gone.
func TestFormerContentIsNoLog(t *testing.T) {
	fs := crashfs.New()
	l := openNew(t, testConfig(fs))
	l.KeepSpares(3)
	fill(t, l, 5, 1)
	_, err := l.DeleteBelow(l.End())
	must(t, err)
	start := l.Path()
	l.Rotate()
	appendOne(t, l, 100, 2) // most of the file is older
	must(t, l.SyncTo(l.End()))
	end := l.EndPosition()
	l, rep, err := Open(testConfig(fs.CrashLosingAll()), Start{Path: start, Own: ownTimeline}, func(*Record) {})
	must(t, err)
	if rep.Records != 1 || l.EndPosition() != end {
		t.Errorf("%d records up to %v, want 1 up to %v", rep.Records, l.EndPosition(), end)
	}
	if s := spareFiles(t, l.cfg.FS.(*crashfs.FS)); len(s) != 0 {
		t.Errorf("spares are left: %v", s)
	}
}

// The new name of a file may reach the disk long before its new header does.
func TestHeaderOfEarlierUse(t *testing.T) {
	fs := crashfs.New()
	l := openNew(t, testConfig(fs))
	l.KeepSpares(3)
	fill(t, l, 4, 1)
	_, err := l.DeleteBelow(l.End())
	must(t, err)
	start, first, s := l.Path(), l.First(), spareFiles(t, fs)[0]
	must(t, fs.Rename("log/"+s, "log/"+segmentName(start.End, start.Tip().ID)))
	l, rep, err := Open(testConfig(fs), Start{Path: start, Durable: start.End, Own: ownTimeline}, func(*Record) {})
	must(t, err)
	if rep.Records != 0 || l.End() != start.End || l.First() != first {
		t.Errorf("%d records up to %v, the log begins at %v", rep.Records, l.End(), l.First())
	}
	_, err = l.StartTimeline(history.Timeline{ID: 9, Origin: "a"})
	must(t, err)
}

func TestSpareIsNotWrittenWhileItIsRead(t *testing.T) {
	l := openNew(t, testConfig(crashfs.New()))
	l.KeepSpares(1)
	fill(t, l, 1, 1)
	s, _, err := l.acquire(l.First())
	must(t, err)
	before, after := make([]byte, 8<<10), make([]byte, 8<<10)
	n, _ := s.file.ReadAt(before, 0)
	_, err = l.DeleteBelow(l.End())
	must(t, err)
	fill(t, l, 1, 2)
	m, _ := s.file.ReadAt(after, 0)
	if n != m || !bytes.Equal(before, after) {
		t.Error("a segment was written again while somebody read it")
	}
	l.release(s)
	_, err = l.DeleteBelow(0)
	must(t, err)
	if len(l.spares) != 1 {
		t.Errorf("spares: %v", l.spares)
	}
}

func TestSparesAreGivenBack(t *testing.T) {
	fs := crashfs.New()
	l := openNew(t, testConfig(fs))
	l.KeepSpares(9)
	must(t, grow(l, rand.New(rand.NewPCG(1, 1)), 20))
	must(t, l.SyncTo(l.End()))
	_, err := l.DeleteBelow(l.End())
	must(t, err)
	n := len(spareFiles(t, fs))
	l.KeepSpares(1)
	freed, err := l.DeleteBelow(0)
	must(t, err)
	if left := len(spareFiles(t, fs)); n < 3 || left != 1 || freed != int64(n-1)*l.cfg.SegmentSize {
		t.Errorf("of %d spares %d are left, %d bytes freed", n, left, freed)
	}
}
