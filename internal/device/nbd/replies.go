package nbd

import (
	"sync"
	"time"
)

// maxInFlight is the number of requests of one connection between header and sent reply; at the limit the connection is not read.
const maxInFlight = 1024

// attentionSpan is how long a completion may trust that the reader goroutine comes back from the device and sends its reply. It is
// far more than a batch takes, unless Submit blocks.
const attentionSpan = time.Millisecond

// replies is a connection's queue of outgoing replies. Whoever flushes first sends for all, until the queue is empty:
//
//   - the reader goroutine, after it has handed a batch to the device: so a request that completes at once costs no switch of goroutines;
//   - else the writer goroutine, when a completion finds neither a flusher nor an attending reader.
type replies struct {
	out  *output        // set before the first reply
	fail func(error)    // called with the first error of out, by the flusher
	note func(*request) // called for each request that failed, by the flusher
	kick chan struct{}  // wakes the writer goroutine

	mu struct {
		sync.Mutex
		changed  sync.Cond  // inFlight has fallen or killed was set
		pending  []*request // completed, not yet taken by a flusher
		spare    []*request // the other half of a double buffer; the flusher's
		inFlight int        // begun and not yet retired
		flushing bool
		attended bool          // the reader goroutine is busy and will flush
		since    time.Duration // when it began to be, on clock
		dead     bool          // replies go nowhere: the peer is gone
		killed   bool          // dead, and nobody waits for what is in flight
	}
}

func newReplies(fail func(error), note func(*request)) *replies {
	q := &replies{fail: fail, note: note, kick: make(chan struct{}, 1)}
	q.mu.changed.L = &q.mu
	return q
}

// begin counts one more request in flight and returns their number, or 0 when there are too many.
func (q *replies) begin() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.inFlight >= maxInFlight {
		return 0
	}
	q.mu.inFlight++
	return q.mu.inFlight
}

// await waits until fewer than n requests are in flight; it returns false when the queue was killed meanwhile.
func (q *replies) await(n int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.mu.inFlight >= n && !q.mu.killed {
		q.mu.changed.Wait()
	}
	return !q.mu.killed
}

// busy notes that the reader goroutine attends to the queue until it calls idle.
func (q *replies) busy() {
	now := clock()
	q.mu.Lock()
	q.mu.attended, q.mu.since = true, now
	q.mu.Unlock()
}

// idle ends busy and sends what is pending: the reader goroutine is about to wait.
func (q *replies) idle() {
	q.mu.Lock()
	q.mu.attended = false
	q.mu.Unlock()
	q.flush()
}

// put queues a reply. For the reader goroutine, which flushes later.
func (q *replies) put(r *request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue(r)
}

// complete queues a reply and sees to it that it is sent. It never blocks and may be called from any goroutine.
func (q *replies) complete(r *request) {
	q.mu.Lock()
	q.queue(r)
	unattended := !q.mu.flushing && (!q.mu.attended || clock()-q.mu.since > attentionSpan)
	q.mu.Unlock()
	if unattended {
		select {
		case q.kick <- struct{}{}:
		default: // it is being woken already
		}
	}
}

// queue appends r, or ends its life when there is nobody to reply to. The lock is held; freeing memory takes the budget's lock inside.
func (q *replies) queue(r *request) {
	if !q.mu.dead {
		q.mu.pending = append(q.mu.pending, r)
		return
	}
	r.release()
	q.retire(1)
}

func (q *replies) retire(n int) {
	q.mu.inFlight -= n
	q.mu.changed.Broadcast()
}

// drop ends a request that gets no reply, because its connection broke before all of it was received.
func (q *replies) drop(r *request) {
	r.release()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.retire(1)
}

// flush sends pending replies until there are none, unless another goroutine is at it.
func (q *replies) flush() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.flushing {
		return
	}
	q.mu.flushing = true
	for len(q.mu.pending) > 0 {
		q.sendPending()
	}
	q.mu.flushing = false
}

// sendPending sends one batch. The lock is held, but not while it sends.
func (q *replies) sendPending() {
	batch := q.mu.pending
	q.mu.pending = q.mu.spare[:0]
	lost := q.mu.dead
	q.mu.Unlock()

	var err error
	if !lost {
		err = q.out.send(batch)
	}
	for _, r := range batch {
		if r.err != nil {
			q.note(r)
		}
		r.release()
	}
	if err != nil {
		q.fail(err)
	}

	q.mu.Lock()
	q.mu.spare = batch[:0]
	q.mu.dead = q.mu.dead || err != nil
	q.retire(len(batch))
}

// kill makes the queue throw away all replies, now and later, and wakes whoever waits for it.
func (q *replies) kill() {
	q.mu.Lock()
	q.mu.dead, q.mu.killed = true, true
	q.mu.changed.Broadcast()
	q.mu.Unlock()
	q.flush()
}

// write is the writer goroutine; it ends with done.
func (q *replies) write(done <-chan struct{}) {
	for {
		select {
		case <-q.kick:
			q.flush()
		case <-done:
			return
		}
	}
}
