package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"mars/internal/block"
)

// DefaultMaxVisitors is the default of HubConfig.MaxVisitors.
const DefaultMaxVisitors = 128

// keepAlive finds out within 35 seconds that a client's host has gone: such a client would prevent a handover.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}

// HubConfig says where a Hub listens and whom it lets in.
type HubConfig struct {
	Listen string       // HOST:PORT
	TLS    *tls.Config  // if there is one it is required, and should ask for certificates; without, only loopback is possible
	Log    *slog.Logger // nil: silent
	// MaxVisitors bounds the connections that negotiate; 0: DefaultMaxVisitors. Each takes at most some 70 KiB.
	MaxVisitors int
}

// Hub serves any number of exports over one TCP listener. Clients choose one by its name, and may leave the name empty when there is only
// one. From then on a connection belongs to the Server of its export: it counts against that one's limits, keeps only that one from being
// closed, and only that one's Abort cuts it.
//
// Connections that negotiate - strangers yet, with TLS - are few and short-lived: each has handshakeTimeout, and when there are too many of
// them the oldest of the host that has most is cut. So to keep others out one has to be faster than they are, from many hosts.
type Hub struct {
	cfg      HubConfig
	listener net.Listener
	base     string // of the URIs
	stop     chan struct{}
	wg       sync.WaitGroup

	mu struct { // never held together with a Server's lock
		sync.Mutex
		closed   bool
		servers  map[string]*Server // by the name of their export
		visitors []*conn            // those that negotiate, the oldest first
		cut      flood
	}
}

// OpenHub listens. There are no exports yet.
func OpenHub(cfg HubConfig) (*Hub, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxVisitors == 0 {
		cfg.MaxVisitors = DefaultMaxVisitors
	}
	lc := net.ListenConfig{KeepAliveConfig: keepAlive}
	l, err := lc.Listen(context.Background(), "tcp", cfg.Listen)
	if err != nil {
		return nil, err // names the address
	}
	base, err := baseURI(cfg, l.Addr())
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	h := &Hub{cfg: cfg, listener: l, base: base, stop: make(chan struct{})}
	h.mu.servers = make(map[string]*Server)
	h.wg.Go(func() { // ends with Close
		d := door{log: cfg.Log, stop: h.stop, start: h.start}
		if err := d.accept(l); err != nil {
			cfg.Log.Error("NBD over TCP no longer served", "err", err)
		}
	})
	return h, nil
}

// baseURI is what clients have to name in front of an export. A hub that listens on all addresses is reached by the name of its host.
func baseURI(cfg HubConfig, at net.Addr) (string, error) {
	host, _, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return "", err
	}
	bound, err := netip.ParseAddrPort(at.String())
	if err != nil {
		return "", err
	}
	if cfg.TLS == nil && !bound.Addr().IsLoopback() {
		return "", fmt.Errorf("listening on %v needs TLS: only loopback is for everybody", bound)
	}
	if bound.Addr().IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			return "", err
		}
	}
	scheme := "nbd"
	if cfg.TLS != nil {
		scheme = "nbds"
	}
	return scheme + "://" + net.JoinHostPort(host, fmt.Sprint(bound.Port())), nil
}

// Show adds an export. It fails with block.ErrBusy while there is another one of that name.
func (h *Hub) Show(cfg Config) (*Export, error) {
	if cfg.Export == "" {
		return nil, errors.New("NBD export without a name")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.closed {
		return nil, fmt.Errorf("NBD over TCP: %w", block.ErrClosed)
	}
	if h.mu.servers[cfg.Export] != nil {
		return nil, fmt.Errorf("NBD export %q is served already: %w", cfg.Export, block.ErrBusy)
	}
	e := &Export{hub: h, name: cfg.Export, server: New(cfg)}
	h.mu.servers[cfg.Export] = e.server
	return e, nil
}

// withdraw takes an export out of the choice.
func (h *Hub) withdraw(name string, s *Server) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.servers[name] == s { // else somebody has shown another one meanwhile
		delete(h.mu.servers, name)
	}
}

// Close cuts all connections, of all exports, and waits for all goroutines.
func (h *Hub) Close() {
	h.mu.Lock()
	if !h.mu.closed {
		h.mu.closed = true
		close(h.stop)
	}
	servers, visitors := maps.Clone(h.mu.servers), slices.Clone(h.mu.visitors)
	clear(h.mu.servers)
	h.mu.Unlock()

	h.listener.Close()
	for _, c := range visitors {
		c.abort()
	}
	for _, s := range servers {
		s.Abort()
	}
	h.wg.Wait()
}

func (h *Hub) security() (*tls.Config, bool) { return h.cfg.TLS, h.cfg.TLS != nil }

func (h *Hub) find(name string) *Server {
	h.mu.Lock()
	defer h.mu.Unlock()
	if name == "" && len(h.mu.servers) == 1 {
		for _, s := range h.mu.servers {
			return s
		}
	}
	return h.mu.servers[name]
}

func (h *Hub) exports() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.mu.servers))
}

// start serves one connection on a goroutine of its own.
func (h *Hub) start(nc net.Conn) {
	if out := h.admit(nc); out != nil {
		out.Close()
	}
}

// admit lets a visitor in; it returns the connection that has to go, which may be that very one.
func (h *Hub) admit(nc net.Conn) (out net.Conn) {
	c := newVisitor(h, nc)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.closed {
		return nc
	}
	if len(h.mu.visitors) >= h.cfg.MaxVisitors {
		out = h.showOut()
	}
	h.mu.visitors = append(h.mu.visitors, c)
	h.wg.Go(func() { h.run(c) }) // ends with the connection
	return out
}

// showOut makes room for another visitor. The lock is held.
func (h *Hub) showOut() net.Conn {
	i := busiest(h.mu.visitors)
	out := h.mu.visitors[i].raw
	h.mu.visitors = slices.Delete(h.mu.visitors, i, i+1)
	if n := h.mu.cut.one(); n > 0 {
		h.cfg.Log.Warn("NBD connections cut: too many negotiate at the same time", "max", h.cfg.MaxVisitors, "cut", n, "client", out.RemoteAddr().String())
	}
	return out
}

// busiest returns the index of the first visitor from the host that has most.
func busiest(visitors []*conn) int {
	count := make(map[netip.Prefix]int)
	most := 0
	for _, c := range visitors {
		host := hostOf(c.raw)
		count[host]++
		most = max(most, count[host])
	}
	return slices.IndexFunc(visitors, func(c *conn) bool { return count[hostOf(c.raw)] == most })
}

// hostOf is whom a connection comes from. With IPv6 that is a network: a host there has as many addresses as it likes.
func hostOf(nc net.Conn) netip.Prefix {
	at, err := netip.ParseAddrPort(nc.RemoteAddr().String())
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := at.Addr().Unmap().WithZone(""), 64
	if addr.Is4() {
		bits = 32
	}
	p, _ := addr.Prefix(bits) // fits the address
	return p
}

func (h *Hub) run(c *conn) {
	defer c.raw.Close()
	err := c.negotiate()
	h.forget(c) // if it has not entered
	if c.srv == nil {
		h.cfg.Log.Debug("NBD negotiation ended", "err", err)
		return
	}
	if err == nil {
		err = c.transmit()
	}
	c.srv.release(c, err)
}

func (h *Hub) entered(c *conn) { h.forget(c) }

// forget: the visitor has become a client, or has left.
func (h *Hub) forget(c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.Index(h.mu.visitors, c); i >= 0 {
		h.mu.visitors = slices.Delete(h.mu.visitors, i, i+1)
	}
}
