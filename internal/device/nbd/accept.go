package nbd

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"time"
)

// acceptPause is how long to wait when the host has run out of something that a new connection needs.
const acceptPause = 200 * time.Millisecond

// door lets connections in.
type door struct {
	log   *slog.Logger
	stop  <-chan struct{} // closed before the listener is
	start func(net.Conn)  // takes a connection over, without blocking
}

// accept takes connections from l until it is closed; it returns nil when that was meant.
func (d *door) accept(l net.Listener) error {
	for {
		nc, err := l.Accept()
		if err == nil {
			d.start(nc)
			continue
		}
		if d.stopped() {
			return nil
		}
		if !isShortage(err) {
			return fmt.Errorf("accept on %v: %w", l.Addr(), err)
		}
		d.log.Warn("NBD connection not accepted", "err", err)
		d.sleep(acceptPause)
	}
}

// floodReport is how often, at most, the operator is told that connections had to go because there are too many.
const floodReport = time.Minute

// flood counts such connections.
type flood struct {
	n        int           // since the last report
	reported time.Duration // on clock; 0: never
}

// one counts one more. It returns how many are to be reported now, 0 if it is too early for that.
func (f *flood) one() int {
	f.n++
	now := clock()
	if f.reported != 0 && now-f.reported < floodReport {
		return 0
	}
	n := f.n
	f.n, f.reported = 0, now
	return n
}

// isShortage says that an Accept failed for want of something that will be there again.
func isShortage(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (d *door) stopped() bool {
	select {
	case <-d.stop:
		return true
	default:
		return false
	}
}

func (d *door) sleep(pause time.Duration) {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-d.stop:
	}
}
