package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"mars/internal/block"
)

// self is how the server names this test.
func self(t *testing.T) string {
	t.Helper()
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("pid %d (%s)", os.Getpid(), strings.TrimSpace(string(comm)))
}

func TestCloseIsRefusedWhileThereAreClients(t *testing.T) {
	t.Parallel()
	s, path := serve(t, Config{Export: "vol", Dev: newMemDevice(testSize)})
	c := open(t, path, false)
	err := s.Close(t.Context())
	if !errors.Is(err, block.ErrBusy) || !strings.Contains(err.Error(), self(t)) {
		t.Errorf("Close: %v; want %v that names %s", err, block.ErrBusy, self(t))
	}
	c.read(0, 512)
	another := open(t, path, false) // still usable
	c.send(requestBytes(header{cmd: cmdDisc}, nil))
	another.nc.Close()
	waitFor(t, "the clients to be gone", func() bool { return len(s.Clients()) == 0 })
	if err := s.Close(t.Context()); err != nil {
		t.Errorf("Close: %v", err)
	}
	if nc, err := net.Dial("unix", path); err == nil {
		nc.Close()
		t.Error("the socket still accepts")
	}
	if err := s.Close(t.Context()); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestNegotiatingIsNotUsing(t *testing.T) {
	t.Parallel()
	s, path := serve(t, Config{Export: "vol", Dev: newMemDevice(testSize)})
	c := connect(t, path)
	c.greet()
	c.option(optInfo, infoData("vol"))
	for kind := uint32(0); kind != repAck; kind, _ = c.optionReply() {
	}
	if users := s.Clients(); len(users) != 0 {
		t.Errorf("Clients are %v", users)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Errorf("Close: %v", err)
	}
	c.expectClosed()
}

// TestNobodyEntersAfterClose stops the server between a client's greeting and its optGo.
func TestNobodyEntersAfterClose(t *testing.T) {
	t.Parallel()
	s := New(Config{Dev: newMemDevice(testSize)})
	ours, theirs := net.Pipe()
	defer ours.Close()
	c := newConn(s, theirs)
	s.mu.closed = true
	go func() { _ = c.run() }() // ends with ours
	client := newClient(t, ours)
	client.greet()
	client.expectOption(optGo, infoData(""), repErrShutdown)
}

func TestCloseWaitsNoLongerThanItsContext(t *testing.T) {
	t.Parallel()
	dev := newStuckDevice(testSize)
	s, path := serve(t, Config{Dev: plainDevice{dev}})
	c := open(t, path, false)
	c.send(requestBytes(header{cmd: cmdRead, length: 512}, nil))
	waitFor(t, "the read to be under way", func() bool { return s.inUse() > 0 })
	s.mu.Lock()
	for sc := range s.mu.conns {
		sc.user = "" // as if it had not got so far
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close: %v", err)
	}
	close(dev.gate)
}

func TestAbortDoesNotWaitForSubmittedRequests(t *testing.T) {
	t.Parallel()
	dev := newStuckDevice(testSize)
	s, path := serve(t, Config{Dev: dev})
	c := open(t, path, false)
	c.send(requestBytes(header{cmd: cmdWrite, length: 512}, make([]byte, 512)))
	c.send(requestBytes(header{cmd: cmdFlush}, nil))
	waitFor(t, "the write to be under way", func() bool { return s.inUse() > 0 })
	s.Abort()
	c.expectClosed()
	close(dev.gate) // the completions come late, and do no harm
}

func TestServeAfterClose(t *testing.T) {
	t.Parallel()
	s := New(Config{Dev: newMemDevice(testSize)})
	s.Abort()
	l, err := net.Listen("unix", socketPath(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is not closed: %v", err)
	}
}

func TestServeReportsABrokenListener(t *testing.T) {
	t.Parallel()
	s := New(Config{Dev: newMemDevice(testSize)})
	defer s.Abort()
	l, err := net.Listen("unix", socketPath(t))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := s.Serve(l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve: %v", err)
	}
}

func TestTCPClientsAreNamedByAddress(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, Config{Dev: newMemDevice(testSize)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }() // ends with Abort
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, nc)
	c.greet()
	c.start("")
	if users := s.Clients(); len(users) != 1 || users[0] != nc.LocalAddr().String() {
		t.Errorf("Clients are %v, want %v", users, nc.LocalAddr())
	}
	s.Abort()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	if got := printable("evil\x1b[2J\nname\n"); got != "evil?[2J?name" {
		t.Errorf("got %q", got)
	}
}
