package translog

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"mars/internal/history"
	"mars/internal/vfs/crashfs"
)

// TestConcurrent: one writer, and everything that may run beside it. The race detector and the readers' checks are the point.
func TestConcurrent(t *testing.T) {
	l := openNew(t, testConfig(crashfs.New()))
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
