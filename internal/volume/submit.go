package volume

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"mars/internal/block"
	"mars/internal/history"
	"mars/internal/replay"
	"mars/internal/translog"
)

// queue orders the requests of all callers. Whoever finds nobody writing becomes the writer and takes along what the others queue
// meanwhile, so that one log write serves many callers and no goroutine switch lies in the way of a single one.
type queue struct {
	mu      sync.Mutex
	reqs    []*block.Request
	spare   []*block.Request
	writing bool
	shut    error // why nobody is let in; nil while this is the primary
	full    bool  // the last append failed for want of space after waiting for it
	idle    *sync.Cond
	entries []translog.Entry // scratch of the writer
	work    kick
}

// maxRounds bounds how long one caller writes for the others.
const maxRounds = 16

// Submit implements block.Submitter.
func (v *Volume) Submit(reqs []*block.Request) {
	if err := v.admit(); err != nil {
		failAll(reqs, err)
		return
	}
	lead, err := v.queue.push(reqs)
	if err != nil {
		failAll(reqs, err)
		return
	}
	if lead {
		v.drain(maxRounds)
	}
}

// push queues the requests. lead: nobody is writing, so the caller must.
func (q *queue) push(reqs []*block.Request) (lead bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.shut != nil {
		return false, q.shut // the role has ended since the request was admitted: the log may have been closed by an end record
	}
	q.reqs = append(q.reqs, reqs...)
	lead = !q.writing
	q.writing = true
	return lead, nil
}

func failAll(reqs []*block.Request, err error) {
	for _, r := range reqs {
		r.Done(err)
	}
}

// drain writes what is queued; after some rounds it leaves the rest to a goroutine of its own, which ends when the queue is empty.
func (v *Volume) drain(rounds int) {
	q := &v.queue
	for round := 0; ; round++ {
		q.mu.Lock()
		batch := q.reqs
		if len(batch) == 0 {
			q.writing = false
			q.idle.Broadcast()
			q.mu.Unlock()
			return
		}
		q.reqs = q.spare[:0]
		q.spare = nil
		q.mu.Unlock()
		if round == rounds {
			go v.drainFrom(batch)
			return
		}
		v.writeBatch(batch)
		q.recycle(batch)
	}
}

func (v *Volume) drainFrom(batch []*block.Request) {
	v.writeBatch(batch)
	v.queue.recycle(batch)
	v.drain(1 << 30)
}

func (q *queue) recycle(batch []*block.Request) {
	clear(batch)
	q.mu.Lock()
	q.spare = batch[:0]
	q.mu.Unlock()
}

var errShut = fmt.Errorf("volume: %w", ErrNotPrimary)

// letIn opens the queue.
func (q *queue) letIn() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.shut = nil
}

// stop fails everything that comes later with why and returns when all that was queued is written.
func (q *queue) stop(why error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.shut = why
	for q.writing {
		q.idle.Wait()
	}
}

func (q *queue) isFull() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.full
}

func (q *queue) setFull(full bool) {
	q.mu.Lock()
	q.full = full
	q.mu.Unlock()
}

// admit slows the caller down while too much of the log is unapplied, more and more as it fills, and refuses when this is not the primary.
func (v *Volume) admit() error {
	limit := v.cfg.WritebackLimit
	v.mu.Lock()
	for {
		if v.closed || !v.writable {
			err := errShut
			if v.closed {
				err = errClosed
			}
			v.mu.Unlock()
			return err
		}
		backlog := v.backlog()
		calm := limit / 4 * 3
		if backlog < calm {
			v.mu.Unlock()
			return nil
		}
		if backlog < limit {
			v.mu.Unlock()
			v.queue.work.signal()
			v.pause(time.Duration(float64(4*time.Millisecond) * float64(backlog-calm) / float64(limit-calm)))
			return nil
		}
		if err := v.applyErr; err != nil {
			v.mu.Unlock()
			return fmt.Errorf("volume cannot write back: %w", err)
		}
		v.queue.work.signal()
		v.progress.Wait()
	}
}

// maxExtents bounds the index, which takes some 60 bytes of memory for each run of blocks that is in the log and not on the disk.
const maxExtents = 1 << 19

// backlog returns how much of WritebackLimit is in use, in bytes. An index of many small runs counts for more than its log. v.mu is held.
func (v *Volume) backlog() int64 {
	return max(int64(v.indexed.LSN-v.st.Applied.End), int64(float64(v.cfg.WritebackLimit)*float64(v.extents())/maxExtents))
}

// Backlog returns how much of the primary's WritebackLimit is in use, in bytes, and how long the runs of blocks are on average that wait to be
// written back.
func (v *Volume) Backlog() (used, run int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.backlog(), int64(v.indexed.LSN-v.st.Applied.End) / int64(max(1, v.extents()))
}

// extents is the size of the index. v.mu is held.
func (v *Volume) extents() int {
	n := v.cur.Len()
	if v.frozen != nil {
		n += v.frozen.Len()
	}
	return n
}

func (v *Volume) pause(d time.Duration) {
	if v.cfg.Pause != nil && d > 50*time.Microsecond {
		v.cfg.Pause(d)
	}
}

// writeBatch puts the requests into the log and the index, in order, and completes those that need no durability.
func (v *Volume) writeBatch(batch []*block.Request) {
	entries, bad := v.entries(batch)
	done, err := v.appendWaiting(entries)
	end := v.index(entries[:done])
	v.complete(batch, completion{appended: done, end: end, err: err, bad: bad})
}

// entries translates requests to log records; a long write becomes several. bad holds the errors of requests that cannot be logged.
func (v *Volume) entries(batch []*block.Request) ([]translog.Entry, map[*block.Request]error) {
	out := v.queue.entries[:0]
	var bad map[*block.Request]error
	size, stamp := v.Size(), v.cfg.Stamp()
	for _, r := range batch {
		err := checkRequest(r, size)
		if r.Op == opResize && err == nil {
			r.Off, size = size, r.Len
		}
		if err != nil {
			if bad == nil {
				bad = make(map[*block.Request]error)
			}
			bad[r] = err
			continue
		}
		out = appendEntries(out, r, stamp)
	}
	v.queue.entries = out
	return out, bad
}

func checkRequest(r *block.Request, size int64) error {
	switch r.Op {
	case block.OpFlush:
		return nil
	case opResize: // looked at here, since another one may have come before it
		if r.Len < size {
			return fmt.Errorf("cannot shrink from %d to %d bytes", size, r.Len)
		}
		return nil
	case block.OpWrite:
		if r.Len != int64(len(r.Data)) {
			return fmt.Errorf("write of %d bytes with %d bytes of data: %w", r.Len, len(r.Data), block.ErrRange)
		}
	case block.OpDiscard, block.OpWriteZeroes:
	default:
		return fmt.Errorf("unknown block operation %d", r.Op)
	}
	return block.Check(r.Off, r.Len, size)
}

// appendEntries adds the records of one request.
func appendEntries(out []translog.Entry, r *block.Request, stamp int64) []translog.Entry {
	e := translog.Entry{Off: r.Off, Len: r.Len, Stamp: stamp}
	switch {
	case r.Op == block.OpFlush || r.Len == 0:
		return out
	case r.Op == opResize:
		e.Kind = translog.KindResize
		return append(out, e)
	case r.Op == block.OpDiscard, r.Op == block.OpWriteZeroes && r.Flags&block.NoHole == 0:
		e.Kind = translog.KindDiscard
		return append(out, e)
	case r.Op == block.OpWriteZeroes:
		e.Kind = translog.KindWriteZeroes
		return append(out, e)
	}
	for at := 0; at < len(r.Data); at += translog.MaxPayload {
		p := r.Data[at:min(at+translog.MaxPayload, len(r.Data))]
		out = append(out, translog.Entry{Kind: translog.KindWrite, Off: r.Off + int64(at), Len: int64(len(p)), Stamp: stamp,
			Payload: p, Sum: translog.Checksum(p)})
	}
	return out
}

// records returns how many log records a valid request becomes.
func records(r *block.Request) int {
	switch {
	case r.Op == block.OpFlush || r.Len == 0:
		return 0
	case r.Op == block.OpWrite:
		return (len(r.Data) + translog.MaxPayload - 1) / translog.MaxPayload
	}
	return 1
}

// appendWaiting appends, and when there is no space waits for it, up to StallTimeout, unless it has waited in vain before. So writers become
// slow when the log store is full, then fail cleanly, and go on by themselves when there is space again.
func (v *Volume) appendWaiting(entries []translog.Entry) (int, error) {
	done := 0
	const step = 50 * time.Millisecond
	for waited := time.Duration(0); done < len(entries); waited += step {
		n, err := v.log.Append(entries[done:])
		done += n
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return done, err
		}
		if v.queue.isFull() || waited >= v.cfg.StallTimeout || v.cfg.Pause == nil || !v.isWritable() {
			v.queue.setFull(true)
			return done, fmt.Errorf("log store is full: %w (%w)", block.ErrNoSpace, err)
		}
		v.queue.work.signal()
		v.cfg.Pause(step)
	}
	if done > 0 {
		v.queue.setFull(false)
	}
	return done, nil
}

func (v *Volume) isWritable() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.writable
}

// index makes the records visible to readers, in log order, and returns the LSN behind the last one.
func (v *Volume) index(entries []translog.Entry) history.LSN {
	end := v.log.EndPosition()
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range entries {
		e := &entries[i]
		h := translog.Header{Kind: e.Kind, Off: e.Off, Len: e.Len}
		if x, ok := replay.Extent(&h, e.Data); ok {
			v.cur.Insert(x)
		}
		if e.Kind == translog.KindResize {
			v.size = e.Len
		}
		v.endStamp = e.Stamp
	}
	v.indexed = end
	return end.LSN
}

type completion struct {
	appended int // records
	end      history.LSN
	err      error // of the records that were not appended
	bad      map[*block.Request]error
}

// complete answers the requests of a batch; those that ask for durability wait for it.
func (v *Volume) complete(batch []*block.Request, c completion) {
	left := c.appended
	wait := false
	for _, r := range batch {
		if err := c.bad[r]; err != nil {
			r.Done(err)
			continue
		}
		n := records(r)
		left -= n
		if n > 0 && left < 0 { // a flush is not the worse for the failure of a write beside it
			r.Done(c.err)
			continue
		}
		if r.Op == block.OpFlush || r.Flags&block.FUA != 0 || v.cfg.WriteThrough {
			wait = v.waiters.add(c.end, r.Done) || wait
			continue
		}
		r.Done(nil)
	}
	switch {
	case wait:
		v.waiters.kick.signal()
	case v.waiters.wanted.Load() > 0:
		v.waiters.soon.signal()
	}
}
