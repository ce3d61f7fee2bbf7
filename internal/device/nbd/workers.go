package nbd

import "sync"

// workers carry out requests that wait for the device, so that the goroutines that read connections need not. There are at most limit of
// them per server; each is started when all others are at work, and ends with the server.
type workers struct {
	limit int
	jobs  chan *request
	stop  <-chan struct{}
	wg    sync.WaitGroup

	mu struct {
		sync.Mutex
		started int
		waiting int // requests handed over or about to be, minus those finished
	}
}

func newWorkers(limit int, stop <-chan struct{}) *workers {
	return &workers{limit: limit, jobs: make(chan *request, maxInFlight), stop: stop}
}

// do hands r to a worker. It blocks only when very many wait already.
func (w *workers) do(r *request) {
	w.mu.Lock()
	w.mu.waiting++
	if w.mu.waiting > w.mu.started && w.mu.started < w.limit {
		w.mu.started++
		w.wg.Go(w.work)
	}
	w.mu.Unlock()
	select {
	case w.jobs <- r:
	case <-w.stop:
		r.done(errStopped)
	}
}

func (w *workers) work() {
	for {
		select {
		case r := <-w.jobs:
			r.done(r.run())
			w.mu.Lock()
			w.mu.waiting--
			w.mu.Unlock()
		case <-w.stop:
			return
		}
	}
}

// join waits until all workers have ended, which they do when the stop channel is closed and the device returns, and fails what they have
// left. No do may be under way.
func (w *workers) join() {
	w.wg.Wait()
	for {
		select {
		case r := <-w.jobs:
			r.done(errStopped)
		default:
			return
		}
	}
}
