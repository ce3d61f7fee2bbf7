package translog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"mars/internal/history"
	"mars/internal/vfs/crashfs"
)

var errInjected = fmt.Errorf("injected: %w", syscall.EROFS)

// events of one run of a log that a crash or a failure ends at any point.
type events struct {
	all     []seen // every record that was ever written, in order
	path    history.Path
	durable history.LSN // acknowledged as durable
}

// work uses a log until something fails.
func work(l *Log, rng *rand.Rand, ev *events) error {
	for range 12 {
		start := l.EndPosition()
		err := grow(l, rng, 2)
		more, scanErr := collect(l, start)
		if errors.Is(scanErr, errInjected) {
			more, scanErr = collect(l, start)
		}
		if scanErr == nil {
			ev.all = append(ev.all, more...)
			ev.path = l.Path()
		}
		ev.durable = max(ev.durable, l.Durable())
		if err != nil {
			return err
		}
		l.KeepSpares(rng.IntN(3))
		if _, err := l.DeleteBelow(l.Durable() - 6000); err != nil {
			return err
		}
	}
	return nil
}

// TestCrashOfTheLog stops at every operation, cuts the power, and looks: what was durable is there, what is there is a prefix.
func TestCrashOfTheLog(t *testing.T) {
	for _, seed := range seedsOf(t, 2) {
		for k := 0; ; k++ {
			fs, ev := crashfs.New(), new(events)
			fs.StopAt(k)
			err := func() error {
				l, _, err := Open(testConfig(fs), Start{}, func(*Record) {})
				if err != nil {
					return err
				}
				if _, err := l.StartTimeline(history.Timeline{ID: ownTimeline, Origin: "a"}); err != nil {
					return err
				}
				return work(l, rand.New(rand.NewPCG(seed, 3)), ev)
			}()
			if err == nil {
				break
			}
			for i := range 4 {
				rng := rand.New(rand.NewPCG(seed<<20|uint64(k), uint64(i)))
				if err := afterCrash(fs.Clone().Crash(rng), ev); err != nil {
					t.Fatalf("stopped at operation %d, outcome %d: %v\n%s", k, i, err, rerun(t, seed))
				}
			}
		}
	}
}

// afterCrash opens the log at the oldest record that is left and compares.
func afterCrash(fs *crashfs.FS, ev *events) error {
	names, err := fs.ReadDir("log")
	names = slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, sparePrefix) })
	if err != nil || len(names) == 0 {
		if ev.durable > 0 {
			return fmt.Errorf("nothing is left (%w), but LSN %d was durable", err, ev.durable)
		}
		return nil
	}
	first, _ := parseSegmentName(names[0])
	start := Start{Own: ownTimeline, Durable: ev.durable}
	var want []seen
	for i, r := range ev.all {
		if r.pos.LSN == first && r.pos != (history.Position{}) {
			start.Path, err = ev.path.TruncateTo(r.pos)
			want = ev.all[i:]
		}
	}
	if err != nil {
		return err
	}
	var got []seen
	l, _, err := Open(testConfig(fs), start, func(r *Record) { got = append(got, seen{h: r.Header, payload: string(r.Payload)}) })
	if err != nil {
		return err
	}
	for i := range min(len(want), len(got)) {
		if got[i].h != want[i].h || got[i].payload != want[i].payload {
			return fmt.Errorf("record %d: %+v, want %+v", i, got[i].h, want[i].h)
		}
	}
	if l.Durable() < ev.durable {
		return fmt.Errorf("durable up to %d, but %d was promised", l.Durable(), ev.durable)
	}
	_, err = l.StartTimeline(history.Timeline{ID: 1 << 40, Origin: "a"})
	return err
}

// TestFailAnywhere: one operation fails, every one in turn. The error surfaces, and the log that is there afterwards, without or with a new
// start, has what was durable.
func TestFailAnywhere(t *testing.T) {
	for _, seed := range seedsOf(t, 2) {
		for k := 0; ; k++ {
			fs, ev := crashfs.New(), new(events)
			l := openNew(t, testConfig(fs))
			ev.all, _ = collect(l, history.Position{})
			fs.FailAt(k, errInjected)
			err := work(l, rand.New(rand.NewPCG(seed, 4)), ev)
			fs.ClearFaults()
			if fs.Fired() == 0 {
				break
			}
			if err != nil && !errors.Is(err, errInjected) {
				t.Fatalf("operation %d: %v\n%s", k, err, rerun(t, seed))
			}
			// It goes on, or says that it has failed.
			if _, err := l.StartTimeline(history.Timeline{ID: 1 << 41, Origin: "a"}); err != nil && !errors.Is(err, ErrFailed) {
				t.Fatalf("operation %d, later: %v\n%s", k, err, rerun(t, seed))
			}
			if err := afterCrash(fs.CrashLosingAll(), ev); err != nil {
				t.Fatalf("operation %d: %v\n%s", k, err, rerun(t, seed))
			}
		}
	}
}

// TestFailedSyncIsFinal: the kernel drops what it could not write, so nothing may count as durable after that, and nothing is retried.
func TestFailedSyncIsFinal(t *testing.T) {
	fs := crashfs.New()
	l := openNew(t, testConfig(fs))
	durable := l.Durable()
	_, end := appendOne(t, l, 100, 1)
	changed := l.Changed()
	fs.Inject(crashfs.Fault{Match: func(o crashfs.Op) bool { return o.Kind == crashfs.OpSyncData }, Err: syscall.EIO, Drop: true})
	for range 2 {
		if err := l.SyncTo(end); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
	}
	<-changed
	if _, err := l.Append([]Entry{write(0, pattern(9, 1))}); !errors.Is(err, ErrFailed) {
		t.Errorf("append: %v", err)
	}
	if l.Durable() != durable {
		t.Errorf("durable %d, was %d", l.Durable(), durable)
	}
}

// TestSyncBeyondTheEnd fails instead of waiting for something that nobody is going to write.
func TestSyncBeyondTheEnd(t *testing.T) {
	l := openNew(t, testConfig(crashfs.New()))
	if err := l.SyncTo(l.End() + 1); err == nil {
		t.Error("synced what is not there")
	}
}

// TestCutNeverLeavesMore: a cut that a crash interrupts anywhere leaves the old log or a shorter one, and a second cut completes it.
func TestCutNeverLeavesMore(t *testing.T) {
	for k := 0; ; k++ {
		fs := crashfs.New()
		l := openNew(t, testConfig(fs))
		appendOne(t, l, 100, 1)
		at := l.EndPosition()
		path := l.Path()
		for i := range 3 {
			appendOne(t, l, 100, byte(2+i))
			l.Rotate()
		}
		must(t, l.SyncTo(l.End()))
		end := l.End()
		fs.StopAt(k)
		err := l.TruncateTo(at)
		for i := range 8 {
			after := fs.Clone().Crash(rand.New(rand.NewPCG(uint64(k), uint64(i))))
			l, _, err := Open(testConfig(after), Start{}, func(*Record) {})
			if err != nil || l.End() < at.LSN || l.End() > end {
				t.Fatalf("stopped at operation %d: end %d, error %v", k, l.End(), err)
			}
			must(t, l.TruncateTo(at))
			after = after.CrashLosingAll()
			l, _, err = Open(testConfig(after), Start{Durable: at.LSN}, func(*Record) {})
			if p := l.Path(); err != nil || p.Position() != at || p.LastData != path.LastData {
				t.Fatalf("stopped at operation %d: %v, error %v", k, p.Position(), err)
			}
		}
		if err == nil {
			break
		}
	}
}
