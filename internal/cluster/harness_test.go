package cluster

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"mars/internal/transport"
)

const patience = 15 * time.Second

// world is a network on the loopback that can be cut between any two hosts, and the hosts on it.
type world struct {
	t  *testing.T
	mu struct {
		sync.Mutex
		cut   map[[2]string]bool
		conns map[*cutConn]struct{}
		owner map[string]string // listening address -> host
	}
}

func newWorld(t *testing.T) *world {
	w := &world{t: t}
	w.mu.cut = map[[2]string]bool{}
	w.mu.conns = map[*cutConn]struct{}{}
	w.mu.owner = map[string]string{}
	return w
}

func pair(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

// cut makes all connections between a and b fail, now and until heal.
func (w *world) cut(a, b string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.cut[pair(a, b)] = true
	for c := range w.mu.conns {
		if c.ends == pair(a, b) {
			c.Conn.Close()
		}
	}
}

func (w *world) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.mu.cut)
}

// hostNet is the world's network as one host sees it.
type hostNet struct {
	w    *world
	host string
}

type cutConn struct {
	net.Conn
	w    *world
	ends [2]string
}

func (c *cutConn) Close() error {
	c.w.mu.Lock()
	delete(c.w.mu.conns, c)
	c.w.mu.Unlock()
	return c.Conn.Close()
}

func (n hostNet) Listen(addr string) (net.Listener, error) {
	ln, err := transport.TCP{}.Listen(addr)
	if err == nil {
		n.w.mu.Lock()
		n.w.mu.owner[ln.Addr().String()] = n.host
		n.w.mu.Unlock()
	}
	return ln, err
}

var errCut = errors.New("network is cut")

func (n hostNet) Dial(ctx context.Context, addr string) (net.Conn, error) {
	raw, err := transport.TCP{}.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	c := &cutConn{Conn: raw, w: n.w, ends: pair(n.host, n.w.mu.owner[addr])}
	if n.w.mu.cut[c.ends] {
		return nil, errors.Join(errCut, raw.Close())
	}
	n.w.mu.conns[c] = struct{}{}
	return c, nil
}

// config is the usual configuration of a host.
func (w *world) config(name string) Config {
	return Config{
		Dir: w.t.TempDir(), NodeName: name, Listen: "127.0.0.1:0", Network: hostNet{w, name},
		Log: slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("host", name),
	}
}

// open opens a host that is closed when the test ends, at the latest.
func (w *world) open(cfg Config) *Cluster {
	w.t.Helper()
	c, err := Open(cfg)
	if err != nil {
		w.t.Fatalf("open %s: %v", cfg.NodeName, err)
	}
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Errorf("close %s: %v", cfg.NodeName, err)
		}
	})
	return c
}

// cluster makes one of the named hosts, all connected.
func (w *world) cluster(names ...string) []*Cluster {
	w.t.Helper()
	var all []*Cluster
	for i, name := range names {
		c := w.open(w.config(name))
		all = append(all, c)
		if i == 0 {
			must(w.t, c.Create(w.t.Context()))
			continue
		}
		w.join(c, all[0])
	}
	w.connected(all...)
	return all
}

func (w *world) join(c, via *Cluster) {
	w.t.Helper()
	tok, err := via.IssueToken(time.Hour)
	must(w.t, err)
	must(w.t, c.Join(w.t.Context(), "", tok))
}

// connected waits until all see all of them alive, and nobody else.
func (w *world) connected(all ...*Cluster) {
	w.t.Helper()
	for _, c := range all {
		eventually(w.t, c, func() bool {
			nodes := c.Nodes()
			alive := 0
			for _, n := range nodes {
				if n.Alive && !n.Pending {
					alive++
				}
			}
			return alive == len(all) && len(nodes) == len(all)
		})
	}
}

// eventually waits for cond, which depends on c.
func eventually(t *testing.T, c *Cluster, cond func() bool) {
	t.Helper()
	changed, cancel := c.Watch()
	defer cancel()
	deadline := time.After(patience)
	recheck := time.NewTicker(10 * time.Millisecond) // for what is not announced: sessions and the passing of time
	defer recheck.Stop()
	for !cond() {
		select {
		case <-changed:
		case <-recheck.C:
		case <-deadline:
			t.Fatalf("%s: still not so after %s; nodes: %+v", c.Self().Name, patience, c.Nodes())
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

// sees waits until c has the value at key; an empty value means none.
func sees(t *testing.T, c *Cluster, key, value string) {
	t.Helper()
	eventually(t, c, func() bool {
		v, _, ok := c.Get(key)
		return string(v) == value && ok == (value != "")
	})
}
