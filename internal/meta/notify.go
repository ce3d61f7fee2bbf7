package meta

import "sync"

// Notifier tells any number of watchers that something changed. The zero value is ready. It is safe for concurrent use.
type Notifier struct {
	mu       sync.Mutex
	watchers map[chan struct{}]struct{}
}

// Watch returns a channel that receives after each change, many changes at once being one signal, and a function that ends that. Read the
// state after Watch returned and after each signal, and no change is missed.
func (n *Notifier) Watch() (changed <-chan struct{}, cancel func()) {
	ch := make(chan struct{}, 1)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.watchers == nil {
		n.watchers = map[chan struct{}]struct{}{}
	}
	n.watchers[ch] = struct{}{}
	return ch, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.watchers, ch)
	}
}

// Notify signals all watchers. It never blocks.
func (n *Notifier) Notify() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for ch := range n.watchers {
		select {
		case ch <- struct{}{}:
		default: // a signal is waiting already
		}
	}
}
