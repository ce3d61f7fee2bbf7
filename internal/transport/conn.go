package transport

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// A frame on the wire, integers little-endian:
//
//	size  field
//	4     length of the payload in bytes
//	1     type; its meaning is the business of the class's protocol, 0 is reserved
//	n     payload
const (
	frameHeader = 5
	ioBuffer    = 64 << 10
)

// DefaultProgress is the progress time-out of a new Conn in both directions.
const DefaultProgress = 30 * time.Second

// Conditions that callers branch on.
var (
	// ErrFrameTooBig says that a frame is longer than its class allows.
	ErrFrameTooBig = errors.New("frame too big")
	// ErrStalled says that a read or write made no progress for too long.
	ErrStalled = errors.New("no progress")
)

// Conn is an authenticated connection that carries frames. One goroutine may read while another one writes; Close may be called by anyone at
// any time, and fails both.
type Conn struct {
	class    Class
	peer     string
	addr     string
	maxFrame int
	raw      *progressConn
	tls      *tls.Conn
	r        *bufio.Reader
	w        *bufio.Writer
	onClose  func()
	spoken   atomic.Bool // at least one frame was read
	age      uint64      // of the endpoint's, for connections of class Join
}

func newConn(raw *progressConn, t *tls.Conn, class Class, peer string, maxFrame int) *Conn {
	raw.gather()
	return &Conn{
		class: class, peer: peer, addr: raw.RemoteAddr().String(), maxFrame: maxFrame, raw: raw, tls: t,
		r: bufio.NewReaderSize(t, ioBuffer), w: bufio.NewWriterSize(t, ioBuffer), onClose: func() {},
	}
}

// Peer is the id of the node at the other end, proven by its certificate; empty for a newcomer on a Join connection.
func (c *Conn) Peer() string { return c.peer }

// Class is the connection's class.
func (c *Conn) Class() Class { return c.class }

// RemoteAddr is the network address of the other end.
func (c *Conn) RemoteAddr() string { return c.addr }

// MaxFrame is the largest payload of a frame in bytes, in both directions.
func (c *Conn) MaxFrame() int { return c.maxFrame }

// SetProgress sets how long a read, or a write, may go on without a single byte moving before it fails with ErrStalled; 0 means for ever. How long
// it takes altogether does not matter. A protocol that is silent at times needs its own keep-alive frames, or no limit for reads.
func (c *Conn) SetProgress(p Progress) { c.raw.set(p) }

// ReadFrame reads the next frame. The payload is in buf if that is large enough, else in a new slice. At the end of the stream, between two
// frames, the error is io.EOF. A frame of more than MaxFrame gives ErrFrameTooBig before anything is allocated.
func (c *Conn) ReadFrame(buf []byte) (kind byte, payload []byte, err error) {
	kind, payload, err = readFrame(c.r, buf, c.maxFrame)
	if err == nil && c.class == Join {
		c.spoken.Store(true)
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("read %s frame from %s: %w", c.class, c.name(), err)
	}
	return kind, payload, err
}

func readFrame(r io.Reader, buf []byte, maxFrame int) (kind byte, payload []byte, err error) {
	// The caller's buffer may serve for the header, too, so that nothing is allocated.
	buf = buf[:cap(buf)]
	if len(buf) < frameHeader {
		buf = make([]byte, frameHeader)
	}
	if _, err := io.ReadFull(r, buf[:frameHeader]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(buf)
	kind = buf[4]
	if int64(n) > int64(maxFrame) {
		return 0, nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrFrameTooBig, n, maxFrame)
	}
	if int(n) > len(buf) {
		buf = make([]byte, n)
	}
	payload = buf[:n]
	if _, err := io.ReadFull(r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return kind, payload, nil
}

// WriteFrame buffers a frame whose payload is parts one after the other. The parts may be reused when it returns. Nothing is certain to
// leave before Flush.
func (c *Conn) WriteFrame(kind byte, parts ...[]byte) error {
	if err := writeFrame(c.w, kind, parts, c.maxFrame); err != nil {
		return fmt.Errorf("write %s frame to %s: %w", c.class, c.name(), err)
	}
	return nil
}

func writeFrame(w *bufio.Writer, kind byte, parts [][]byte, maxFrame int) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n > maxFrame {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrFrameTooBig, n, maxFrame)
	}
	header := binary.LittleEndian.AppendUint32(w.AvailableBuffer(), uint32(n))
	if _, err := w.Write(append(header, kind)); err != nil {
		return err
	}
	for _, p := range parts {
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// Flush sends what is buffered.
func (c *Conn) Flush() error {
	err := c.w.Flush()
	if err == nil {
		err = c.raw.flush()
	}
	if err != nil {
		return fmt.Errorf("write to %s: %w", c.name(), err)
	}
	return nil
}

// Close cuts the connection at once; what was not flushed is lost. Further calls do nothing.
func (c *Conn) Close() error {
	// Not via TLS: its close notification would wait for a stuck write.
	err := c.raw.Close()
	c.onClose()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (c *Conn) name() string {
	if c.peer == "" {
		return c.addr
	}
	return c.peer + " (" + c.addr + ")"
}
