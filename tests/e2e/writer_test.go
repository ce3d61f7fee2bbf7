package e2e

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"mars/tests/nbdclient"
	"mars/tests/stamp"
)

// open opens a resource's device. It must be there.
func (x *node) open(res string) *nbdclient.Client {
	x.w.t.Helper()
	c, err := nbdclient.Dial(x.socket(res), res)
	if err != nil {
		x.w.t.Fatalf("%s: %v", x.name, err)
	}
	return c
}

func (x *node) socket(res string) string { return filepath.Join(x.dir, "dev", res+".sock") }

// writeOnce writes a little, durably, as part of the journal.
func (x *node) writeOnce(res string, j *stamp.Journal) {
	x.w.t.Helper()
	c := x.open(res)
	defer c.Close()
	for i := range int64(8) {
		if err := put(c, j, span{i * 97 * stamp.SectorSize, 4096}); err != nil {
			x.w.t.Fatalf("%s: write: %v", x.name, err)
		}
	}
	if err := c.Flush(); err != nil {
		x.w.t.Fatalf("%s: flush: %v", x.name, err)
	}
}

type span struct{ off, n int64 }

func put(c *nbdclient.Client, j *stamp.Journal, at span) error {
	p := make([]byte, at.n)
	seq := j.Issue(at.off, at.n)
	stamp.Fill(p, at.off, seq)
	err := c.Write(at.off, p)
	if err == nil {
		j.Ack(seq)
	}
	return err
}

// load is an application that writes at random places without a pause, until it is stopped or gets an error.
type load struct {
	t       *testing.T
	j       *stamp.Journal
	c       *nbdclient.Client
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	acked   atomic.Int64
	flushed atomic.Uint64 // stamp.Time up to which everything is known to be durable
	failed  atomic.Pointer[error]
}

const (
	writersPerLoad = 3
	pace           = 500 * time.Microsecond // least time between two writes of one writer: two processors are shared by all tests
	flushEvery     = 32                     // writes of one writer
	maxWrite       = 32                     // sectors
)

// starts starts an application on the node's device.
func (x *node) starts(res string, j *stamp.Journal) *load {
	x.w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: x.w.t, j: j, c: x.open(res), cancel: cancel}
	for range writersPerLoad {
		l.wg.Go(func() { l.write(ctx) }) // ends with ctx or the first error; joined by end
	}
	x.w.t.Cleanup(func() { l.end() })
	return l
}

func (l *load) write(ctx context.Context) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for i := 1; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := l.step(i)
		if err != nil {
			l.failed.CompareAndSwap(nil, &err)
			return
		}
		l.acked.Add(1)
	}
}

// step is one request: mostly a write, now and then zeroes, a discard or a flush.
func (l *load) step(i int) error {
	at := span{rand.Int64N(l.c.Size()/stamp.SectorSize-maxWrite) * stamp.SectorSize, (1 + rand.Int64N(maxWrite)) * stamp.SectorSize}
	if rand.IntN(4) == 0 {
		at.off %= mib // a hot spot: most overwriting is there
	}
	switch {
	case i%flushEvery == 0:
		before := l.j.Now()
		if err := l.c.Flush(); err != nil {
			return err
		}
		l.flushedUpTo(before)
		return nil
	case i%50 == 0:
		return zero(l.j, at, l.c.WriteZeroes)
	case i%51 == 0:
		return zero(l.j, at, l.c.Trim)
	}
	return put(l.c, l.j, at)
}

func zero(j *stamp.Journal, at span, f func(off, n int64) error) error {
	seq := j.IssueZeroes(at.off, at.n)
	err := f(at.off, at.n)
	if err == nil {
		j.Ack(seq)
	}
	return err
}

func (l *load) flushedUpTo(at stamp.Time) {
	for {
		old := l.flushed.Load()
		if uint64(at) <= old || l.flushed.CompareAndSwap(old, uint64(at)) {
			return
		}
	}
}

// err returns what ended the load, nil while it runs.
func (l *load) err() error {
	if p := l.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// runs waits until n more requests are acknowledged. An error of the device fails the test.
func (l *load) runs(n int64) {
	l.t.Helper()
	want := l.acked.Load() + n
	l.until("the application goes on", func() bool { return l.acked.Load() >= want || l.err() != nil })
	if err := l.err(); err != nil {
		l.t.Fatalf("the application gets an error: %v", err)
	}
}

func (l *load) until(what string, cond func() bool) {
	l.t.Helper()
	until(l.t, what, cond)
}

// until waits for something that is not in a status.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	end := time.NewTimer(patience)
	defer end.Stop()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for !cond() {
		select {
		case <-end.C:
			t.Fatalf("waited %v in vain until %s", patience, what)
		case <-poll.C:
		}
	}
}

// stops ends the application in an orderly way: everything it has written is durable then.
func (l *load) stops() stamp.Time {
	l.t.Helper()
	l.cancel()
	l.wg.Wait()
	if err := l.err(); err != nil {
		l.t.Fatalf("the application got an error: %v", err)
	}
	if err := l.c.Flush(); err != nil {
		l.t.Fatalf("flush: %v", err)
	}
	if err := l.c.Close(); err != nil {
		l.t.Errorf("close the device: %v", err)
	}
	return l.j.Now()
}

// dies waits for the error that the application gets when its device is gone.
func (l *load) dies() {
	l.t.Helper()
	l.until("the application notices that the device is gone", func() bool { return l.err() != nil })
	var errno syscall.Errno
	if err := l.err(); !errors.Is(err, nbdclient.ErrClosed) && !errors.As(err, &errno) {
		l.t.Errorf("the application gets the error %v", err)
	}
	l.end()
	l.j.Crashed()
}

// end stops the application without looking at what it thinks of that.
func (l *load) end() {
	l.cancel()
	l.c.Abort() // a request may wait for ever
	l.wg.Wait()
}
