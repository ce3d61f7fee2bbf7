package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"mars/internal/identity"
)

func TestMembersConnect(t *testing.T) {
	peers := make(chan string, 1)
	a, b := two(t, func(c *Config) {
		c.DSCP = map[Class]int{Log: 10}
		c.Handler = func(ctx context.Context, conn *Conn) {
			peers <- string(conn.Class()) + " " + conn.Peer()
			echo(ctx, conn)
		}
	})
	for _, class := range []Class{Meta, Log, Sync} {
		c := a.mustDial(b, class)
		roundTrip(t, c)
		if got, want := <-peers, string(class)+" "+a.id.Node(); got != want {
			t.Fatalf("served %q, want %q", got, want)
		}
		if c.Peer() != b.id.Node() || c.Class() != class || c.RemoteAddr() != b.addr {
			t.Fatalf("peer %s, class %s, addr %s", c.Peer(), c.Class(), c.RemoteAddr())
		}
	}
	eventually(t, func() bool { return b.Stats().Accepted == 3 })
}

func TestNonMembersAreRefusedOnBothSides(t *testing.T) {
	a, b := two(t)
	a.members.set(b.id.Node(), false)
	_, err := a.dial(b, Log)
	wantErr(t, err, ErrNotMember) // the client's own word
	_, err = b.dial(a, Log)
	wantErr(t, err, ErrNotMember) // the server's word
	eventually(t, func() bool { return a.Stats().NotMember == 1 })
	a.members.set(b.id.Node(), true)
	roundTrip(t, b.mustDial(a, Log))
}

func TestForeignClusterIsRefused(t *testing.T) {
	a, foreign := newHost(t, newIdentity(t)), newHost(t, newIdentity(t))
	a.members.set(foreign.id.Node(), true) // not even then
	foreign.members.set(a.id.Node(), true)
	_, err := a.dial(foreign, Meta)
	wantErr(t, err, identity.ErrForeign)
	// The server's view: a client that does not check.
	c := rawClient(t, a.addr, &tls.Config{NextProtos: []string{string(Meta)}, Certificates: []tls.Certificate{foreign.id.Certificate()}})
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatal("a foreigner was sent something")
	}
	eventually(t, func() bool { return a.Stats().Foreign == 1 })
}

// rawClient makes a TLS connection that checks nothing; the handshake may succeed on this side only.
func rawClient(t *testing.T, addr string, cfg *tls.Config) *tls.Conn {
	t.Helper()
	cfg.InsecureSkipVerify = true
	c := tls.Client(rawDial(t, addr), cfg)
	_ = c.Handshake()
	return c
}

func TestWrongNodeIsRefused(t *testing.T) {
	a, b := two(t)
	other := admit(t, a.id)
	a.members.set(other.Node(), true)
	_, err := a.Dial(t.Context(), b.addr, Target{Class: Meta, Node: other.Node()})
	wantErr(t, err, ErrWrongNode)
	_, err = a.Dial(t.Context(), a.addr, Target{Class: Meta, Node: a.id.Node()})
	wantErr(t, err, ErrWrongNode)
}

// Whatever is less than what we speak is refused, and nothing is sent to it.
func TestDowngradesAreRefused(t *testing.T) {
	a, b := two(t)
	mine := []tls.Certificate{a.id.Certificate()}
	for name, cfg := range map[string]*tls.Config{
		"TLS 1.2":              {MaxVersion: tls.VersionTLS12, NextProtos: []string{string(Meta)}, Certificates: mine},
		"no protocol":          {Certificates: mine},
		"unknown protocol":     {NextProtos: []string{"h2"}, Certificates: mine},
		"older protocol":       {NextProtos: []string{"mars-meta/0"}, Certificates: mine},
		"two protocols":        {NextProtos: []string{string(Meta), string(Join)}, Certificates: mine},
		"no certificate":       {NextProtos: []string{string(Log)}},
		"join and another one": {NextProtos: []string{string(Join), string(Log)}},
	} {
		c := rawClient(t, b.addr, cfg)
		if n, err := c.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Errorf("%s: accepted", name)
		}
	}
	plain := rawDial(t, b.addr)
	_, err := plain.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
	must(t, err)
	_, _ = io.Copy(io.Discard, plain) // ends: it is cut
	eventually(t, func() bool { return b.Stats().Handshake == 8 })
	if n := b.Stats().Accepted; n != 0 {
		t.Fatalf("%d accepted", n)
	}
	roundTrip(t, a.mustDial(b, Meta))
}

func TestJoinNeedsThePinAndNoCertificate(t *testing.T) {
	b := newHost(t, newIdentity(t))
	c, err := DialJoin(t.Context(), TCP{}, b.addr, b.id.Pin())
	must(t, err)
	defer c.Close()
	roundTrip(t, c)
	if c.MaxFrame() != maxJoinFrame {
		t.Errorf("a stranger may send %d bytes", c.MaxFrame())
	}
	_, err = DialJoin(t.Context(), TCP{}, b.addr, newIdentity(t).Pin())
	wantErr(t, err, identity.ErrForeign)
}

func TestRecheckCutsWhoIsNoMemberAnyMore(t *testing.T) {
	a, b := two(t)
	log, meta := a.mustDial(b, Log), a.mustDial(b, Meta)
	roundTrip(t, log)
	roundTrip(t, meta)
	if n := b.Recheck(Log, Sync); n != 0 {
		t.Fatalf("%d members were cut", n)
	}
	b.members.set(a.id.Node(), false)
	if n := b.Recheck(Log, Sync); n != 1 {
		t.Fatalf("%d connections were cut", n)
	}
	if _, _, err := log.ReadFrame(nil); err == nil {
		t.Fatal("still connected")
	}
	roundTrip(t, meta)
}

// Twenty connections that say nothing, or say it very slowly, do not keep a member out, and do not stay.
func TestSlowLoris(t *testing.T) {
	a, b := two(t, func(c *Config) {
		c.Limits = Limits{HandshakesPerHost: 4, Handshakes: 8, HandshakeTimeout: 300 * time.Millisecond}
	})
	var silent []net.Conn
	for i := range 20 {
		c := rawDial(t, b.addr)
		if i%2 == 0 {
			_, err := c.Write([]byte{22, 3, 1}) // the beginning of a greeting
			must(t, err)
		}
		silent = append(silent, c)
	}
	roundTrip(t, a.mustDial(b, Log))
	for _, c := range silent {
		must(t, c.SetReadDeadline(time.Now().Add(patience)))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("still open: %v", err)
		}
	}
	s := b.Stats()
	if s.Evicted < 10 || s.Accepted != 1 {
		t.Fatalf("%+v", s)
	}
	eventually(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.mu.pending) == 0
	})
}

// A flood of connections with a real handshake is bounded per peer.
func TestConnectionFlood(t *testing.T) {
	a, b := two(t, func(c *Config) { c.Limits = Limits{ConnsPerPeer: 3} })
	third := newHost(t, admit(t, a.id))
	third.members.set(b.id.Node(), true)
	b.members.set(third.id.Node(), true)
	for range 3 {
		a.mustDial(b, Sync)
	}
	_, err := a.dial(b, Sync)
	wantErr(t, err, ErrBusy)
	_, err = b.dial(a, Sync) // the other direction has its own limit
	must(t, err)
	roundTrip(t, third.mustDial(b, Sync))
	eventually(t, func() bool { return b.Stats().Busy == 1 })
	for _, c := range a.connsOf(Classes()) {
		c.Close()
	}
	eventually(t, func() bool {
		c, err := a.dial(b, Sync)
		return err == nil && c.Close() == nil
	})
}

func TestConnectionsAreBoundedInAll(t *testing.T) {
	a, b := two(t, func(c *Config) { c.Limits = Limits{Conns: 2} })
	a.mustDial(b, Log)
	a.mustDial(b, Log)
	_, err := a.dial(b, Log)
	wantErr(t, err, ErrBusy)
}

// Strangers who say that they want to join need no certificate: as many as there may be do not take the place of a member; and those of them that say
// nothing do not take the place of a newcomer.
func TestStrangersTakeNoPlaces(t *testing.T) {
	a, b := two(t, func(c *Config) { c.Limits = Limits{Conns: 2, Joins: 3} })
	stranger := func() *Conn {
		t.Helper()
		c, err := DialJoin(t.Context(), TCP{}, b.addr, b.id.Pin())
		must(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	speaking := []*Conn{stranger(), stranger()}
	for _, c := range speaking {
		roundTrip(t, c)
	}
	for range 10 {
		silent := stranger()
		last := stranger()
		if _, _, err := silent.ReadFrame(nil); err == nil {
			t.Fatal("a silent one was told something")
		}
		last.Close()
		eventually(t, func() bool { return len(b.connsOf([]Class{Join})) == 2 })
	}
	roundTrip(t, stranger())
	_, err := DialJoin(t.Context(), TCP{}, b.addr, b.id.Pin())
	wantErr(t, err, ErrBusy) // all three have spoken
	roundTrip(t, a.mustDial(b, Log))
	roundTrip(t, a.mustDial(b, Meta))
	roundTrip(t, speaking[0])
	speaking[0].Close()
	eventually(t, func() bool {
		c, err := DialJoin(t.Context(), TCP{}, b.addr, b.id.Pin())
		return err == nil && c.Close() == nil
	})
}

// failingListener fails some times before it works.
type failingListener struct {
	net.Listener
	mu    sync.Mutex
	fails int
}

func (l *failingListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fails > 0 {
		l.fails--
		return nil, fmt.Errorf("accept: %w", syscall.EMFILE)
	}
	return l.Listener.Accept()
}

func TestListenerOutlivesAcceptErrors(t *testing.T) {
	a, b := two(t)
	ln, err := TCP{}.Listen("127.0.0.1:0")
	must(t, err)
	b.serve(&failingListener{Listener: ln, fails: 4})
	roundTrip(t, a.mustDial(b, Log))
	if n := b.Stats().AcceptErrors; n != 4 {
		t.Fatalf("%d errors counted", n)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	returned := make(chan error, 1)
	a, b := two(t, func(c *Config) {
		c.Handler = func(ctx context.Context, conn *Conn) {
			_, _, err := conn.ReadFrame(nil)
			<-ctx.Done()
			returned <- err
		}
	})
	c := a.mustDial(b, Log)
	loris := rawDial(t, b.addr)
	eventually(t, func() bool { return b.Stats().Accepted == 1 })
	must(t, b.Close())
	select {
	case err := <-returned:
		if err == nil {
			t.Fatal("the handler read something")
		}
	default:
		t.Fatal("Close returned before the handler")
	}
	if _, _, err := c.ReadFrame(nil); err == nil {
		t.Fatal("still connected")
	}
	_, _ = io.Copy(io.Discard, loris)
	_, err := b.dial(a, Log)
	wantErr(t, err, ErrClosed)
	if _, err := net.Dial("tcp", b.addr); err == nil {
		t.Fatal("still listening")
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	a := newHost(t, newIdentity(t))
	ln, err := TCP{}.Listen("127.0.0.1:0") // nobody accepts
	must(t, err)
	defer ln.Close()
	other := admit(t, a.id)
	a.members.set(other.Node(), true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = a.Dial(ctx, ln.Addr().String(), Target{Class: Log, Node: other.Node()})
	wantErr(t, err, context.DeadlineExceeded)
	_, err = DialJoin(ctx, TCP{}, ln.Addr().String(), a.id.Pin())
	wantErr(t, err, context.DeadlineExceeded)
}

func TestLogIsLimited(t *testing.T) {
	l := newLimitedLog(nil)
	at := time.Unix(0, 0)
	l.now = func() time.Time { return at }
	allowed := func() bool { _, ok := l.allow([2]string{"refused", "foreign"}); return ok }
	if !allowed() || allowed() || allowed() {
		t.Fatal("want the first of three")
	}
	if _, ok := l.allow([2]string{"refused", "busy"}); !ok {
		t.Fatal("another reason has its own limit")
	}
	at = at.Add(logEvery)
	if n, ok := l.allow([2]string{"refused", "foreign"}); !ok || n != 2 {
		t.Fatalf("after a while: %v, %d suppressed", ok, n)
	}
}
