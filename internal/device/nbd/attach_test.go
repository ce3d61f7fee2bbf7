package nbd

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// attached returns a client in the transmission phase of a server, and the channel that says how its connection ended.
func attached(t *testing.T, s *Server) (*client, <-chan error) {
	t.Helper()
	ours, theirs := socketPair(t)
	ended, err := s.Attach(theirs, "kernel")
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, ours), ended
}

func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", socketPath(t))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestAttach(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, Config{Dev: newBatchDevice(testSize), MaxConns: 1})
	c, ended := attached(t, s)
	want := bytes.Repeat([]byte{7}, 4096)
	c.write(8192, want)
	if got := c.read(8192, 4096); !bytes.Equal(got, want) {
		t.Error("read differs from what was written")
	}
	if got := s.Clients(); len(got) != 1 || got[0] != "kernel" {
		t.Errorf("clients %q", got)
	}
	_, another := socketPair(t)
	if _, err := s.Attach(another, "kernel"); !errors.Is(err, errFull) {
		t.Errorf("one too many: %v", err)
	}
	c.send(requestBytes(header{cmd: cmdDisc}, nil))
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
	s.Abort()
	_, another = socketPair(t)
	if _, err := s.Attach(another, "kernel"); !errors.Is(err, errStopped) {
		t.Errorf("after Abort: %v", err)
	}
}

// A connection that is drained answers what it has received, and what it answers is done; it says that it has ended only after that.
func TestDrain(t *testing.T) {
	t.Parallel()
	dev := newStuckDevice(testSize)
	s, _ := serve(t, Config{Dev: dev})
	c, ended := attached(t, s)
	c.send(requestBytes(header{cmd: cmdWrite, cookie: 5, length: 512}, bytes.Repeat([]byte{9}, 512)))
	waitFor(t, "the request to be received", func() bool { return s.inUse() > 0 })

	drained := make(chan struct{})
	go func() { // ends with the request
		defer close(drained)
		s.Drain(t.Context())
	}()
	waitFor(t, "the door to be closed", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.mu.closed
	})
	select {
	case <-drained:
		t.Fatal("drained while a request was under way")
	case err := <-ended:
		t.Fatalf("ended while a request was under way: %v", err)
	default:
	}
	close(dev.gate)
	if a := c.reply(0); a.errno != 0 || a.cookie != 5 {
		t.Errorf("reply %+v", a)
	}
	<-drained
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ended with %v", err)
	}
	c.expectClosed()
}

// When the device hangs, a drained connection is cut without an answer: whoever takes over gets the request again.
func TestDrainOfAHangingDevice(t *testing.T) {
	t.Parallel()
	dev := newStuckDevice(testSize)
	s, _ := serve(t, Config{Dev: dev})
	c, ended := attached(t, s)
	c.send(requestBytes(header{cmd: cmdWrite, cookie: 5, length: 512}, make([]byte, 512)))
	waitFor(t, "the request to be received", func() bool { return s.inUse() > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	s.Drain(ctx)
	c.expectClosed()
	close(dev.gate)
	<-ended
}
