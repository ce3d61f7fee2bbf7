package translog

import (
	"errors"
	"syscall"
	"testing"

	"mars/internal/history"
	"mars/internal/vfs/crashfs"
)

// found is the verdict of Open.
type found int

const (
	whole    found = iota // everything is there
	torn                  // cut off behind the second of four records
	isDefect              // reported at the end of the second record
	broken                // an error, nothing is changed
)

// scene is a log of four records, the last two in a segment of their own, that something happens to.
type scene struct {
	t     *testing.T
	fs    *crashfs.FS
	start Start
	segs  []string
	rec   [5]history.LSN // where the records begin, and the end
}

func (s *scene) file(lsn history.LSN) (name string, off int64) {
	i := 0
	if lsn >= s.rec[2] {
		i = 1
	}
	return "log/" + s.segs[i], segmentHeaderSize + int64(lsn-[]history.LSN{0, s.rec[2]}[i])
}

func (s *scene) corrupt(lsn history.LSN, n int64) {
	name, off := s.file(lsn)
	must(s.t, s.fs.Corrupt(name, off, n))
}

// raw opens a file to change it.
func (s *scene) write(lsn history.LSN, b []byte) {
	name, off := s.file(lsn)
	f, err := s.fs.Open(name)
	must(s.t, err)
	_, err = f.WriteAt(b, off)
	must(s.t, errors.Join(err, f.Sync(), f.Close()))
}

// TestOpenDecides is the table of the doc comment of Open. Unless it says otherwise, the third record is damaged.
func TestOpenDecides(t *testing.T) {
	second := func(s *scene) { s.corrupt(s.rec[2]+HeaderSize, 1) }
	for _, c := range []struct {
		name   string
		synced int // records that were durable when the next ones were written
		happen func(*scene)
		want   found
		file   bool // damage in the second segment's file remains to be seen after Open
	}{
		{"nothing", 0, func(*scene) {}, whole, false},
		{"nothing, all durable", 4, func(s *scene) { s.start.Durable = s.rec[4] }, whole, false},
		{"payload torn", 0, second, torn, false},
		{"header torn", 0, func(s *scene) { s.corrupt(s.rec[2]+20, 1) }, torn, false},
		{"never written", 0, func(s *scene) { s.write(s.rec[2], make([]byte, s.rec[3]-s.rec[2])) }, torn, false},
		{"torn, the later record claims only what is there", 2, second, torn, false},
		{"a later record claims that it was durable", 3, second, isDefect, false},
		{"the same in a timeline of another node", 3, func(s *scene) { second(s); s.start.Own = 99 }, torn, false},
		{"the state knows that it was durable", 0, func(s *scene) { second(s); s.start.Durable = s.rec[3] }, isDefect, false},
		{"the state knows no more than what is there", 0, func(s *scene) { second(s); s.start.Durable = s.rec[2] }, torn, false},
		{"segment missing, known as durable", 0, func(s *scene) {
			must(t, s.fs.Remove("log/"+s.segs[1]))
			s.start.Durable = s.rec[4]
		}, isDefect, false},
		{"segment missing", 0, func(s *scene) { must(t, s.fs.Remove("log/"+s.segs[1])) }, torn, false},
		{"bad sector", 0, func(s *scene) {
			name, off := s.file(s.rec[2])
			must(t, s.fs.FailReads(name, off, 512, syscall.EIO))
		}, isDefect, false},
		{"segment header damaged, the records are there", 0, func(s *scene) {
			must(t, s.fs.Corrupt("log/"+s.segs[1], 20, 1))
		}, whole, true},
		{"segment header and first record damaged", 0, func(s *scene) {
			must(t, s.fs.Corrupt("log/"+s.segs[1], 20, 1))
			second(s)
		}, torn, false},
		{"segment header and first record damaged, a later record claims", 3, func(s *scene) {
			must(t, s.fs.Corrupt("log/"+s.segs[1], 20, 1))
			second(s)
		}, isDefect, false},
		{"segment created but never written", 0, func(s *scene) {
			f, err := s.fs.Create("log/" + s.segs[1])
			must(t, errors.Join(err, f.Close()))
		}, torn, false},
		{"a newer version", 0, func(s *scene) {
			name, off := s.file(s.rec[2])
			f, err := s.fs.Open(name)
			must(t, err)
			var b [HeaderSize]byte
			_, err = f.ReadAt(b[:], off)
			must(t, err)
			b[4]++
			sumHeader(b[:])
			s.write(s.rec[2], b[:])
		}, broken, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene(t, c.synced)
			c.happen(s)
			s.judge(c.want)
		})
	}
}

// newScene writes the log. Every record claims as durable what was when it was written.
func newScene(t *testing.T, synced int) *scene {
	s := &scene{t: t, fs: crashfs.New(), start: Start{Own: ownTimeline}}
	l := openNew(t, testConfig(s.fs))
	for i := range 4 {
		if i == 2 {
			l.Rotate()
		}
		_, end := appendOne(t, l, 600, byte(i+1))
		s.rec[i+1] = end
		if i < synced {
			must(t, l.SyncTo(end))
		}
	}
	s.rec[0] = s.rec[1]
	for _, x := range l.segs {
		s.segs = append(s.segs, x.name)
	}
	s.fs = s.fs.Kill()
	return s
}

func (s *scene) judge(want found) {
	s.t.Helper()
	before := s.fs.Digest()
	l, rep, err := Open(testConfig(s.fs), s.start, func(*Record) {})
	switch want {
	case broken:
		if err == nil || errors.Is(err, ErrDefective) || s.fs.Digest() != before {
			s.t.Fatalf("error %v, files changed: %v", err, s.fs.Digest() != before)
		}
		return
	case isDefect:
		d := new(DefectError)
		if !errors.As(err, &d) || d.At != s.rec[2] || l.End() != s.rec[2] || s.fs.Digest() != before {
			s.t.Fatalf("error %v, want a defect at %d and nothing changed", err, s.rec[2])
		}
	case torn, whole:
		end := s.rec[4]
		if want == torn {
			end = s.rec[2]
		}
		if err != nil || l.End() != end {
			s.t.Fatalf("end %d, error %v, report %+v; want the end at %d", l.End(), err, rep, end)
		}
	}
	if l.Durable() != l.End() {
		s.t.Errorf("durable up to %d of %d", l.Durable(), l.End())
	}
	end := l.End()
	// What Open calls durable survives a power cut, and the verdict stays the same.
	s.fs = s.fs.CrashLosingAll()
	l, rep, err = Open(testConfig(s.fs), s.start, func(*Record) {})
	if (want == isDefect) != errors.Is(err, ErrDefective) || (err != nil && want != isDefect) || l.End() != end || rep.Torn {
		s.t.Fatalf("opened again after a power cut: end %d, report %+v, error %v; want the end at %d", l.End(), rep, err, end)
	}
}

// TestStaleRecordsStayDead: what a failed batch or a history that was cut off has left is never taken for a part of the log.
func TestStaleRecordsStayDead(t *testing.T) {
	for _, c := range []struct {
		name  string
		leave func(t *testing.T, fs *crashfs.FS, l *Log) // stale records of 600 bytes behind the end
	}{
		{"failed batch", func(t *testing.T, fs *crashfs.FS, l *Log) {
			at := l.EndPosition()
			for i := range 3 {
				appendOne(t, l, 600, byte(0x80+i))
			}
			// The same effect as a vectored write that fails at its very end.
			l.path, _ = l.path.TruncateTo(at)
		}},
		{"another history, the cut lost by a power cut", func(t *testing.T, fs *crashfs.FS, l *Log) {
			at := l.EndPosition()
			for i := range 3 {
				appendOne(t, l, 600, byte(0x80+i))
			}
			l.path, _ = l.path.TruncateTo(at)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := crashfs.New()
			l := openNew(t, testConfig(fs))
			appendOne(t, l, 600, 1)
			c.leave(t, fs, l)
			appendOne(t, l, 600, 2) // ends exactly where a stale record begins
			end := l.End()
			fs = fs.Kill()
			l, rep, err := Open(testConfig(fs), Start{Own: ownTimeline}, func(r *Record) {
				if len(r.Payload) == 600 && r.Payload[0] >= 0x80 {
					t.Errorf("stale record at %d came back", r.LSN)
				}
			})
			if err != nil || l.End() != end || !rep.Torn {
				t.Fatalf("end %d, want %d; report %+v, error %v", l.End(), end, rep, err)
			}
		})
	}
}

// TestGapAtTheCheckpoint: a power cut has shortened the file exactly to the checkpoint but kept the next segment. That one is not a part of the
// log: what comes next must not be written into it.
func TestGapAtTheCheckpoint(t *testing.T) {
	fs := crashfs.New()
	l := openNew(t, testConfig(fs))
	_, _ = appendOne(t, l, 600, 1)
	start := Start{Path: l.Path()}
	at := l.End()
	appendOne(t, l, 600, 2)
	l.Rotate()
	appendOne(t, l, 600, 3)
	first := l.segs[0]
	must(t, first.file.Truncate(first.offset(at)))
	fs = fs.Kill()
	for range 2 {
		l, _, err := Open(testConfig(fs), start, func(*Record) {})
		if err != nil || l.End() < at || len(l.segs) != 1 {
			t.Fatalf("end %d, want %d; %d segments, error %v", l.End(), at, len(l.segs), err)
		}
		appendOne(t, l, 600, 4)
		if list, err := collect(l, history.Position{}); err != nil || list[2].payload[0] != 4 {
			t.Fatalf("%d records, error %v", len(list), err)
		}
		fs = fs.Kill()
	}
}
