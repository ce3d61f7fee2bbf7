package faultnet

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// Link is one direction between two nodes. It begins healthy. It may be used concurrently.
type Link struct {
	mu         sync.Mutex
	isOff      bool
	stalled    bool
	rate       int64 // bytes per second, 0 = no limit
	breakAfter int64 // bytes until connections break, -1 = never
	passed     int64
	free       time.Time     // when the bytes that were let through so far have left a limited line
	changed    chan struct{} // closed at every change
}

func (l *Link) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

// Stall lets nothing through in this direction; connections stay open.
func (l *Link) Stall() { l.change(func() { l.stalled = true }) }

// Limit lets n bytes per second through.
func (l *Link) Limit(n int64) { l.change(func() { l.rate, l.free = n, time.Time{} }) }

// BreakAfter breaks the connection that carries the n-th byte from now, right there. Then the link is healthy again.
func (l *Link) BreakAfter(n int64) { l.change(func() { l.breakAfter = n }) }

// Heal makes the link carry everything at once again.
func (l *Link) Heal() {
	l.change(func() { l.isOff, l.stalled, l.rate, l.breakAfter = false, false, 0, -1 })
}

// Passed returns how many bytes have gone through so far.
func (l *Link) Passed() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.passed
}

func (l *Link) cut() { l.change(func() { l.isOff = true }) }

func (l *Link) isCut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isOff
}

var errCut = errors.New("link is cut")

// chunk is how much is forwarded at a time; little, so that a slow line is smooth.
const chunk = 16 << 10

// pump forwards from one connection to the other until one breaks or the link is cut.
func (l *Link) pump(ctx context.Context, to, from net.Conn) {
	defer context.AfterFunc(ctx, func() { to.Close(); from.Close() })()
	stop := make(chan struct{})
	defer close(stop)
	go l.closeWhenCut(stop, to, from) // ends with this function
	buf := make([]byte, chunk)
	for {
		n, err := from.Read(buf)
		for sent := 0; sent < n; {
			m, admitErr := l.admit(ctx, n-sent)
			if m > 0 {
				if _, err := to.Write(buf[sent : sent+m]); err != nil {
					return
				}
			}
			if admitErr != nil {
				return
			}
			sent += m
		}
		if err != nil {
			return
		}
	}
}

// closeWhenCut ends a pump that waits for bytes.
func (l *Link) closeWhenCut(stop <-chan struct{}, conns ...net.Conn) {
	for {
		l.mu.Lock()
		off, changed := l.isOff, l.changed
		l.mu.Unlock()
		if off {
			for _, c := range conns {
				reset(c)
			}
			return
		}
		select {
		case <-stop:
			return
		case <-changed:
		}
	}
}

// admit waits until bytes may pass and returns how many of n, and an error when the connection must break behind them.
func (l *Link) admit(ctx context.Context, n int) (int, error) {
	for {
		l.mu.Lock()
		changed := l.changed
		switch {
		case l.isOff:
			l.mu.Unlock()
			return 0, errCut
		case l.stalled:
			l.mu.Unlock()
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-changed:
			}
			continue
		}
		if l.breakAfter >= 0 && l.breakAfter <= int64(n) {
			n = int(l.breakAfter)
			l.breakAfter = -1
			l.passed += int64(n)
			l.mu.Unlock()
			return n, errCut
		}
		if l.breakAfter > 0 {
			l.breakAfter -= int64(n)
		}
		l.passed += int64(n)
		delay := l.take(n)
		l.mu.Unlock()
		if delay <= 0 {
			return n, nil
		}
		return n, l.pass(ctx, delay, changed)
	}
}

// pass waits until bytes have left a limited line. A change ends that early: a healed line is fast at once, a cut one breaks behind them.
func (l *Link) pass(ctx context.Context, delay time.Duration, changed <-chan struct{}) error {
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
	case <-t.C:
	}
	return nil
}

// take books n bytes on a limited line and returns how long they have to wait. It needs mu.
func (l *Link) take(n int) time.Duration {
	if l.rate <= 0 {
		return 0
	}
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(int64(n) * int64(time.Second) / l.rate))
	return l.free.Sub(now)
}
