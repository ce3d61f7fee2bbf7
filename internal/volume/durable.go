package volume

import (
	"fmt"
	"sync"
	"sync/atomic"

	"mars/internal/block"
	"mars/internal/history"
)

// waiters are the requests that complete when the log is durable up to an LSN.
type waiters struct {
	mu     sync.Mutex
	list   []waiter
	closed error
	kick   kick         // somebody waits
	soon   kick         // nobody waits, but a member would like to fetch
	wanted atomic.Int32 // sessions that want everything durable soon
}

type waiter struct {
	lsn  history.LSN
	done func(error)
}

// add queues a completion; false if it was failed at once because the volume is closed.
func (w *waiters) add(lsn history.LSN, done func(error)) bool {
	w.mu.Lock()
	err := w.closed
	if err == nil {
		w.list = append(w.list, waiter{lsn, done})
	}
	w.mu.Unlock()
	if err != nil {
		done(err)
		return false
	}
	return true
}

func (w *waiters) take() []waiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.list
	w.list = nil
	return l
}

func (w *waiters) fail(err error) {
	w.mu.Lock()
	w.closed = err
	w.mu.Unlock()
	for _, x := range w.take() {
		x.done(err)
	}
}

// Waiters is signalled when SyncStep has something to do.
func (v *Volume) Waiters() <-chan struct{} { return v.waiters.kick }

// Soon is signalled when SyncStep should run before long although nobody waits: it may be put off by milliseconds, which makes it rarer.
func (v *Volume) Soon() <-chan struct{} { return v.waiters.soon }

// SyncStep makes everything logged so far durable and completes the requests that waited for it. It returns how many these were.
func (v *Volume) SyncStep() int {
	list := v.waiters.take()
	err := v.log.SyncTo(v.log.End())
	if err != nil {
		err = fmt.Errorf("volume: %w", err)
	}
	for _, w := range list {
		w.done(err)
	}
	return len(list)
}

// WantDurable asks for the log to become durable soon after every write, without waiting for a flush, until the returned function is called:
// shipping needs it, since only durable bytes leave the node.
func (v *Volume) WantDurable() (stop func()) {
	v.waiters.wanted.Add(1)
	v.waiters.soon.signal()
	return sync.OnceFunc(func() { v.waiters.wanted.Add(-1) })
}

// call submits one request and waits for it.
func (v *Volume) call(r *block.Request) error {
	ch := make(chan error, 1)
	r.Done = func(err error) { ch <- err }
	v.Submit([]*block.Request{r})
	return <-ch
}

// WriteAt implements block.Device.
func (v *Volume) WriteAt(p []byte, off int64, f block.Flags) error {
	return v.call(&block.Request{Op: block.OpWrite, Off: off, Len: int64(len(p)), Data: p, Flags: f})
}

// WriteZeroes implements block.Device. It only writes to the log, so it is always fast.
func (v *Volume) WriteZeroes(off, n int64, f block.Flags) error {
	return v.call(&block.Request{Op: block.OpWriteZeroes, Off: off, Len: n, Flags: f})
}

// Discard implements block.Device.
func (v *Volume) Discard(off, n int64, f block.Flags) error {
	return v.call(&block.Request{Op: block.OpDiscard, Off: off, Len: n, Flags: f})
}

// Flush implements block.Device. What was written before is in the log already, so it need not queue.
func (v *Volume) Flush() error {
	if err := v.admit(); err != nil {
		return err
	}
	if err := v.log.SyncTo(v.log.End()); err != nil {
		return fmt.Errorf("volume: %w", err)
	}
	return nil
}

// Size implements block.Device.
func (v *Volume) Size() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.size
}
