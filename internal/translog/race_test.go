package translog

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"mars/internal/history"
	"mars/internal/vfs"
	"mars/internal/vfs/crashfs"
)

// TestConcurrent: one writer, and everything that may run beside it. The race detector and the readers' checks are the point.
func TestConcurrent(t *testing.T) {
	l := openNew(t, testConfig(crashfs.New()))
	l.KeepSpares(2)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(f func() error) {
		wg.Go(func() { // ends when stop is closed
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(); err != nil && !errors.Is(err, ErrGone) {
					t.Error(err)
					return
				}
			}
		})
	}
	loop(func() error { return l.SyncTo(l.End()) })
	loop(func() error { return l.SyncTo(l.End()) })
	loop(func() error { _, err := l.DeleteBelow(l.Durable() - 20000); return err })
	loop(func() error { _, _, _, _ = l.First(), l.SpaceUsed(), l.Path(), l.EndPosition(); return nil })
	buf := make([]byte, MaxChunk)
	loop(func() error {
		from := l.First()
		b, err := l.ReadRaw(buf, from)
		if err == nil {
			_, err = wholeRecords(b, from)
		}
		return err
	})
	pos := history.Position{}
	loop(func() (err error) {
		pos, err = l.Scan(pos, l.End(), func(*Record) bool { return true })
		if errors.Is(err, ErrGone) {
			pos = l.EndPosition()
		}
		return errors.Join(err, l.CheckPosition(pos))
	})
	rng := rand.New(rand.NewPCG(1, 1))
	for range 400 {
		if err := grow(l, rng, 1); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	wg.Wait()
	must(t, l.Close())
}

// TestCutUnderReaders: a cut may come at any moment; readers get what was there or an error, the log goes on.
func TestCutUnderReaders(t *testing.T) {
	l := openNew(t, testConfig(crashfs.New()))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { // ends when stop is closed
			buf := make([]byte, MaxChunk)
			for {
				select {
				case <-stop:
					return
				default:
				}
				l.ReadRaw(buf, l.First())
				l.SyncTo(l.End())
			}
		})
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 60 {
		at := l.EndPosition()
		must(t, grow(l, rng, 4))
		must(t, l.TruncateTo(at))
		if l.EndPosition() != at || l.Durable() > at.LSN {
			t.Fatalf("end %v, durable %d, want %v", l.EndPosition(), l.Durable(), at)
		}
		must(t, grow(l, rng, 2))
	}
	must(t, l.SyncTo(l.End()))
	close(stop)
	wg.Wait()
	if _, err := collect(l, history.Position{}); err != nil {
		t.Error(err)
	}
}

// hookFS calls during in the middle of each SyncData.
type hookFS struct {
	vfs.FS
	during func()
}

type hookFile struct {
	vfs.File
	fs *hookFS
}

func (h *hookFS) Create(name string) (vfs.File, error) {
	f, err := h.FS.Create(name)
	return hookFile{f, h}, err
}

func (h hookFile) SyncData() error {
	if f := h.fs.during; f != nil {
		h.fs.during = nil
		f()
	}
	return h.File.SyncData()
}

// TestWrittenDuringASync: what comes while a sync is under way is not durable with it, although it may be by luck; a second caller waits for
// the next sync; and a cut waits for the end of this one.
func TestWrittenDuringASync(t *testing.T) {
	h := &hookFS{FS: crashfs.New()}
	cfg := testConfig(nil)
	cfg.FS = h
	l := openNew(t, cfg)
	_, end := appendOne(t, l, 600, 1)
	h.during = func() { appendOne(t, l, 600, 2) }
	must(t, l.SyncTo(end))
	if l.Durable() != end {
		t.Errorf("durable up to %d, want %d", l.Durable(), end)
	}
	must(t, l.SyncTo(l.End()))

	at := l.EndPosition()
	_, end = appendOne(t, l, 600, 3)
	cut := make(chan error)
	h.during = func() {
		go func() { cut <- l.TruncateTo(at) }() // ends when the sync does
		select {
		case err := <-cut:
			t.Errorf("cut in the middle of a sync: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	must(t, l.SyncTo(end))
	must(t, <-cut)
	if l.Durable() != at.LSN {
		t.Errorf("durable up to %d, want %d", l.Durable(), at.LSN)
	}
}
