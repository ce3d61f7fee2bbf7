package nbd

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"mars/internal/block"
)

func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	var log logBuffer
	_, path := serve(t, Config{Dev: newMemDevice(testSize), MaxConns: 2, Log: slog.New(slog.NewTextHandler(&log, nil))})
	first := connect(t, path)
	first.greet()
	second := open(t, path, false)
	for range 100 {
		connect(t, path).expectClosed()
	}
	if n := strings.Count(log.String(), "NBD connections refused"); n != 1 {
		t.Errorf("the flood is reported %d times", n)
	}
	second.read(0, 512)
	first.option(optAbort, nil)
	first.optionReply()
	first.expectClosed()
	waitFor(t, "room for another connection", func() bool {
		nc, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		n, _ := nc.Read(make([]byte, 1))
		return n == 1
	})
}

// TestClientThatTakesNoReplies asks for far more data than there is memory, on several connections, and takes none of it.
func TestClientThatTakesNoReplies(t *testing.T) {
	t.Parallel()
	const total = 4 << 20
	s, path := serve(t, Config{Dev: newMemDevice(testSize), MaxMemory: total})
	for range 3 {
		hog := open(t, path, false)
		for i := range uint64(200) {
			hog.send(requestBytes(header{cmd: cmdRead, cookie: i, length: 256 << 10}, nil))
		}
	}
	waitFor(t, "the hogs to hold most of the memory", func() bool { return s.inUse() > total/2 })
	c := open(t, path, true)
	c.write(0, bytes.Repeat([]byte{3}, 128<<10))
	for range 20 {
		if got := c.read(0, 128<<10); got[0] != 3 {
			t.Fatalf("read %d", got[0])
		}
	}
	if used := s.inUse(); used > total+4*guaranteedShare {
		t.Errorf("%d bytes in use, the bound is %d", used, total+4*guaranteedShare)
	}
}

// TestHalfRequests: a payload that never comes holds memory only as long as nobody else needs it.
func TestHalfRequests(t *testing.T) {
	t.Parallel()
	dev := newBatchDevice(block.MaxRequest)
	s, path := serve(t, Config{Dev: dev, MaxMemory: block.MaxRequest, StallTimeout: 20 * time.Millisecond})
	hog := open(t, path, false)
	hog.send(requestBytes(header{cmd: cmdWrite, length: block.MaxRequest}, make([]byte, 100<<10)))
	waitFor(t, "the half request to hold all memory", func() bool { return s.inUse() == block.MaxRequest })
	c := open(t, path, false)
	c.write(512, make([]byte, 512)) // from the guaranteed share
	if got := c.read(0, 1<<20); len(got) != 1<<20 {
		t.Errorf("read %d bytes", len(got))
	}
	hog.expectClosed()
	if n := len(dev.flags); n != 1 {
		t.Errorf("%d modifications reached the device, want 1", n)
	}
}

// TestStalledClientIsCut: one that takes no replies must go only when somebody needs more than it leaves.
func TestStalledClientIsCut(t *testing.T) {
	t.Parallel()
	s, path := serve(t, Config{Dev: newMemDevice(testSize), MaxMemory: 1 << 20, StallTimeout: 20 * time.Millisecond})
	hog, c := open(t, path, false), open(t, path, false)
	for i := range uint64(100) {
		hog.send(requestBytes(header{cmd: cmdRead, cookie: i, length: 64 << 10}, nil))
	}
	waitFor(t, "the hog to hold half of the memory", func() bool { return s.inUse() >= 512<<10 })
	c.read(0, 64<<10)
	waitFor(t, "the hog to be called stalled", func() bool {
		return slices.ContainsFunc(s.connections(), func(c *conn) bool { return c.stalled(40 * time.Millisecond) })
	})
	if n := s.connectionCount(); n != 2 {
		t.Errorf("%d connections, want both", n)
	}
	if got := c.read(0, 1<<20); len(got) != 1<<20 {
		t.Errorf("read %d bytes", len(got))
	}
	waitFor(t, "the hog to be gone", func() bool { return s.connectionCount() == 1 })
}

func (s *Server) connectionCount() int { return len(s.connections()) }

func TestTooManyRequests(t *testing.T) {
	t.Parallel()
	const n = 3 * maxInFlight
	dev := newStuckDevice(testSize)
	s, path := serve(t, Config{Dev: dev})
	c := open(t, path, false)
	go func() { // ends when the device is released
		burst := bytes.Repeat(requestBytes(header{cmd: cmdFlush}, nil), n)
		_, _ = c.nc.Write(burst) // a failure shows in the replies
	}()
	inFlight := func() int {
		q := s.connections()[0].replies
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.mu.inFlight
	}
	waitFor(t, "the limit to be reached", func() bool { return inFlight() == maxInFlight })
	close(dev.gate)
	for range n {
		if a := c.reply(0); a.errno != 0 {
			t.Fatalf("error %d", a.errno)
		}
	}
}

func TestConnectionIsCut(t *testing.T) {
	t.Parallel()
	s, path := serve(t, Config{Dev: newBatchDevice(testSize)})
	for name, bytes := range map[string][]byte{
		"bad magic":              make([]byte, requestHeaderLen),
		"write of 4 GiB":         requestBytes(header{cmd: cmdWrite, length: 1<<32 - 512}, nil),
		"write beyond the drain": requestBytes(header{cmd: cmdWrite, length: drainLimit + 512}, nil),
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, path, true)
			c.send(bytes)
			c.expectClosed()
			waitFor(t, "the client to be gone", func() bool { return len(s.Clients()) == 0 })
		})
	}
}

func TestRequestsBeforeBadMagicAreCarriedOut(t *testing.T) {
	t.Parallel()
	dev := newBatchDevice(testSize)
	_, path := serve(t, Config{Dev: dev})
	c := open(t, path, false)
	write := requestBytes(header{cmd: cmdWrite, cookie: 1, length: 512}, bytes.Repeat([]byte{1}, 512))
	c.send(append(write, make([]byte, requestHeaderLen)...))
	if a := c.reply(0); a.cookie != 1 || a.errno != 0 {
		t.Errorf("reply %+v", a)
	}
	c.expectClosed()
	if dev.data[0] != 1 {
		t.Error("the write was lost")
	}
}

// TestSameCookies: cookies are the client's business.
func TestSameCookies(t *testing.T) {
	t.Parallel()
	_, path := serve(t, Config{Dev: newBatchDevice(testSize)})
	c := open(t, path, true)
	read := requestBytes(header{cmd: cmdRead, cookie: 7, length: 512}, nil)
	c.send(bytes.Repeat(read, 50))
	for range 50 {
		if a := c.reply(0); a.cookie != 7 || len(a.data) != 512 {
			t.Fatalf("reply %+v", a)
		}
	}
}

// TestClientsThatLeaveInTheMiddle cut the connection at every byte of a session.
func TestClientsThatLeaveInTheMiddle(t *testing.T) {
	t.Parallel()
	s, path := serve(t, Config{Dev: newBatchDevice(testSize), MaxConns: 10000})
	session := binary.BigEndian.AppendUint32(nil, flagFixedNewstyle)
	session = append(session, optionBytes(optGo, infoData(""))...)
	session = append(session, requestBytes(header{cmd: cmdWrite, length: 512}, make([]byte, 512))...)
	session = append(session, requestBytes(header{cmd: cmdRead, length: 512}, nil)...)
	for n := range session {
		nc, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write(session[:n]); err != nil {
			t.Fatal(err)
		}
		nc.Close()
	}
	waitFor(t, "all connections to end", func() bool { return s.connectionCount() == 0 })
}

func TestBudget(t *testing.T) {
	t.Parallel()
	b := &budget{total: 1 << 20}
	var hog, second, third share
	took := func(s *share, n int64) bool {
		ok, _ := b.take(s, n)
		return ok
	}
	for took(&hog, 64<<10) {
	}
	if hog.held != 512<<10 {
		t.Errorf("one connection alone holds %d", hog.held)
	}
	for took(&second, 64<<10) {
	}
	if second.held != 256<<10 {
		t.Errorf("a second connection holds %d", second.held)
	}
	if took(&third, 512<<10) {
		t.Error("a third connection gets more than there is")
	}
	if !took(&third, guaranteedShare) {
		t.Error("a third connection does not get the guaranteed share")
	}
	_, freed := b.take(&third, 512<<10)
	b.give(&hog, hog.held)
	select {
	case <-freed:
	default:
		t.Error("a waiter is not woken")
	}
	b.give(&second, second.held)
	b.give(&third, third.held)
	if !took(&third, 2<<20) {
		t.Error("a large request does not get through although nothing is in use")
	}
}
