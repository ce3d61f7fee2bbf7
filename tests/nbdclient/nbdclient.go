// Package nbdclient is a small NBD client for tests and the demonstration: it opens one export on a Unix socket and keeps any number of
// requests under way. It is not tuned, knows only simple replies, and trusts the server it talks to no further than a test must.
package nbdclient

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Numbers of the protocol, see doc/proto.md of NBD.
const (
	magicInit     uint64 = 0x4e42444d41474943
	magicOption   uint64 = 0x49484156454f5054
	magicOptReply uint64 = 0x0003e889045565a9
	magicRequest  uint32 = 0x25609513
	magicSimple   uint32 = 0x67446698

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optGo   uint32 = 7
	repAck  uint32 = 1
	repInfo uint32 = 3

	cmdRead        uint16 = 0
	cmdWrite       uint16 = 1
	cmdDisc        uint16 = 2
	cmdFlush       uint16 = 3
	cmdTrim        uint16 = 4
	cmdWriteZeroes uint16 = 6

	cmdFlagFUA uint16 = 1 << 0

	maxInfo = 1 << 16
)

// handshakeTime bounds the negotiation; afterwards requests may take as long as they want, that is what tests look at.
const handshakeTime = 20 * time.Second

// ErrClosed is what requests end with when the connection is gone: what became of them nobody knows.
var ErrClosed = errors.New("connection to the NBD server is gone")

// Client is one connection. It may be used concurrently.
type Client struct {
	conn net.Conn
	r    *bufio.Reader
	size int64

	send sync.Mutex // one request on the wire at a time

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]*call
	err     error
	done    chan struct{} // closed when the receiver has ended
}

type call struct {
	into []byte // of a read
	done chan error
}

// Dial opens the export on the Unix socket at path.
func Dial(path, export string) (*Client, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open NBD export %s: %w", export, err)
	}
	return Open(conn, export)
}

// Open opens the export over a connection, which it takes over.
func Open(conn net.Conn, export string) (*Client, error) {
	c := &Client{conn: conn, r: bufio.NewReader(conn), waiting: map[uint64]*call{}, done: make(chan struct{})}
	if err := c.negotiate(export); err != nil {
		conn.Close()
		return nil, fmt.Errorf("open NBD export %s: %w", export, err)
	}
	go c.receive() // ends with the connection; joined by Close
	return c, nil
}

// Size of the device when it was opened, in bytes.
func (c *Client) Size() int64 { return c.size }

func (c *Client) negotiate(export string) error {
	if err := c.conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	var hello struct {
		Init, Option uint64
		Flags        uint16
	}
	if err := binary.Read(c.r, binary.BigEndian, &hello); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	if hello.Init != magicInit || hello.Option != magicOption || hello.Flags&flagFixedNewstyle == 0 {
		return errors.New("this is no NBD server of the fixed newstyle")
	}
	ask := binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	ask = binary.BigEndian.AppendUint64(ask, magicOption)
	ask = binary.BigEndian.AppendUint32(ask, optGo)
	ask = binary.BigEndian.AppendUint32(ask, uint32(4+len(export)+2))
	ask = binary.BigEndian.AppendUint32(ask, uint32(len(export)))
	ask = append(ask, export...)
	ask = binary.BigEndian.AppendUint16(ask, 0) // no particular information is asked for
	if _, err := c.conn.Write(ask); err != nil {
		return fmt.Errorf("ask for the export: %w", err)
	}
	for {
		done, err := c.optionReply()
		if err != nil {
			return err
		}
		if done {
			return c.conn.SetDeadline(time.Time{})
		}
	}
}

// optionReply reads one reply to NBD_OPT_GO; the last one is an acknowledgement.
func (c *Client) optionReply() (last bool, err error) {
	var h struct {
		Magic              uint64
		Option, Type, Size uint32
	}
	if err := binary.Read(c.r, binary.BigEndian, &h); err != nil {
		return false, fmt.Errorf("read answer: %w", err)
	}
	if h.Magic != magicOptReply || h.Option != optGo || h.Size > maxInfo {
		return false, errors.New("answer is garbled")
	}
	body := make([]byte, h.Size)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return false, fmt.Errorf("read answer: %w", err)
	}
	switch {
	case h.Type == repAck:
		return true, nil
	case h.Type == repInfo && len(body) >= 12 && binary.BigEndian.Uint16(body) == 0:
		c.size = int64(binary.BigEndian.Uint64(body[2:]))
	case h.Type == repInfo:
	default:
		return false, fmt.Errorf("refused with %#x: %s", h.Type, body)
	}
	return false, nil
}

// ReadAt fills p from the device.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	err := c.do(request{cmd: cmdRead, off: off, length: len(p), into: p})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Write writes p; when it returns nil the write is acknowledged, not yet durable.
func (c *Client) Write(off int64, p []byte) error {
	return c.do(request{cmd: cmdWrite, off: off, length: len(p), data: p})
}

// WriteDurable writes p with FUA.
func (c *Client) WriteDurable(off int64, p []byte) error {
	return c.do(request{cmd: cmdWrite, flags: cmdFlagFUA, off: off, length: len(p), data: p})
}

// WriteZeroes zeroes a range.
func (c *Client) WriteZeroes(off, n int64) error {
	return c.do(request{cmd: cmdWriteZeroes, off: off, length: int(n)})
}

// Trim discards a range.
func (c *Client) Trim(off, n int64) error {
	return c.do(request{cmd: cmdTrim, off: off, length: int(n)})
}

// Flush makes all acknowledged writes durable.
func (c *Client) Flush() error { return c.do(request{cmd: cmdFlush}) }

// Close says goodbye and closes the connection.
func (c *Client) Close() error {
	c.send.Lock()
	c.conn.SetWriteDeadline(time.Now().Add(time.Second)) // a dead server must not hold us up
	_, sayErr := c.conn.Write(request{cmd: cmdDisc}.header(0))
	c.send.Unlock()
	err := c.conn.Close()
	<-c.done
	if sayErr != nil || errors.Is(err, net.ErrClosed) {
		return nil // the server was faster: nothing is left to be closed in an orderly way
	}
	return err
}

// Abort drops the connection without a word, as a dying client would.
func (c *Client) Abort() {
	c.conn.Close()
	<-c.done
}

type request struct {
	cmd, flags uint16
	off        int64
	length     int
	data       []byte // sent
	into       []byte // received
}

func (r request) header(cookie uint64) []byte {
	b := binary.BigEndian.AppendUint32(nil, magicRequest)
	b = binary.BigEndian.AppendUint16(b, r.flags)
	b = binary.BigEndian.AppendUint16(b, r.cmd)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(r.off))
	return binary.BigEndian.AppendUint32(b, uint32(r.length))
}

func (c *Client) do(r request) error {
	w := &call{into: r.into, done: make(chan error, 1)}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return c.err
	}
	c.next++
	cookie := c.next
	c.waiting[cookie] = w
	c.mu.Unlock()
	c.send.Lock()
	_, err := (&net.Buffers{r.header(cookie), r.data}).WriteTo(c.conn)
	c.send.Unlock()
	if err != nil {
		c.conn.Close() // the receiver fails whoever waits
	}
	return <-w.done
}

// receive hands the answers out. It ends with the connection and fails everybody who still waits.
func (c *Client) receive() {
	defer close(c.done)
	var err error
	for err == nil {
		err = c.receiveOne()
	}
	c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = fmt.Errorf("%w: %w", ErrClosed, err)
	for _, w := range c.waiting {
		w.done <- c.err
	}
	clear(c.waiting)
}

func (c *Client) receiveOne() error {
	var h struct {
		Magic, Error uint32
		Cookie       uint64
	}
	if err := binary.Read(c.r, binary.BigEndian, &h); err != nil {
		return err
	}
	c.mu.Lock()
	w := c.waiting[h.Cookie]
	c.mu.Unlock()
	if h.Magic != magicSimple || w == nil {
		return errors.New("answer is garbled")
	}
	if h.Error == 0 {
		if _, err := io.ReadFull(c.r, w.into); err != nil {
			return err
		}
	}
	c.mu.Lock()
	delete(c.waiting, h.Cookie)
	c.mu.Unlock()
	if h.Error != 0 {
		w.done <- syscall.Errno(h.Error) // the protocol's numbers are Linux'
		return nil
	}
	w.done <- nil
	return nil
}
