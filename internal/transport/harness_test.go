package transport

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"mars/internal/identity"
)

const patience = 15 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// members is a membership list that tests change.
type members struct {
	mu  sync.Mutex
	ids map[string]bool
}

func (m *members) has(_ Class, id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ids[id]
}

func (m *members) set(id string, in bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ids == nil {
		m.ids = map[string]bool{}
	}
	m.ids[id] = in
}

// host is one endpoint that listens, with its own idea of who is a member.
type host struct {
	*Endpoint
	t       *testing.T
	id      *identity.Identity
	members *members
	addr    string
}

// echo answers each frame with the same.
func echo(_ context.Context, c *Conn) {
	var buf []byte
	for {
		kind, payload, err := c.ReadFrame(buf)
		if err != nil || c.WriteFrame(kind, payload) != nil || c.Flush() != nil {
			return
		}
		buf = payload
	}
}

// hang reads nothing and says nothing.
func hang(ctx context.Context, _ *Conn) { <-ctx.Done() }

func newIdentity(t testing.TB) *identity.Identity {
	t.Helper()
	id, err := identity.Create(time.Now())
	must(t, err)
	return id
}

func admit(t testing.TB, id *identity.Identity) *identity.Identity {
	t.Helper()
	req, err := identity.NewRequest()
	must(t, err)
	grant, err := id.Sign(req.CSR(), time.Now())
	must(t, err)
	other, err := req.Complete(grant)
	must(t, err)
	return other
}

func newHost(t *testing.T, id *identity.Identity, change ...func(*Config)) *host {
	t.Helper()
	h := &host{t: t, id: id, members: &members{}}
	h.members.set(id.Node(), true)
	cfg := Config{Identity: id, Members: h.members.has, Handler: echo, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, c := range change {
		c(&cfg)
	}
	h.Endpoint = New(cfg)
	ln, err := TCP{}.Listen("127.0.0.1:0")
	must(t, err)
	h.serve(ln)
	return h
}

// serve runs until the endpoint is closed, at the end of the test at the latest.
func (h *host) serve(ln net.Listener) {
	h.addr = ln.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.Serve(ln); err != nil {
			h.t.Errorf("serve: %v", err)
		}
	})
	h.t.Cleanup(func() {
		must(h.t, h.Close())
		wg.Wait()
	})
}

// two hosts of one cluster that know each other.
func two(t *testing.T, change ...func(*Config)) (a, b *host) {
	t.Helper()
	id := newIdentity(t)
	a, b = newHost(t, id, change...), newHost(t, admit(t, id), change...)
	a.members.set(b.id.Node(), true)
	b.members.set(a.id.Node(), true)
	return a, b
}

func (h *host) dial(to *host, class Class) (*Conn, error) {
	return h.Dial(h.t.Context(), to.addr, Target{Class: class, Node: to.id.Node()})
}

func (h *host) mustDial(to *host, class Class) *Conn {
	h.t.Helper()
	c, err := h.dial(to, class)
	must(h.t, err)
	h.t.Cleanup(func() { c.Close() })
	return c
}

// roundTrip sends one frame and expects it back.
func roundTrip(t *testing.T, c *Conn) {
	t.Helper()
	must(t, c.WriteFrame(7, []byte("pi"), []byte("ng")))
	must(t, c.Flush())
	kind, payload, err := c.ReadFrame(nil)
	if err != nil || kind != 7 || string(payload) != "ping" {
		t.Fatalf("frame %d %q, %v", kind, payload, err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func eventually(t *testing.T, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("still not so")
		}
	}
}

// rawDial connects without any protocol.
func rawDial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}
