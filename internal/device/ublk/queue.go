package ublk

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"mars/internal/block"
	"mars/internal/device/buffer"

	"golang.org/x/sys/unix"
)

const (
	// depth is how many requests of a device are under way at a time.
	depth = 128
	// maxRequest is the largest read or write in bytes. With depth it bounds the memory of a device to 64 MiB of buffers.
	maxRequest = 512 << 10
	// batchBytes bounds the data that are handed to the Device in one go.
	batchBytes = 1 << 20
	// logEvery keeps a broken disk from flooding the log.
	logEvery = time.Second
)

// kernel is the driver's side of a queue: a command per tag, which comes back with a request. Only the queue's own goroutine may call it,
// except for wake and store.
type kernel interface {
	fetch(tag int)                 // offer the tag for a first request
	commit(tag int, result int32)  // answer the tag's request, and offer the tag for the next one
	listen()                       // ask for an event at the next wake
	enter(wait bool) error         // hand over what was asked for; wait: until there is an event, or nearly
	next() (event, bool)           // the oldest event; false when there is none now
	desc(tag int) desc             // of the request that came with the tag
	load(tag int, p []byte) error  // copy the data of a write to p
	store(tag int, p []byte) error // copy p to the data of a read
	wake()
}

// event is a command that came back.
type event struct {
	tag    int // wakeUp: not a command, somebody has called wake
	result int32
}

const wakeUp = -1

// request is one request from its event to its commit. There is one for each tag, for the life of the queue.
type request struct {
	block.Request // what the Device is asked to do; of a read only place and length
	q             *queue
	tag           int
	buf           *buffer.Buffer
	busy          bool // not answered yet; guarded by q.mu
}

// answer is what the kernel is to be told about a request.
type answer struct {
	tag    int
	result int32
}

// queue serves the requests of a device. One goroutine takes all that have come, reads from the log and the page cache, hands the
// modifications to the Device in one batch, and commits, in one system call with the wait for more, what is done by then. So at a depth of
// one everything happens on one thread, and at larger ones the costs per batch are shared. Reads that would wait go to workers; what ends on
// other goroutines wakes this one only if it waits.
type queue struct {
	k         kernel
	dev       block.Device
	submitter block.Submitter    // nil: the Device takes no batches
	nowait    block.NowaitReader // nil: the Device cannot tell
	log       *slog.Logger
	workers   workers

	reqs [depth]request

	// Used by the queue's goroutine only.
	live       int // tags whose command will come back
	batch      []*block.Request
	batchBytes int64
	spare      []answer

	mu struct {
		sync.Mutex
		done     []answer
		sleeping bool // the goroutine waits in the kernel, and does not know of what is done later
		failing  bool // everything is answered with an error
		left     bool // nothing is answered any more
		ended    bool // the goroutine has ended: k is gone
	}
	lastLog atomic.Int64 // unix nanoseconds
}

func newQueue(k kernel, dev block.Device, log *slog.Logger) *queue {
	q := &queue{k: k, dev: dev, log: log, live: depth, batch: make([]*block.Request, 0, depth), spare: make([]answer, 0, depth)}
	q.submitter, _ = dev.(block.Submitter)
	q.nowait, _ = dev.(block.NowaitReader)
	q.mu.done = make([]answer, 0, depth)
	q.workers.jobs = make(chan *request, depth)
	for tag := range q.reqs {
		r := &q.reqs[tag]
		r.q, r.tag = q, tag
		r.Done = r.done
	}
	return q
}

// offer makes the queue ready for requests. The device can be started after that.
func (q *queue) offer() error {
	for tag := range q.reqs {
		q.k.fetch(tag)
	}
	q.k.listen()
	if err := q.k.enter(false); err != nil {
		return err
	}
	for {
		e, ok := q.k.next()
		if !ok {
			return nil
		}
		if e.result < 0 {
			return unix.Errno(-e.result)
		}
		q.handle(e)
	}
}

// serve handles requests until the kernel has taken the device away, or leave is called. Nobody hands anything to workers after that.
func (q *queue) serve() error {
	defer close(q.workers.jobs)
	defer q.end()
	for q.live > 0 {
		q.submit()
		if !q.commit() {
			return nil
		}
		if err := q.k.enter(true); err != nil {
			return err
		}
		for e, ok := q.k.next(); ok; e, ok = q.k.next() {
			q.handle(e)
		}
	}
	return nil
}

// commit passes on what is done; false when the queue was left.
func (q *queue) commit() bool {
	q.mu.Lock()
	done := q.mu.done
	q.mu.done, q.spare = q.spare[:0], done
	q.mu.sleeping = true // whatever is done from now on has to wake us
	left := q.mu.left
	q.mu.Unlock()
	if left {
		return false
	}
	for _, a := range done {
		q.k.commit(a.tag, a.result)
	}
	return true
}

func (q *queue) handle(e event) {
	switch {
	case e.tag == wakeUp:
		q.k.listen()
	case e.result == 0:
		q.begin(e.tag)
	default: // the device is going away
		q.live--
		if e.result != -int32(unix.ENODEV) {
			q.log.Warn("ublk driver has refused a command", "tag", e.tag, "err", unix.Errno(-e.result))
		}
	}
}

// begin starts a request that has come.
func (q *queue) begin(tag int) {
	r, d := &q.reqs[tag], q.k.desc(tag)
	q.mu.Lock()
	q.mu.sleeping = false
	failing := q.mu.failing
	if failing {
		q.mu.done = append(q.mu.done, answer{tag, resultOf(block.ErrClosed)})
	} else {
		r.busy = true
	}
	q.mu.Unlock()
	if failing {
		return // r may still be in the hands of the Device
	}
	r.Off, r.Len, r.Op, r.Flags, r.Data = d.off, d.bytes, 0, 0, nil
	if d.op&flagFUA != 0 {
		r.Flags |= block.FUA
	}
	switch d.op & opMask {
	case opRead:
		r.read()
	case opWrite:
		r.write()
	case opFlush:
		r.Off, r.Len = 0, 0
		r.modify(block.OpFlush)
	case opDiscard:
		r.modify(block.OpDiscard)
	case opWriteZeroes:
		if d.op&flagNoUnmap != 0 {
			r.Flags |= block.NoHole
		}
		r.modify(block.OpWriteZeroes)
	default:
		r.done(errUnknownOp)
	}
}

var (
	errUnknownOp = errors.New("unknown operation")
	errTooLarge  = errors.New("request is larger than the device allows")
)

// room gives r a buffer; false when the request has failed.
func (r *request) room() bool {
	if r.Len < 1 || r.Len > maxRequest {
		r.done(errTooLarge)
		return false
	}
	r.buf = buffer.New(int(r.Len))
	return true
}

func (r *request) read() {
	if !r.room() {
		return
	}
	if n := r.q.nowait; n != nil {
		if ok, err := n.ReadAtNowait(r.buf.Data, r.Off); ok || err != nil {
			r.deliver(err)
			return
		}
	}
	r.q.workers.do(r)
}

// deliver ends a read.
func (r *request) deliver(err error) {
	if err == nil {
		err = r.q.k.store(r.tag, r.buf.Data)
	}
	r.done(err)
}

func (r *request) write() {
	if !r.room() {
		return
	}
	r.Data = r.buf.Data
	if err := r.q.k.load(r.tag, r.Data); err != nil {
		r.done(err)
		return
	}
	r.modify(block.OpWrite)
}

// modify adds r to the batch.
func (r *request) modify(op block.Op) {
	q := r.q
	r.Op = op
	if q.submitter == nil {
		q.workers.do(r)
		return
	}
	q.batch = append(q.batch, &r.Request)
	q.batchBytes += int64(len(r.Data))
	if q.batchBytes >= batchBytes {
		q.submit()
	}
}

// submit hands the batch to the Device.
func (q *queue) submit() {
	if len(q.batch) == 0 {
		return
	}
	q.submitter.Submit(q.batch)
	q.batch, q.batchBytes = q.batch[:0], 0
}

// run carries out what may wait.
func (r *request) run() {
	dev := r.q.dev
	switch r.Op {
	case 0:
		r.deliver(dev.ReadAt(r.buf.Data, r.Off))
	case block.OpWrite:
		r.done(dev.WriteAt(r.Data, r.Off, r.Flags))
	case block.OpWriteZeroes:
		r.done(dev.WriteZeroes(r.Off, r.Len, r.Flags))
	case block.OpDiscard:
		r.done(dev.Discard(r.Off, r.Len, r.Flags))
	case block.OpFlush:
		r.done(dev.Flush())
	}
}

// done answers r, from any goroutine. It never blocks.
func (r *request) done(err error) {
	result := int32(0)
	switch {
	case err != nil:
		r.q.note(r, err)
		result = resultOf(err)
	case r.buf != nil:
		result = int32(r.Len)
	}
	if r.buf != nil {
		r.buf.Free()
		r.buf, r.Data = nil, nil
	}
	r.q.answer(r, result)
}

// answer passes the result of r to the queue's goroutine, unless fail has answered already.
func (q *queue) answer(r *request, result int32) {
	q.mu.Lock()
	if r.busy {
		r.busy = false
		q.mu.done = append(q.mu.done, answer{r.tag, result})
	}
	q.rouse()
	q.mu.Unlock()
}

// rouse wakes the goroutine if it waits. The lock is held, so that k is not closed meanwhile; waking does not block.
func (q *queue) rouse() {
	if q.mu.sleeping && !q.mu.ended {
		q.k.wake()
	}
	q.mu.sleeping = false
}

// end notes that k is not to be used any more, except for what workers have under way.
func (q *queue) end() {
	q.mu.Lock()
	q.mu.ended = true
	q.mu.Unlock()
}

// fail answers everything with an error, also what the Device has not done yet.
func (q *queue) fail() {
	q.mu.Lock()
	q.mu.failing = true
	for tag := range q.reqs {
		if r := &q.reqs[tag]; r.busy {
			r.busy = false
			q.mu.done = append(q.mu.done, answer{tag, resultOf(block.ErrClosed)})
		}
	}
	q.rouse()
	q.mu.Unlock()
}

// leave ends serve. What is under way stays unanswered.
func (q *queue) leave() {
	q.mu.Lock()
	q.mu.left = true
	q.rouse()
	q.mu.Unlock()
}

func (q *queue) isLeft() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.mu.left
}

// note logs why a request failed: the errno of the application loses the reason.
func (q *queue) note(r *request, err error) {
	now := time.Now().UnixNano()
	if last := q.lastLog.Load(); now-last >= int64(logEvery) && q.lastLog.CompareAndSwap(last, now) {
		q.log.Error("device failed a request", "op", r.Op, "off", r.Off, "len", r.Len, "err", err)
	}
}

// resultOf says an error in the driver's words: those that the block layer knows.
func resultOf(err error) int32 {
	switch {
	case errors.Is(err, block.ErrNoSpace):
		return -int32(unix.ENOSPC)
	case errors.Is(err, block.ErrClosed):
		return -int32(unix.ENODEV)
	case errors.Is(err, block.ErrNotFast):
		return -int32(unix.EOPNOTSUPP)
	}
	return -int32(unix.EIO)
}

// maxWorkers bounds the reads of a device that wait at a time.
const maxWorkers = 16

// workers carry out requests that wait, so that the queue's goroutine need not. Each is started when all others are at work, and ends when
// jobs is closed.
type workers struct {
	jobs    chan *request // room for all requests of the queue
	pending atomic.Int32  // handed over and not finished
	started int32         // the queue's goroutine's
	wg      sync.WaitGroup
}

func (w *workers) do(r *request) {
	if n := w.pending.Add(1); n > w.started && w.started < maxWorkers {
		w.started++
		w.wg.Go(w.work)
	}
	w.jobs <- r
}

func (w *workers) work() {
	for r := range w.jobs {
		r.run()
		w.pending.Add(-1)
	}
}
