package transport

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"mars/internal/identity"
)

// Stats counts incoming connections since the start.
type Stats struct {
	Accepted     uint64
	NotMember    uint64 // refused: removed from the cluster, or not known yet
	Foreign      uint64 // refused: another cluster's certificate
	Busy         uint64 // refused: too many connections
	Handshake    uint64 // refused: no proper TLS 1.3 handshake in time
	Evicted      uint64 // cut off during the handshake to make room for newer ones
	AcceptErrors uint64 // the listener failed and was retried
}

type counters struct {
	accepted, notMember, foreign, busy, handshake, evicted, acceptErrors atomic.Uint64
}

func (c *counters) refuse(err error) {
	switch {
	case errors.Is(err, ErrNotMember):
		c.notMember.Add(1)
	case errors.Is(err, identity.ErrForeign):
		c.foreign.Add(1)
	case errors.Is(err, ErrBusy):
		c.busy.Add(1)
	default:
		c.handshake.Add(1)
	}
}

// Stats returns the present counts.
func (e *Endpoint) Stats() Stats {
	c := &e.counts
	return Stats{
		Accepted: c.accepted.Load(), NotMember: c.notMember.Load(), Foreign: c.foreign.Load(), Busy: c.busy.Load(),
		Handshake: c.handshake.Load(), Evicted: c.evicted.Load(), AcceptErrors: c.acceptErrors.Load(),
	}
}

// logEvery is how often the same kind of event is logged; what comes in between is counted.
const logEvery = 10 * time.Second

// limitedLog keeps strangers from filling the log.
type limitedLog struct {
	log *slog.Logger
	now func() time.Time

	mu struct {
		sync.Mutex
		kinds map[[2]string]*limitedKind
	}
}

type limitedKind struct {
	next       time.Time
	suppressed int
}

func newLimitedLog(log *slog.Logger) *limitedLog {
	l := &limitedLog{log: log, now: time.Now}
	l.mu.kinds = map[[2]string]*limitedKind{}
	return l
}

// warn logs msg with its reason, unless the same pair was logged a short while ago. Reasons come from a small fixed set.
func (l *limitedLog) warn(msg, reason string, args ...any) {
	suppressed, ok := l.allow([2]string{msg, reason})
	if !ok {
		return
	}
	args = append(args, "reason", reason)
	if suppressed > 0 {
		args = append(args, "suppressed", suppressed)
	}
	l.log.Warn(msg, args...)
}

func (l *limitedLog) allow(key [2]string) (suppressed int, ok bool) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.mu.kinds[key]
	if k == nil {
		k = &limitedKind{}
		l.mu.kinds[key] = k
	}
	if now.Before(k.next) {
		k.suppressed++
		return 0, false
	}
	suppressed, k.suppressed, k.next = k.suppressed, 0, now.Add(logEvery)
	return suppressed, true
}
