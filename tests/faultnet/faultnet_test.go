package faultnet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// echo is a node that sends back what it gets; the test itself is the other node.
type echo struct {
	n   *Net
	via string
}

func newEcho(t *testing.T) *echo {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := New()
	t.Cleanup(func() { l.Close(); n.Close() })
	go func() { // ends when the listener is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }() // ends with the connection
		}
	}()
	n.Running("me", os.Getpid())
	via, err := n.Add("echo", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return &echo{n, via}
}

func (e *echo) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", e.via)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// exchange sends n bytes and reads them back; it returns how many came.
func exchange(c net.Conn, n int) (int, error) {
	p := bytes.Repeat([]byte{7}, n)
	go c.Write(p) // ends when all is sent or the connection breaks
	return io.ReadFull(c, make([]byte, n))
}

func TestHealthyLinkCarriesEverything(t *testing.T) {
	t.Parallel()
	e := newEcho(t)
	if n, err := exchange(e.dial(t), 1<<20); err != nil {
		t.Errorf("%d bytes came back: %v", n, err)
	}
	if got := e.n.Link("echo", "me").Passed(); got != 1<<20 {
		t.Errorf("%d bytes were counted", got)
	}
}

func TestBreakAfter(t *testing.T) {
	t.Parallel()
	e := newEcho(t)
	e.n.Link("me", "echo").BreakAfter(1000)
	if n, err := exchange(e.dial(t), 5000); err == nil || n > 1000 {
		t.Errorf("%d bytes came back, %v", n, err)
	}
	if n, err := exchange(e.dial(t), 5000); err != nil {
		t.Errorf("it broke once and for all: %d, %v", n, err)
	}
}

func TestCutAndHeal(t *testing.T) {
	t.Parallel()
	e := newEcho(t)
	c := e.dial(t)
	if _, err := exchange(c, 100); err != nil {
		t.Fatal(err)
	}
	e.n.Isolate("echo") // from nobody: the test has no proxy
	e.n.Cut("me", "echo")
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("an idle connection survives the cut: %v", err)
	}
	if n, err := exchange(e.dial(t), 100); err == nil {
		t.Errorf("%d bytes came through a cut", n)
	}
	e.n.Heal("me", "echo")
	if _, err := exchange(e.dial(t), 100); err != nil {
		t.Errorf("healed, and yet: %v", err)
	}
}

func TestStallKeepsTheConnection(t *testing.T) {
	t.Parallel()
	e := newEcho(t)
	c := e.dial(t)
	if _, err := exchange(c, 100); err != nil {
		t.Fatal(err)
	}
	e.n.Link("echo", "me").Stall()
	if err := c.SetDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := exchange(c, 100); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes came through a stalled link, %v", n, err)
	}
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	e.n.Heal("me", "echo")
	if n, err := io.ReadFull(c, make([]byte, 100)); err != nil {
		t.Errorf("after the stall %d bytes came, %v", n, err)
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	e := newEcho(t)
	e.n.Link("me", "echo").Limit(1 << 20)
	began := time.Now()
	if _, err := exchange(e.dial(t), 200<<10); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 150*time.Millisecond {
		t.Errorf("200 KiB went through a line of 1 MiB/s in %v", took)
	}
}
