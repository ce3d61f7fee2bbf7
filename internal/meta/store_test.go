package meta

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mars/internal/lamport"
)

var t0 = time.Unix(1_700_000_000, 0)

// clock is a wall clock that only moves when told.
type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.set(t0)
	return c
}

func (c *clock) set(t time.Time) { c.ns.Store(t.UnixNano()) }
func (c *clock) now() time.Time  { return time.Unix(0, c.ns.Load()) }

// fixture is a store that can be closed and opened again; nothing is flushed by time.
type fixture struct {
	t     *testing.T
	path  string
	clock *clock
	opts  Options
	*Store
}

func newFixture(t *testing.T, change ...func(*Options)) *fixture {
	f := &fixture{t: t, path: filepath.Join(t.TempDir(), "meta.db"), clock: newClock()}
	f.opts = Options{Node: "self", Now: f.clock.now, FlushEvery: time.Hour}
	for _, c := range change {
		c(&f.opts)
	}
	f.open()
	t.Cleanup(func() { _ = f.Store.Close() })
	return f
}

func (f *fixture) open() {
	f.t.Helper()
	s, err := Open(f.path, f.opts)
	must(f.t, err)
	f.Store = s
}

// reopen closes and opens.
func (f *fixture) reopen() {
	f.t.Helper()
	must(f.t, f.Close())
	f.open()
}

// crash opens what is on disk now, as if the process had died.
func (f *fixture) crash() {
	f.t.Helper()
	s := f.Store
	must(f.t, s.disk.close()) // nothing more can be written
	s.stop(ErrClosed)
	s.wg.Wait()
	f.open()
}

func (f *fixture) want(key, value string) {
	f.t.Helper()
	v, _, ok := f.Get(key)
	if string(v) != value || ok != (value != "") {
		f.t.Fatalf("%s = %q (%v), want %q", key, v, ok, value)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func foreign(key, value string, at time.Time) Entry {
	return Entry{Key: key, Value: []byte(value), Stamp: lamport.Stamp{Time: at.UnixNano(), Node: "other"}}
}

func TestDurableChangesSurviveACrash(t *testing.T) {
	f := newFixture(t)
	must(t, f.Put("a", []byte("1")))
	must(t, f.Put("b", []byte("2")))
	must(t, f.Delete("a"))
	must(t, f.Batch([]Change{{Key: "c", Value: []byte("3")}, {Key: "d", Value: []byte("4")}, {Key: "b", Delete: true}}))
	f.crash()
	for key, value := range map[string]string{"a": "", "b": "", "c": "3", "d": "4"} {
		f.want(key, value)
	}
	if e, ok := f.Entry("a"); !ok || !e.Deleted {
		t.Fatal("the tombstone is lost")
	}
}

func TestVolatileChangesReachTheDisk(t *testing.T) {
	for name, save := range map[string]func(*fixture){
		"by Flush":            func(f *fixture) { must(t, f.Flush()); f.crash() },
		"by Close":            func(f *fixture) { f.reopen() },
		"by a durable change": func(f *fixture) { must(t, f.Put("other", nil)); f.crash() },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			must(t, f.PutVolatile("v", []byte("1")))
			if _, refused := f.Merge([]Entry{foreign("m", "2", t0)}); refused != nil {
				t.Fatal(refused)
			}
			f.want("v", "1")
			save(f)
			f.want("v", "1")
			f.want("m", "2")
		})
	}
}

func TestVolatileChangesReachTheDiskByTime(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.FlushEvery = time.Millisecond })
	must(t, f.PutVolatile("v", []byte("1")))
	for deadline := time.Now().Add(10 * time.Second); ; {
		f.mu.Lock()
		dirty := len(f.mu.dirty)
		f.mu.Unlock()
		if dirty == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not flushed")
		}
	}
	must(t, f.Flush()) // waits for a write that has begun
	f.crash()
	f.want("v", "1")
}

func TestClockNeverGoesBackOverRestarts(t *testing.T) {
	f := newFixture(t)
	must(t, f.Put("a", []byte("1")))
	ahead := foreign("b", "2", t0.Add(time.Hour))
	f.Merge([]Entry{ahead})
	must(t, f.Delete("b"))
	f.crash()
	f.clock.set(t0.Add(-24 * time.Hour))
	must(t, f.Put("b", []byte("3")))
	f.want("b", "3")
	if _, stamp, _ := f.Get("b"); stamp.Compare(ahead.Stamp) <= 0 {
		t.Fatalf("stamp %v is not newer than %v, which was seen before", stamp, ahead.Stamp)
	}
}

func TestPutAfterLosesAgainstConcurrentPut(t *testing.T) {
	f := newFixture(t)
	must(t, f.Put("primary", []byte("a")))
	_, seen, _ := f.Get("primary")
	must(t, f.PutAfter("primary", []byte("(none)"), seen))
	f.want("primary", "(none)")

	f.clock.set(t0.Add(time.Second))
	must(t, f.Put("primary", []byte("b")))
	if err := f.PutAfter("primary", []byte("(none)"), seen); !errors.Is(err, ErrSuperseded) {
		t.Fatalf("error %v, want %v", err, ErrSuperseded)
	}
	f.want("primary", "b")
}

func TestMergeRefusesTheFarFuture(t *testing.T) {
	f := newFixture(t)
	poison := foreign("bad", "x", t0.Add(lamport.MaxAhead+time.Hour))
	forever := poison
	forever.Stamp.Time = math.MaxInt64
	news, refused := f.Merge([]Entry{poison, foreign("good", "y", t0), forever})
	if news != 1 || len(refused) != 2 || !errors.Is(refused[0], lamport.ErrFuture) {
		t.Fatalf("news %d, refused %v", news, refused)
	}
	f.want("bad", "")
	f.want("good", "y")
	must(t, f.Put("mine", []byte("1")))
	if _, stamp, _ := f.Get("mine"); stamp.Time > t0.Add(time.Hour).UnixNano() {
		t.Fatalf("the clock was poisoned: %v", stamp)
	}
	if err := f.Import([]Entry{poison}); !errors.Is(err, lamport.ErrFuture) {
		t.Fatalf("import: %v", err)
	}
}

// A clock was wrong and is put right: what it has stamped becomes a change of the present, and what was taken from others with such a clock gives
// way to any other version of it.
func TestAmend(t *testing.T) {
	f := newFixture(t)
	must(t, f.Put("before", []byte("1")))
	f.clock.set(t0.Add(40 * 24 * time.Hour))
	must(t, f.Put("mine", []byte("2")))
	must(t, f.PutVolatile("volatile", []byte("3")))
	late := foreign("theirs", "4", t0.Add(50*24*time.Hour))
	news, refused := f.Merge([]Entry{late, foreign("old", "5", t0)})
	if news != 2 || refused != nil {
		t.Fatalf("news %d, refused %v", news, refused)
	}
	f.clock.set(t0.Add(time.Minute))
	limit := t0.Add(time.Minute + lamport.MaxAhead).UnixNano()
	if f.Newest() <= limit {
		t.Fatal("nobody would notice")
	}
	n, err := f.Amend()
	must(t, err)
	if n != 3 || f.Newest() > limit {
		t.Fatalf("%d were amended, the newest stamp is %v", n, time.Unix(0, f.Newest()))
	}
	check := func() {
		t.Helper()
		for key, value := range map[string]string{"before": "1", "mine": "2", "volatile": "3", "theirs": "4", "old": "5"} {
			f.want(key, value)
		}
		_, old, _ := f.Get("before")
		_, mine, _ := f.Get("mine")
		_, theirs, _ := f.Get("theirs")
		if mine.Compare(old) <= 0 || lamport.Check(mine, f.clock.now()) != nil || theirs.Compare(old) >= 0 {
			t.Fatalf("stamps %v, %v, %v", old, mine, theirs)
		}
	}
	check()
	if n, err := f.Amend(); n != 0 || err != nil {
		t.Fatalf("again: %d, %v", n, err)
	}
	must(t, f.Put("mine", []byte("6"))) // the clock is usable
	must(t, f.Put("mine", []byte("2")))
	f.crash()
	check()
	if f.Newest() > limit {
		t.Fatal("the old stamps are back after a crash")
	}
	if news, _ := f.Merge([]Entry{foreign("theirs", "7", t0.Add(-time.Hour))}); news != 1 {
		t.Fatal("it does not give way")
	}
}

func TestBoundsHoldForEveryWayIn(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Bounds = Bounds{Entries: 2} })
	must(t, f.Put("a", []byte("1")))
	must(t, f.PutVolatile("b", []byte("1")))
	if err := f.Put("c", nil); !errors.Is(err, ErrFull) {
		t.Errorf("Put: %v", err)
	}
	if err := f.PutVolatile("c", nil); !errors.Is(err, ErrFull) {
		t.Errorf("PutVolatile: %v", err)
	}
	if _, refused := f.Merge([]Entry{foreign("c", "", t0)}); len(refused) != 1 || !errors.Is(refused[0], ErrFull) {
		t.Errorf("Merge: %v", refused)
	}
	if err := f.Put("a\n", nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("bad key: %v", err)
	}
	must(t, f.Put("a", []byte("2")))
	must(t, f.Delete("a"))
}

func TestOldTombstonesAreForgottenAndStayAway(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Final = func(key string) bool { return key == "keep" } })
	for _, key := range []string{"gone", "keep"} {
		must(t, f.Put(key, []byte("1")))
		must(t, f.Delete(key))
	}
	tomb, _ := f.Entry("gone")
	f.clock.set(t0.Add(31 * 24 * time.Hour))
	f.reopen() // purges
	must(t, f.Flush())
	if _, ok := f.Entry("gone"); ok {
		t.Fatal("the tombstone is still there")
	}
	if news, refused := f.Merge([]Entry{tomb}); news != 0 || refused != nil {
		t.Fatal("the tombstone came back from a slower node")
	}
	f.crash()
	if _, ok := f.Entry("gone"); ok {
		t.Fatal("the tombstone came back from the disk")
	}
	if _, ok := f.Entry("keep"); !ok {
		t.Fatal("a tombstone that was to be kept is gone")
	}
}

func TestWatchSignalsOnceForMany(t *testing.T) {
	f := newFixture(t)
	changed, cancel := f.Watch()
	for i := range 10 {
		must(t, f.PutVolatile("k", fmt.Append(nil, i)))
	}
	<-changed
	select {
	case <-changed:
		t.Fatal("a second signal without a change in between")
	default:
	}
	cancel()
	must(t, f.Put("k", nil))
	select {
	case <-changed:
		t.Fatal("a signal after cancel")
	default:
	}
}

func TestReadersSeeOnlyWhatIsOnDisk(t *testing.T) {
	f := newFixture(t)
	must(t, f.disk.close())
	if err := f.Put("a", []byte("1")); err == nil {
		t.Fatal("Put without a disk succeeded")
	}
	f.want("a", "")
	f.wg.Wait()
	for name, err := range map[string]error{
		"Put": f.Put("b", nil), "PutVolatile": f.PutVolatile("b", nil), "Flush": f.Flush(), "Close": f.Close(),
	} {
		if !errors.Is(err, ErrFailed) {
			t.Errorf("%s after a failed write: %v", name, err)
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	f := newFixture(t)
	if s, err := Open(f.path, f.opts); err == nil {
		_ = s.Close()
		t.Fatal("opened twice")
	}
}

func TestClosedStoreRefuses(t *testing.T) {
	f := newFixture(t)
	must(t, f.Close())
	for name, err := range map[string]error{"Put": f.Put("a", nil), "PutVolatile": f.PutVolatile("a", nil), "Flush": f.Flush()} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Everybody writes everything at once: nothing acknowledged is lost, memory and disk agree in the end.
func TestConcurrentWriters(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.FlushEvery = time.Millisecond })
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 20 {
				if err := f.Put(fmt.Sprintf("own/%d/%d", w, i), []byte("x")); err != nil {
					t.Error(err)
				}
				_ = f.PutVolatile("shared", fmt.Append(nil, w, i))
				f.Merge([]Entry{foreign("shared", fmt.Sprint(w, i), t0.Add(time.Duration(i)))})
			}
		})
	}
	wg.Wait()
	if n := len(f.List("own/")); n != 160 {
		t.Fatalf("%d values", n)
	}
	before := f.Digest()
	f.reopen()
	if f.Digest() != before {
		t.Fatal("the disk differs from what was in memory")
	}
}
