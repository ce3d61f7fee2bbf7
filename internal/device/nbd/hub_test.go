package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"mars/internal/block"
)

// openHub runs a hub on loopback until the test ends.
func openHub(t testing.TB, cfg HubConfig) *Hub {
	t.Helper()
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	h, err := OpenHub(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// show shows dev at h, and checks at the end of the test that its server has given back all memory.
func (h *Hub) show(t testing.TB, name string, dev block.Device) *Export {
	t.Helper()
	e, err := h.Show(Config{Export: name, Dev: dev})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Abort()
		waitFor(t, "all payload memory to be given back", func() bool { return e.server.inUse() == 0 })
	})
	return e
}

func (h *Hub) address() string { return h.listener.Addr().String() }

// visit connects to h and exchanges greetings.
func visit(t testing.TB, h *Hub) *client {
	t.Helper()
	nc, err := net.Dial("tcp", h.address())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, nc)
	c.greet()
	return c
}

// enter connects to an export of h and begins the transmission phase.
func enter(t testing.TB, h *Hub, name string) *client {
	t.Helper()
	c := visit(t, h)
	c.start(name)
	return c
}

func (c *client) leave(t testing.TB, e *Export) {
	t.Helper()
	c.nc.Close()
	waitFor(t, "the client to be gone", func() bool { return len(e.Users()) == 0 })
}

// list asks what there is.
func (c *client) list() []string {
	c.t.Helper()
	c.option(optList, nil)
	var names []string
	for {
		kind, data := c.optionReply()
		if kind == repAck {
			return names
		}
		if kind != repServer || int(binary.BigEndian.Uint32(data)) != len(data)-4 {
			c.t.Fatalf("list: reply %#x %q", kind, data)
		}
		names = append(names, string(data[4:]))
	}
}

// filled is a device with something recognizable at its beginning.
func filled(b byte) *batchDevice {
	dev := newBatchDevice(testSize)
	copy(dev.data, bytes.Repeat([]byte{b}, 4096))
	return dev
}

func TestTheNameChoosesTheExport(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{})
	a, b := filled('a'), filled('b')
	h.show(t, "b", b)
	h.show(t, "a", a)
	if names := visit(t, h).list(); !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("list is %q", names)
	}
	for _, name := range []string{"a", "b"} {
		c := enter(t, h, name)
		if got := c.read(0, 512); got[0] != name[0] {
			t.Errorf("export %s begins with %c", name, got[0])
		}
		c.write(4096, bytes.Repeat([]byte(name), 512))
	}
	if a.data[4096] != 'a' || b.data[4096] != 'b' {
		t.Errorf("writes went to %c and %c", a.data[4096], b.data[4096])
	}
}

func TestOldOptionChoosesTheExport(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{})
	h.show(t, "a", filled('a'))
	h.show(t, "b", filled('b'))
	c := visit(t, h)
	c.option(optExportName, []byte("b"))
	if b := c.recv(10); binary.BigEndian.Uint64(b) != testSize {
		t.Errorf("reply is %x", b)
	}
	if got := c.read(0, 512); got[0] != 'b' {
		t.Errorf("export begins with %c", got[0])
	}
}

func TestUnknownNames(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{})
	refused := func(name string) {
		t.Helper()
		c := visit(t, h)
		c.expectOption(optInfo, infoData(name), repErrUnknown)
		c.expectOption(optGo, infoData(name), repErrUnknown)
		c.expectOption(optStructuredReply, nil, repAck)
		c.expectOption(optSetMetaContext, metaData(name, allocationContext), repErrUnknown)
		c.expectOption(optListMetaContext, metaData(name), repErrUnknown)
		c.option(optExportName, []byte(name))
		c.expectClosed()
	}
	refused("")
	if names := visit(t, h).list(); len(names) != 0 {
		t.Errorf("list of an empty hub is %q", names)
	}
	a := h.show(t, "a", filled('a'))
	refused("b")
	enter(t, h, "").leave(t, a) // the only one
	h.show(t, "b", filled('b'))
	refused("")
	refused("c")
}

// TestContextOfAnotherExport: a selection counts for the export that it was made for.
func TestContextOfAnotherExport(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{})
	h.show(t, "a", filled('a'))
	h.show(t, "b", filled('b'))
	for name, want := range map[string]errno{"a": 0, "b": errnoInvalid} {
		c := visit(t, h)
		c.expectOption(optStructuredReply, nil, repAck)
		c.structured = true
		c.expectOption(optSetMetaContext, metaData("a", allocationContext), repMetaContext)
		c.optionReply()
		c.start(name)
		if a := c.do(header{cmd: cmdBlockStatus, length: 8192}, nil); a.errno != want {
			t.Errorf("block status of %s: error %d, want %d", name, a.errno, want)
		}
	}
}

// TestClientKeepsOnlyItsOwnExport is the handover of one resource while another one is in use.
func TestClientKeepsOnlyItsOwnExport(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{})
	a, b := h.show(t, "a", filled('a')), h.show(t, "b", filled('b'))
	if want := "nbd://" + h.address() + "/a"; a.Path() != want {
		t.Errorf("path is %s, want %s", a.Path(), want)
	}
	c, visitor := enter(t, h, "a"), visit(t, h)
	if users, want := a.Users(), []string{"NBD client " + c.nc.LocalAddr().String()}; !slices.Equal(users, want) {
		t.Errorf("users are %q, want %q", users, want)
	}
	if err := a.Close(t.Context()); !errors.Is(err, block.ErrBusy) || !strings.Contains(err.Error(), c.nc.LocalAddr().String()) {
		t.Errorf("close of a used export: %v", err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Errorf("close of the other: %v", err)
	}
	visitor.expectOption(optGo, infoData("b"), repErrUnknown)
	if names := visitor.list(); !slices.Equal(names, []string{"a"}) {
		t.Errorf("list is %q", names)
	}
	c.read(0, 512)
	c.leave(t, a)
	for range 2 {
		if err := a.Close(t.Context()); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	visitor.expectOption(optGo, infoData("a"), repErrUnknown)
	h.show(t, "a", filled('x'))
	visitor.start("a")
	if got := visitor.read(0, 512); got[0] != 'x' {
		t.Errorf("shown again, the export begins with %c", got[0])
	}
	if err := a.Close(t.Context()); err != nil { // of the old one: nothing to the new one
		t.Errorf("close: %v", err)
	}
	visitor.read(0, 512)
}

func TestAbortCutsOnlyItsOwnClients(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{})
	a := h.show(t, "a", filled('a'))
	h.show(t, "b", filled('b'))
	ca, cb := enter(t, h, "a"), enter(t, h, "b")
	a.Abort()
	ca.expectClosed()
	cb.read(0, 512)
	visit(t, h).expectOption(optGo, infoData("a"), repErrUnknown)
}

// TestNobodyEntersAClosedExport: a client that has found the export before it was closed.
func TestNobodyEntersAClosedExport(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{})
	a := h.show(t, "a", filled('a'))
	if err := a.server.Close(t.Context()); err != nil { // and the hub has not heard yet
		t.Fatal(err)
	}
	visit(t, h).expectOption(optGo, infoData("a"), repErrShutdown)
}

func TestShowRefuses(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{})
	h.show(t, "a", filled('a'))
	if _, err := h.Show(Config{Export: "a", Dev: filled('a')}); !errors.Is(err, block.ErrBusy) {
		t.Errorf("show twice: %v", err)
	}
	if _, err := h.Show(Config{Dev: filled('a')}); err == nil {
		t.Error("an export without a name is shown")
	}
	h.Close()
	if _, err := h.Show(Config{Export: "b", Dev: filled('b')}); !errors.Is(err, block.ErrClosed) {
		t.Errorf("show at a closed hub: %v", err)
	}
}

func TestHubCloseCutsEverybody(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{})
	h.show(t, "a", filled('a'))
	c, visitor := enter(t, h, "a"), visit(t, h)
	h.Close()
	c.expectClosed()
	visitor.expectClosed()
	if nc, err := net.Dial("tcp", h.address()); err == nil {
		nc.Close()
		t.Error("the hub still listens")
	}
	h.Close()
}

func TestOpenHubRefuses(t *testing.T) {
	t.Parallel()
	taken := openHub(t, HubConfig{}).address()
	for name, listen := range map[string]string{"everywhere without TLS": "0.0.0.0:0", "an address in use": taken, "no address": "x"} {
		if h, err := OpenHub(HubConfig{Listen: listen}); err == nil {
			h.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

// TestFlood: ever new connections that never get anywhere neither keep a client from its data nor another from coming, and there are never
// more of them than may be.
func TestFlood(t *testing.T) {
	t.Parallel()
	const limit = 16
	var log logBuffer
	h := openHub(t, HubConfig{MaxVisitors: limit, Log: slog.New(slog.NewTextHandler(&log, nil))})
	a := h.show(t, "a", filled('a'))
	c := enter(t, h, "a")
	for i := range 20 * limit {
		nc, err := net.Dial("tcp", h.address())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if i%limit == 0 {
			c.read(0, 512)
			enter(t, h, "a")
		}
	}
	if n := h.visitorCount(); n > limit {
		t.Errorf("%d visitors, at most %d are allowed", n, limit)
	}
	if n := len(a.server.Clients()); n != 21 {
		t.Errorf("%d clients, want 21", n)
	}
	if n := strings.Count(log.String(), "too many negotiate"); n != 1 {
		t.Errorf("the flood is reported %d times", n)
	}
}

func (h *Hub) visitorCount() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.mu.visitors)
}

// logBuffer is a place for a logger to write to.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestFullExport: one export's clients do not take the places of another's.
func TestFullExport(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{})
	a, err := h.Show(Config{Export: "a", Dev: filled('a'), MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	h.show(t, "b", filled('b'))
	c := enter(t, h, "a")
	enter(t, h, "a")
	visitor := visit(t, h)
	visitor.expectOption(optGo, infoData("a"), repErrPolicy)
	old := visit(t, h)
	old.option(optExportName, []byte("a"))
	old.expectClosed()
	enter(t, h, "b").read(0, 512)
	c.nc.Close()
	waitFor(t, "a place", func() bool { return len(a.server.Clients()) == 1 })
	visitor.start("a")
	visitor.read(0, 512)
}

// addressed is a connection from somewhere.
type addressed struct {
	script
	from string
}

func (a addressed) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(a.from))
}

func TestBusiest(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		from []string
		want int
	}{
		{[]string{"192.0.2.1:1", "192.0.2.2:1"}, 0},
		{[]string{"192.0.2.1:1", "192.0.2.2:1", "192.0.2.2:2", "192.0.2.1:2", "192.0.2.2:3"}, 1},
		{[]string{"192.0.2.1:1", "[::ffff:192.0.2.2]:1", "192.0.2.2:2"}, 1},
		{[]string{"[2001:db8::1]:1", "[2001:db8:0:1::1]:1", "[2001:db8:0:1:ffff::2]:1"}, 1},
		{[]string{"[fe80::1%1]:1", "[2001:db8::1]:1"}, 0},
	} {
		var visitors []*conn
		for _, from := range tt.from {
			visitors = append(visitors, &conn{raw: addressed{from: from}})
		}
		if got := busiest(visitors); got != tt.want {
			t.Errorf("%q: the visitor to go is %d, want %d", tt.from, got, tt.want)
		}
	}
}

func TestSilentVisitorIsCut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &Hub{cfg: HubConfig{MaxVisitors: 1, Log: slog.New(slog.DiscardHandler)}, stop: make(chan struct{})}
		ours, theirs := net.Pipe()
		h.start(theirs)
		c := &client{t: t, nc: ours}
		c.greet()
		c.expectClosed()
		h.wg.Wait()
		if len(h.mu.visitors) != 0 {
			t.Error("the visitor still counts")
		}
	})
}

// TestComingAndGoing lets clients come while exports are shown and withdrawn: whoever is in keeps the export open, and nothing is lost count of.
func TestComingAndGoing(t *testing.T) {
	t.Parallel()
	h := openHub(t, HubConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				come(t, h)
			}
		})
	}
	for i := range 200 {
		e, err := h.Show(Config{Export: "a", Dev: filled('a')})
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, "somebody to come", func() bool { return i%4 != 0 || len(e.Users()) > 0 })
		if err := e.Close(t.Context()); err != nil {
			if !errors.Is(err, block.ErrBusy) {
				t.Errorf("close: %v", err)
			}
			e.Abort()
		}
		if users := e.Users(); len(users) != 0 {
			t.Errorf("users of a withdrawn export: %q", users)
		}
	}
	cancel()
	wg.Wait()
	waitFor(t, "all visitors to be gone", func() bool { return h.visitorCount() == 0 })
}

// come tries to read, and must get either refusals or data.
func come(t *testing.T, h *Hub) {
	nc, err := net.Dial("tcp", h.address())
	if err != nil {
		t.Errorf("dial: %v", err)
		return
	}
	defer nc.Close()
	b := binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	b = append(b, optionBytes(optGo, infoData("a"))...)
	if _, err := nc.Write(b); err != nil {
		return // cut by Abort
	}
	_, _ = nc.Read(make([]byte, 100)) // whatever it is
}
