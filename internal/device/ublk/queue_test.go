package ublk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"mars/internal/block"
	"mars/internal/device/blockdev"

	"golang.org/x/sys/unix"
)

// fakeKernel is the driver with applications above it, in memory. It checks that the queue keeps the driver's rules: a tag has one command at a
// time, every request is answered once.
type fakeKernel struct {
	t testing.TB

	mu      sync.Mutex
	changed sync.Cond
	tags    [depth]fakeTag
	events  []event
	heard   bool // listen was called since the last wake
	rung    bool
	waits   bool
	dead    bool
	answers int
}

type fakeTag struct {
	state  int // of its command
	d      desc
	data   []byte
	result chan int32
}

const (
	tagNew    = iota // never offered
	tagFree          // offered
	tagServed        // the server has the request
	tagGone
)

func newFakeKernel(t testing.TB) *fakeKernel {
	k := &fakeKernel{t: t}
	k.changed.L = &k.mu
	return k
}

func (k *fakeKernel) fetch(tag int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tags[tag].state != tagNew {
		k.t.Errorf("tag %d is fetched in state %d", tag, k.tags[tag].state)
	}
	k.tags[tag].state = tagFree
}

func (k *fakeKernel) commit(tag int, result int32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	x := &k.tags[tag]
	if x.state != tagServed {
		k.t.Errorf("tag %d is committed in state %d", tag, x.state)
		return
	}
	x.state = tagFree
	x.result <- result
	k.answers++
	if k.dead {
		k.abort(tag)
	}
	k.changed.Broadcast()
}

func (k *fakeKernel) listen() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.heard = true
	k.ring()
}

func (k *fakeKernel) wake() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rung = true
	k.ring()
}

// ring delivers a wake. The lock is held.
func (k *fakeKernel) ring() {
	if k.heard && k.rung {
		k.heard, k.rung = false, false
		k.events = append(k.events, event{tag: wakeUp})
		k.changed.Broadcast()
	}
}

func (k *fakeKernel) enter(wait bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.waits = wait
	k.changed.Broadcast()
	for wait && len(k.events) == 0 {
		k.changed.Wait()
	}
	k.waits = false
	return nil
}

func (k *fakeKernel) next() (event, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.events) == 0 {
		return event{}, false
	}
	e := k.events[0]
	k.events = k.events[1:]
	return e, true
}

func (k *fakeKernel) desc(tag int) desc { return k.tags[tag].d }

func (k *fakeKernel) load(tag int, p []byte) error {
	copy(p, k.tags[tag].data)
	return nil
}

func (k *fakeKernel) store(tag int, p []byte) error {
	copy(k.tags[tag].data, p)
	return nil
}

// issue hands a request of an application to the queue; the answer comes through the channel. It waits for a free tag.
func (k *fakeKernel) issue(d desc, data []byte) <-chan int32 {
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		for tag := range k.tags {
			if x := &k.tags[tag]; x.state == tagFree && !k.dead {
				*x = fakeTag{state: tagServed, d: d, data: data, result: make(chan int32, 1)}
				k.events = append(k.events, event{tag: tag})
				k.changed.Broadcast()
				return x.result
			}
		}
		k.changed.Wait()
	}
}

// stop takes the device away: as the driver does, it waits for what the server has.
func (k *fakeKernel) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dead = true
	for tag := range k.tags {
		if k.tags[tag].state == tagFree {
			k.abort(tag)
		}
	}
	k.changed.Broadcast()
}

// abort gives a command back. The lock is held.
func (k *fakeKernel) abort(tag int) {
	k.tags[tag].state = tagGone
	k.events = append(k.events, event{tag: tag, result: -int32(unix.ENODEV)})
}

// asleep waits until the queue waits.
func (k *fakeKernel) asleep() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for !k.waits || len(k.events) > 0 {
		k.changed.Wait()
	}
}

// memDev is a Device in memory whose requests can be held up.
type memDev struct {
	mu     sync.Mutex
	data   []byte
	gate   chan struct{} // reads wait for it; nil: they do not
	err    error
	cached bool // reads need not wait
	kept   []*block.Request
	keep   bool // modifications are answered by release
	log    []string
}

func (d *memDev) Size() int64 { return int64(len(d.data)) }

func (d *memDev) ReadAt(p []byte, off int64) error {
	if d.gate != nil {
		<-d.gate
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	return d.err
}

func (d *memDev) ReadAtNowait(p []byte, off int64) (bool, error) {
	if !d.cached {
		return false, nil
	}
	return true, d.ReadAt(p, off)
}

func (d *memDev) Submit(reqs []*block.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range reqs {
		d.log = append(d.log, fmt.Sprintf("op %d flags %d at %d+%d", r.Op, r.Flags, r.Off, r.Len))
		switch r.Op {
		case block.OpWrite:
			copy(d.data[r.Off:], r.Data)
		case block.OpDiscard, block.OpWriteZeroes:
			clear(d.data[r.Off : r.Off+r.Len])
		}
		if d.keep {
			d.kept = append(d.kept, r)
			continue
		}
		r.Done(d.err)
	}
}

// release answers what was kept, from this goroutine.
func (d *memDev) release() {
	d.mu.Lock()
	kept := d.kept
	d.kept = nil
	d.mu.Unlock()
	for _, r := range kept {
		r.Done(nil)
	}
}

func (d *memDev) keeps() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.kept)
}

var errNotCalled = errors.New("a submitter is not called this way")

func (d *memDev) WriteAt([]byte, int64, block.Flags) error    { return errNotCalled }
func (d *memDev) WriteZeroes(int64, int64, block.Flags) error { return errNotCalled }
func (d *memDev) Discard(int64, int64, block.Flags) error     { return errNotCalled }
func (d *memDev) Flush() error                                { return errNotCalled }

// plainDev hides all but a Device's own methods, and makes them work.
type plainDev struct{ dev *memDev }

func (d plainDev) Size() int64                      { return d.dev.Size() }
func (d plainDev) ReadAt(p []byte, off int64) error { return d.dev.ReadAt(p, off) }
func (d plainDev) call(r block.Request) (err error) {
	r.Done = func(e error) { err = e }
	d.dev.Submit([]*block.Request{&r})
	return err
}
func (d plainDev) WriteAt(p []byte, off int64, f block.Flags) error {
	return d.call(block.Request{Op: block.OpWrite, Off: off, Len: int64(len(p)), Data: p, Flags: f})
}
func (d plainDev) WriteZeroes(off, n int64, f block.Flags) error {
	return d.call(block.Request{Op: block.OpWriteZeroes, Off: off, Len: n, Flags: f})
}
func (d plainDev) Discard(off, n int64, f block.Flags) error {
	return d.call(block.Request{Op: block.OpDiscard, Off: off, Len: n, Flags: f})
}
func (d plainDev) Flush() error { return d.call(block.Request{Op: block.OpFlush}) }

// served is a queue at work.
type served struct {
	*queue
	k     *fakeKernel
	ended chan error
}

func serve(t *testing.T, dev block.Device) *served {
	t.Helper()
	k := newFakeKernel(t)
	s := &served{queue: newQueue(k, dev, slog.New(slog.DiscardHandler)), k: k, ended: make(chan error, 1)}
	if err := s.offer(); err != nil {
		t.Fatal(err)
	}
	go func() { s.ended <- s.serve() }() // ends with stop or leave
	return s
}

// end waits for the queue to end by itself, and for its workers.
func (s *served) end() {
	s.k.t.Helper()
	if err := <-s.ended; err != nil {
		s.k.t.Error(err)
	}
	s.workers.wg.Wait()
}

func must(t *testing.T, got, want int32) {
	t.Helper()
	if got != want {
		t.Errorf("answer %d, want %d", got, want)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := blockdev.Poll(ctx, what, func() (bool, error) { return cond(), nil }); err != nil {
		t.Fatal(err)
	}
}

func TestOperations(t *testing.T) {
	for name, wrap := range map[string]func(*memDev) block.Device{
		"submitter": func(d *memDev) block.Device { return d },
		"plain":     func(d *memDev) block.Device { return plainDev{d} },
	} {
		t.Run(name, func(t *testing.T) {
			dev := &memDev{data: make([]byte, 1<<20)}
			s := serve(t, wrap(dev))
			want := bytes.Repeat([]byte{7}, 4096)
			must(t, <-s.k.issue(desc{opWrite | flagFUA, 8192, 4096}, slices.Clone(want)), 4096)
			got := make([]byte, 4096)
			must(t, <-s.k.issue(desc{opRead, 8192, 4096}, got), 4096)
			if !bytes.Equal(got, want) {
				t.Error("what was read is not what was written")
			}
			must(t, <-s.k.issue(desc{op: opFlush}, nil), 0)
			must(t, <-s.k.issue(desc{opDiscard, 0, 1 << 19}, nil), 0)
			must(t, <-s.k.issue(desc{opWriteZeroes, 512, 1024}, nil), 0)
			must(t, <-s.k.issue(desc{opWriteZeroes | flagNoUnmap | flagFUA, 512, 1024}, nil), 0)
			must(t, <-s.k.issue(desc{9, 0, 512}, nil), -int32(unix.EIO))
			must(t, <-s.k.issue(desc{opRead, 0, maxRequest + 512}, nil), -int32(unix.EIO))
			s.k.stop()
			s.end()
			wantLog := []string{"op 1 flags 1 at 8192+4096", "op 4 flags 0 at 0+0", "op 3 flags 0 at 0+524288", "op 2 flags 0 at 512+1024", "op 2 flags 3 at 512+1024"}
			if !slices.Equal(dev.log, wantLog) {
				t.Errorf("device has seen %q, want %q", dev.log, wantLog)
			}
		})
	}
}

func TestErrorsReachTheKernel(t *testing.T) {
	for err, want := range map[error]unix.Errno{
		fmt.Errorf("full: %w", block.ErrNoSpace): unix.ENOSPC,
		block.ErrClosed:                          unix.ENODEV,
		block.ErrNotFast:                         unix.EOPNOTSUPP,
		block.ErrRange:                           unix.EIO,
		errors.New("head crash"):                 unix.EIO,
	} {
		s := serve(t, &memDev{data: make([]byte, 4096), err: err})
		must(t, <-s.k.issue(desc{opWrite, 0, 512}, make([]byte, 512)), -int32(want))
		must(t, <-s.k.issue(desc{opRead, 0, 512}, make([]byte, 512)), -int32(want))
		s.k.stop()
		s.end()
	}
}

// Requests are answered in the order in which they end: a read that waits for the disk holds up nothing.
func TestOutOfOrder(t *testing.T) {
	dev := &memDev{data: make([]byte, 4096), gate: make(chan struct{})}
	s := serve(t, dev)
	var reads []<-chan int32
	for range maxWorkers + 3 {
		reads = append(reads, s.k.issue(desc{opRead, 0, 512}, make([]byte, 512)))
	}
	must(t, <-s.k.issue(desc{opWrite, 0, 512}, make([]byte, 512)), 512)
	close(dev.gate)
	for _, c := range reads {
		must(t, <-c, 512)
	}
	s.k.stop()
	s.end()
}

// What ends on another goroutine while the queue waits in the kernel wakes it.
func TestWake(t *testing.T) {
	dev := &memDev{data: make([]byte, 4096), keep: true}
	s := serve(t, dev)
	for range 100 {
		flush := s.k.issue(desc{op: opFlush}, nil)
		eventually(t, "the flush to arrive", func() bool { return dev.keeps() == 1 })
		s.k.asleep()
		dev.release()
		must(t, <-flush, 0)
	}
	s.k.stop()
	s.end()
}

// Abort: what the Device does not answer is answered with an error, so is what comes later, and a late answer of the Device meets nothing.
func TestFail(t *testing.T) {
	dev := &memDev{data: make([]byte, 4096), keep: true}
	s := serve(t, dev)
	var held []<-chan int32
	for range depth {
		held = append(held, s.k.issue(desc{opWrite, 0, 512}, make([]byte, 512)))
	}
	eventually(t, "the writes to arrive", func() bool { return dev.keeps() == depth })
	s.fail()
	for _, c := range held {
		must(t, <-c, -int32(unix.ENODEV))
	}
	must(t, <-s.k.issue(desc{opRead, 0, 512}, make([]byte, 512)), -int32(unix.ENODEV))
	s.k.stop()
	s.end()
	before := s.k.answers
	dev.release() // must not touch a kernel that is gone
	if s.k.answers != before {
		t.Error("a request was answered twice")
	}
}

// Leave: what is under way stays unanswered, for the next process to do it again.
func TestLeave(t *testing.T) {
	dev := &memDev{data: make([]byte, 4096), keep: true}
	s := serve(t, dev)
	held := s.k.issue(desc{opWrite, 0, 512}, make([]byte, 512))
	eventually(t, "the write to arrive", func() bool { return dev.keeps() == 1 })
	s.leave()
	s.end()
	dev.release()
	select {
	case r := <-held:
		t.Errorf("a request was answered with %d", r)
	default:
	}
}

// A takeover that the driver refuses must be noticed before the driver is told to go on: it would wait for ever.
func TestRefusedOffer(t *testing.T) {
	k := newFakeKernel(t)
	q := newQueue(k, &memDev{}, slog.New(slog.DiscardHandler))
	k.events = []event{{tag: 3, result: -int32(unix.EBUSY)}}
	if err := q.offer(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("got %v", err)
	}
}

// Many applications on areas of their own, each against a model.
func TestManyAtOnce(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const users, area = 8, 64 << 10
	dev := &memDev{data: make([]byte, users*area)}
	s := serve(t, dev)
	var wg sync.WaitGroup
	for u := range users {
		wg.Go(func() { actAs(t, s.k, int64(u*area), area, rand.New(rand.NewPCG(seed, uint64(u)))) })
	}
	wg.Wait()
	s.k.stop()
	s.end()
}

// actAs is one application.
func actAs(t *testing.T, k *fakeKernel, base, area int64, rng *rand.Rand) {
	model := make([]byte, area)
	for range 500 {
		n := 512 * (1 + rng.Int64N(8))
		off := 512 * rng.Int64N((area-n)/512)
		data := make([]byte, n)
		switch rng.IntN(3) {
		case 0:
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
			copy(model[off:], data)
			must(t, <-k.issue(desc{opWrite, base + off, n}, data), int32(n))
		case 1:
			clear(model[off : off+n])
			must(t, <-k.issue(desc{opDiscard, base + off, n}, nil), 0)
		case 2:
			must(t, <-k.issue(desc{opRead, base + off, n}, data), int32(n))
			if !bytes.Equal(data, model[off:off+n]) {
				t.Errorf("read at %d+%d differs", off, n)
				return
			}
		}
	}
}

// The hot path allocates nothing: not for writes, not for reads that need not wait.
func TestNoAllocations(t *testing.T) {
	dev := &quietDev{memDev{data: make([]byte, 1<<20), cached: true}}
	k := newFakeKernel(t)
	q := newQueue(k, dev, slog.New(slog.DiscardHandler))
	data := make([]byte, 4096)
	for tag := range k.tags {
		k.tags[tag] = fakeTag{state: tagServed, data: data}
	}
	round := func() {
		for tag := range 32 {
			k.tags[tag].d = desc{opWrite, int64(tag) * 4096, 4096}
			if tag%2 == 0 {
				k.tags[tag].d.op = opRead
			}
			q.begin(tag)
		}
		q.submit()
		q.mu.done = q.mu.done[:0] // as commit does
	}
	round()
	if n := testing.AllocsPerRun(100, round); n > 0 && !raceDetector {
		t.Errorf("%v allocations for 32 requests", n)
	}
}

// quietDev does not keep a log.
type quietDev struct{ memDev }

func (d *quietDev) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		r.Done(nil)
	}
}
