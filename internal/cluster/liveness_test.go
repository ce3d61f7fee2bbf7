package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mars/internal/lamport"
	"mars/internal/meta"
	"mars/internal/transport"
)

// memNet is a network in memory, for tests in which time is faked. While frozen nothing moves on it, and nobody is told.
type memNet struct {
	mu        sync.Mutex
	listeners map[string]*memListener
	next      int
	thawed    chan struct{} // closed when not frozen
}

func newMemNet() *memNet {
	n := &memNet{listeners: map[string]*memListener{}, thawed: make(chan struct{})}
	close(n.thawed)
	return n
}

func (n *memNet) freeze() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.thawed = make(chan struct{})
}

func (n *memNet) thaw() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.thawed)
}

func (n *memNet) gate() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.thawed
}

type memListener struct {
	net   *memNet
	addr  memAddr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

type memAddr string

func (memAddr) Network() string  { return "mem" }
func (a memAddr) String() string { return string(a) }

func (n *memNet) Listen(string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.next++
	l := &memListener{net: n, addr: memAddr(fmt.Sprintf("host%d:1", n.next)), conns: make(chan net.Conn), done: make(chan struct{})}
	n.listeners[string(l.addr)] = l
	return l, nil
}

func (n *memNet) Dial(ctx context.Context, addr string) (net.Conn, error) {
	select {
	case <-n.gate():
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	n.mu.Lock()
	l := n.listeners[addr]
	n.mu.Unlock()
	if l == nil {
		return nil, errors.New("refused")
	}
	here, there := net.Pipe()
	select {
	case l.conns <- &memConn{there, n}:
		return &memConn{here, n}, nil
	case <-l.done:
		return nil, errors.New("refused")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Addr() net.Addr { return l.addr }

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// memConn swallows what is written while the network is frozen, like a kernel that buffers for a dead line.
type memConn struct {
	net.Conn
	net *memNet
}

func (c *memConn) Write(p []byte) (int, error) {
	select {
	case <-c.net.gate():
		return c.Conn.Write(p)
	default:
		return len(p), nil
	}
}

// behind is how far b's clock is behind that of a.
const behind = 2 * time.Minute

// bubble runs a test in faked time with two connected nodes on a network in memory.
func bubble(t *testing.T, f func(t *testing.T, n *memNet, a, b *Cluster)) {
	bubbleWith(t, func() time.Time { return time.Now().Add(-behind) }, f)
}

// bubbleWith is bubble with a clock for b.
func bubbleWith(t *testing.T, clockOfB func() time.Time, f func(t *testing.T, n *memNet, a, b *Cluster)) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		open := func(name string, now func() time.Time) *Cluster {
			c, err := Open(Config{Dir: t.TempDir(), NodeName: name, Listen: "any", Network: n, Now: now})
			must(t, err)
			return c
		}
		a, b := open("a", time.Now), open("b", clockOfB)
		must(t, a.Create(t.Context()))
		tok, err := a.IssueToken(time.Hour)
		must(t, err)
		must(t, b.Join(t.Context(), "", tok))
		sleepUntil(t, func() bool { return anyAlive(a) && anyAlive(b) })
		f(t, n, a, b)
		must(t, a.Close())
		must(t, b.Close())
	})
}

// sleepUntil lets faked time pass until cond holds, and returns how much.
func sleepUntil(t *testing.T, cond func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !cond() {
		if time.Since(began) > 10*time.Minute {
			t.Fatal("still not so after ten minutes")
		}
		<-time.After(50 * time.Millisecond)
	}
	return time.Since(began)
}

// A line that goes dead without anybody being told: alive for the window, dead after it, alive again when the line is back.
func TestSilentPeerIsAliveForTheWindow(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, a, b *Cluster) {
		<-time.After(time.Hour) // silence of the application is not silence of the node
		if !anyAlive(a) || !anyAlive(b) {
			t.Fatal("not alive after an hour without changes")
		}
		n.freeze()
		took := sleepUntil(t, func() bool { return !anyAlive(a) })
		if took < AliveWindow-2*pingEvery || took > AliveWindow+2*pingEvery {
			t.Fatalf("dead after %s", took)
		}
		sleepUntil(t, func() bool { return a.Nodes()[1].Problem != "" })
		must(t, a.Sync(t.Context())) // does not wait for the dead
		must(t, a.Put("k", []byte("v")))
		n.thaw()
		took = sleepUntil(t, func() bool { return anyAlive(a) && anyAlive(b) })
		if took > 30*time.Second {
			t.Fatalf("connected again after %s", took)
		}
		sleepUntil(t, func() bool { _, _, ok := b.Get("k"); return ok })
	})
}

// What a peer could not take at first gets there later over the same session, by the comparison of digests.
func TestRefusedChangesAreRepairedWithoutReconnecting(t *testing.T) {
	bubble(t, func(t *testing.T, _ *memNet, a, b *Cluster) {
		m, err := a.current()
		must(t, err)
		// Just not too far in the future for a, but for b, whose clock is behind.
		early := meta.Entry{Key: "k", Value: []byte("v")}
		early.Stamp = lamport.Stamp{Time: time.Now().Add(lamport.MaxAhead - time.Second).UnixNano(), Node: "x"}
		if _, refused := m.store.Merge([]meta.Entry{early}); refused != nil {
			t.Fatal(refused)
		}
		sleepUntil(t, func() bool { return b.Stats().RefusedEntries > 0 })
		if _, _, ok := b.Get("k"); ok {
			t.Fatal("b took it")
		}
		took := sleepUntil(t, func() bool { _, _, ok := b.Get("k"); return ok })
		if took < behind-2*time.Second || took > behind+compareEvery+2*time.Second {
			t.Fatalf("repaired after %s", took)
		}
	})
}

// A stranger who does not say what it wants is not waited for.
func TestSilentNewcomerIsCut(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, a, _ *Cluster) {
		m, err := a.current()
		must(t, err)
		conn, err := transport.DialJoin(t.Context(), n, m.at.advertise, m.id.Pin())
		must(t, err)
		defer conn.Close()
		began := time.Now()
		if _, _, err := conn.ReadFrame(nil); err == nil {
			t.Fatal("it was told something")
		}
		if took := time.Since(began); took < askTime || took > askTime+time.Second {
			t.Fatalf("cut after %v", took)
		}
	})
}
