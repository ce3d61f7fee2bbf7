package transport

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Progress is how long each direction may stand still; 0 means for ever.
type Progress struct {
	Read, Write time.Duration
}

// progressConn is a net.Conn whose time-outs run from the last byte that moved.
type progressConn struct {
	net.Conn
	read, write atomic.Int64 // time.Duration
	closeOnce   sync.Once
	closeErr    error
}

func newProgressConn(c net.Conn) *progressConn {
	p := &progressConn{Conn: c}
	p.set(Progress{DefaultProgress, DefaultProgress})
	return p
}

func (c *progressConn) set(p Progress) {
	c.read.Store(int64(p.Read))
	c.write.Store(int64(p.Write))
}

func deadline(d time.Duration) time.Time {
	if d <= 0 {
		return time.Time{}
	}
	return time.Now().Add(d)
}

func (c *progressConn) Read(p []byte) (int, error) {
	limit := time.Duration(c.read.Load())
	if err := c.SetReadDeadline(deadline(limit)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	return n, stalled(err, "received", limit)
}

// Write goes on after a time-out as long as it had moved something.
func (c *progressConn) Write(p []byte) (n int, err error) {
	for {
		limit := time.Duration(c.write.Load())
		if err := c.SetWriteDeadline(deadline(limit)); err != nil {
			return n, err
		}
		moved, err := c.Conn.Write(p[n:])
		n += moved
		if err == nil || moved == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, stalled(err, "taken by the other end", limit)
		}
	}
}

func (c *progressConn) Close() error {
	c.closeOnce.Do(func() { c.closeErr = c.Conn.Close() })
	return c.closeErr
}

func stalled(err error, what string, limit time.Duration) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: nothing was %s for %s", ErrStalled, what, limit)
	}
	return err
}
