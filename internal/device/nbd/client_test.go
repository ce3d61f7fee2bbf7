package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// patience is how long a test waits for something that should happen at once.
const patience = 10 * time.Second

// waitFor fails the test unless the condition comes true.
func waitFor(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %v in vain for: %s", patience, what)
		}
	}
}

// socketPath returns a path that is short enough for a socket.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// serve runs a server over a Unix socket until the test ends, and checks then that it has given back all memory.
func serve(t testing.TB, cfg Config) (*Server, string) {
	t.Helper()
	path := socketPath(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := New(cfg)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }() // ends with Abort
	t.Cleanup(func() {
		s.Abort()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		waitFor(t, "all payload memory to be given back", func() bool { return s.inUse() == 0 })
	})
	return s, path
}

func (s *Server) inUse() int64 {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	return s.budget.mu.used
}

// client is a client that does what the test says, right or wrong.
type client struct {
	t          testing.TB
	nc         net.Conn
	structured bool
}

// connect connects and reads the greeting.
func connect(t testing.TB, path string) *client {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, nc)
}

func newClient(t testing.TB, nc net.Conn) *client {
	t.Helper()
	t.Cleanup(func() { nc.Close() })
	c := &client{t: t, nc: nc}
	c.renew()
	return c
}

// renew extends the connection's deadline; so what counts is progress.
func (c *client) renew() {
	if err := c.nc.SetDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
}

// open connects and begins the transmission phase.
func open(t testing.TB, path string, structured bool) *client {
	t.Helper()
	c := connect(t, path)
	c.greet()
	if structured {
		c.expectOption(optStructuredReply, nil, repAck)
		c.structured = true
		c.option(optSetMetaContext, metaData("", allocationContext))
		for kind := uint32(0); kind != repAck; kind, _ = c.optionReply() {
		}
	}
	c.start("")
	return c
}

func (c *client) send(b []byte) {
	c.t.Helper()
	if _, err := c.nc.Write(b); err != nil {
		c.t.Fatalf("client cannot send: %v", err)
	}
}

func (c *client) recv(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.nc, b); err != nil {
		c.t.Fatalf("client cannot receive %d bytes: %v", n, err)
	}
	return b
}

// expectClosed fails the test unless the server closes the connection without another word.
func (c *client) expectClosed() {
	c.t.Helper()
	n, err := c.nc.Read(make([]byte, 1))
	var timeout net.Error
	if n != 0 || err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		c.t.Fatalf("connection is not closed: %d bytes, %v", n, err)
	}
}

func (c *client) greet() {
	c.t.Helper()
	c.greetWith(flagFixedNewstyle | flagNoZeroes)
}

func (c *client) greetWith(flags uint32) {
	c.t.Helper()
	b := c.recv(18)
	if binary.BigEndian.Uint64(b) != magicInit || binary.BigEndian.Uint64(b[8:]) != magicOption || b[17] != 3 {
		c.t.Fatalf("greeting is %x", b)
	}
	c.send(binary.BigEndian.AppendUint32(nil, flags))
}

func optionBytes(opt uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func (c *client) option(opt uint32, data []byte) {
	c.t.Helper()
	c.send(optionBytes(opt, data))
}

func (c *client) optionReply() (kind uint32, data []byte) {
	c.t.Helper()
	b := c.recv(20)
	if binary.BigEndian.Uint64(b) != magicOptReply {
		c.t.Fatalf("option reply is %x", b)
	}
	return binary.BigEndian.Uint32(b[12:]), c.recv(int(binary.BigEndian.Uint32(b[16:])))
}

func (c *client) expectOption(opt uint32, data []byte, want uint32) {
	c.t.Helper()
	c.option(opt, data)
	if kind, _ := c.optionReply(); kind != want {
		c.t.Fatalf("option %d: reply %#x, want %#x", opt, kind, want)
	}
}

func infoData(name string, kinds ...uint16) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(kinds)))
	for _, k := range kinds {
		b = binary.BigEndian.AppendUint16(b, k)
	}
	return b
}

func metaData(name string, queries ...string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = binary.BigEndian.AppendUint32(b, uint32(len(q)))
		b = append(b, q...)
	}
	return b
}

// start sends optGo and returns the size and flags of the export.
func (c *client) start(name string) (size uint64, flags uint16) {
	c.t.Helper()
	c.option(optGo, infoData(name))
	for {
		kind, data := c.optionReply()
		switch {
		case kind == repAck:
			return size, flags
		case kind != repInfo:
			c.t.Fatalf("optGo: reply %#x", kind)
		case binary.BigEndian.Uint16(data) == infoExport:
			size, flags = binary.BigEndian.Uint64(data[2:]), binary.BigEndian.Uint16(data[10:])
		}
	}
}

// requestBytes encodes a request; cookies are the caller's.
func requestBytes(h header, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, magicRequest)
	b = binary.BigEndian.AppendUint16(b, h.flags)
	b = binary.BigEndian.AppendUint16(b, h.cmd)
	b = binary.BigEndian.AppendUint64(b, h.cookie)
	b = binary.BigEndian.AppendUint64(b, h.off)
	b = binary.BigEndian.AppendUint32(b, h.length)
	return append(b, payload...)
}

// answer is a decoded reply.
type answer struct {
	cookie uint64
	errno  errno
	kind   uint16 // of the chunk; 0 for a simple reply
	data   []byte // read data without the offset, or a block status chunk
}

// reply receives one reply. dataLen is how much data a successful simple reply to the request has.
func (c *client) reply(dataLen int) answer {
	c.t.Helper()
	b := c.recv(simpleHeaderLen)
	switch binary.BigEndian.Uint32(b) {
	case magicSimple:
		a := answer{cookie: binary.BigEndian.Uint64(b[8:]), errno: errno(binary.BigEndian.Uint32(b[4:]))}
		if a.errno == 0 && !c.structured {
			a.data = c.recv(dataLen)
		}
		return a
	case magicStructured:
		return c.chunk(append(b, c.recv(structuredHeaderLen-simpleHeaderLen)...))
	}
	c.t.Fatalf("reply begins with %x", b)
	return answer{}
}

func (c *client) chunk(b []byte) answer {
	c.t.Helper()
	a := answer{cookie: binary.BigEndian.Uint64(b[8:]), kind: binary.BigEndian.Uint16(b[6:])}
	if binary.BigEndian.Uint16(b[4:]) != chunkDone {
		c.t.Fatalf("chunk %x is not the only one", b)
	}
	a.data = c.recv(int(binary.BigEndian.Uint32(b[16:])))
	switch a.kind {
	case chunkError:
		a.errno = errno(binary.BigEndian.Uint32(a.data))
	case chunkOffsetData:
		a.data = a.data[8:]
	}
	return a
}

// do sends one request and waits for its reply.
func (c *client) do(h header, payload []byte) answer {
	c.t.Helper()
	h.cookie = 0xc0ffee
	c.send(requestBytes(h, payload))
	dataLen := 0
	if h.cmd == cmdRead {
		dataLen = int(h.length)
	}
	a := c.reply(dataLen)
	if a.cookie != h.cookie {
		c.t.Fatalf("cookie is %#x, want %#x", a.cookie, h.cookie)
	}
	return a
}

// must is do that has to succeed.
func (c *client) must(h header, payload []byte) []byte {
	c.t.Helper()
	a := c.do(h, payload)
	if a.errno != 0 {
		c.t.Fatalf("command %d at %d of %d bytes: error %d", h.cmd, h.off, h.length, a.errno)
	}
	return a.data
}

func (c *client) write(off uint64, p []byte) {
	c.t.Helper()
	c.must(header{cmd: cmdWrite, off: off, length: uint32(len(p))}, p)
}

func (c *client) read(off uint64, n int) []byte {
	c.t.Helper()
	return c.must(header{cmd: cmdRead, off: off, length: uint32(n)}, nil)
}
