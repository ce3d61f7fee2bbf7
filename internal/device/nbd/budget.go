package nbd

import "sync"

// guaranteedShare is what a connection may always hold in bytes, so that small requests flow however much others hoard.
const guaranteedShare = 64 << 10

// budget bounds the payload memory of all connections of a server: of writes from before the data is received until the device is done with
// it, of reads from before the device is asked until the reply has been sent.
//
// A connection may hold as much as it leaves free for the others. So one alone gets half of the total, a second one a quarter, and no one
// can take everything by not taking replies. In addition guaranteedShare is always granted, and any single request when nothing is in use. The
// bound is hence: total, or one request if that is more, plus guaranteedShare for each connection.
type budget struct {
	total int64

	mu struct {
		sync.Mutex
		used  int64
		freed chan struct{} // closed at the next release; nil when nobody waits
	}
}

// share is what one connection holds of a budget. Guarded by the budget's lock.
type share struct{ held int64 }

// take grants n bytes, or returns a channel that is closed when it is worth while to try again.
func (b *budget) take(s *share, n int64) (bool, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.grants(s, n) {
		s.held += n
		b.mu.used += n
		return true, nil
	}
	if b.mu.freed == nil {
		b.mu.freed = make(chan struct{})
	}
	return false, b.mu.freed
}

func (b *budget) grants(s *share, n int64) bool {
	return s.held+n <= b.total-b.mu.used || s.held+n <= guaranteedShare || b.mu.used == 0
}

// give returns n bytes. It never blocks.
func (b *budget) give(s *share, n int64) {
	b.mu.Lock()
	s.held -= n
	b.mu.used -= n
	freed := b.mu.freed
	b.mu.freed = nil
	b.mu.Unlock()
	if freed != nil {
		close(freed)
	}
}

// holds is what s holds now in bytes.
func (b *budget) holds(s *share) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return s.held
}
