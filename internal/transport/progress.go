package transport

import (
	"bufio"
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

	// out gathers TLS records, so that bulk needs fewer system calls, once the connection is established (nil before). It has its own lock because
	// TLS may have to say something of its own while reading.
	out struct {
		sync.Mutex
		w *bufio.Writer
	}
}

// gatherBytes is how much is gathered at most.
const gatherBytes = 128 << 10

// gather makes Write keep data until flush, or until there is enough.
func (c *progressConn) gather() {
	c.out.Lock()
	defer c.out.Unlock()
	c.out.w = bufio.NewWriterSize(writerFunc(c.send), gatherBytes)
}

func (c *progressConn) flush() error {
	c.out.Lock()
	defer c.out.Unlock()
	return c.out.w.Flush()
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Write sends p, or keeps it for flush.
func (c *progressConn) Write(p []byte) (int, error) {
	c.out.Lock()
	defer c.out.Unlock()
	if c.out.w == nil {
		return c.send(p)
	}
	return c.out.w.Write(p)
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

// send goes on after a time-out as long as it had moved something.
func (c *progressConn) send(p []byte) (n int, err error) {
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
