// Package faultnet is a network that tests can damage: every node is reached through a TCP proxy of this process, and each direction between
// two nodes is a Link that can be cut, stalled, slowed down, or broken in the middle of whatever is being sent.
//
// Who dials is found out from /proc, so that the nodes need no configuration but the address of their proxy.
package faultnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Net is all nodes and the links between them. Close it after the nodes have ended.
type Net struct {
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	links   map[pair]*Link
	proxies map[string]*proxy
	pids    map[string]int
}

type pair struct{ from, to string }

type proxy struct {
	node, target string
	l            net.Listener
}

// New returns a network without nodes.
func New() *Net {
	n := &Net{links: map[pair]*Link{}, proxies: map[string]*proxy{}, pids: map[string]int{}}
	n.ctx, n.stop = context.WithCancel(context.Background())
	return n
}

// Add puts a node that listens on target behind a proxy and returns the proxy's address.
func (n *Net) Add(node, target string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("proxy of %s: %w", node, err)
	}
	p := &proxy{node: node, target: target, l: l}
	n.mu.Lock()
	n.proxies[node] = p
	n.mu.Unlock()
	n.wg.Go(func() { n.serve(p) }) // ends when Close closes the listener
	return l.Addr().String(), nil
}

// Running notes which process a node is at present, 0 = none.
func (n *Net) Running(node string, pid int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pids[node] = pid
}

// Link returns the direction of traffic between two nodes, whoever has dialled.
func (n *Net) Link(from, to string) *Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := pair{from, to}
	l := n.links[p]
	if l == nil {
		l = &Link{changed: make(chan struct{}), breakAfter: -1}
		n.links[p] = l
	}
	return l
}

// Cut separates two nodes: connections break, new ones are refused.
func (n *Net) Cut(a, b string) { n.both(a, b, (*Link).cut) }

// Stall lets nothing through between two nodes, without a sign: connections stay open.
func (n *Net) Stall(a, b string) { n.both(a, b, (*Link).Stall) }

// Heal repairs both directions.
func (n *Net) Heal(a, b string) { n.both(a, b, (*Link).Heal) }

func (n *Net) both(a, b string, f func(*Link)) {
	f(n.Link(a, b))
	f(n.Link(b, a))
}

// Isolate cuts a node off from all others; Rejoin heals that.
func (n *Net) Isolate(node string) { n.toAll(node, n.Cut) }

// Rejoin heals all links of a node.
func (n *Net) Rejoin(node string) { n.toAll(node, n.Heal) }

func (n *Net) toAll(node string, f func(a, b string)) {
	n.mu.Lock()
	var others []string
	for name := range n.proxies {
		if name != node {
			others = append(others, name)
		}
	}
	n.mu.Unlock()
	for _, o := range others {
		f(node, o)
	}
}

// Close ends everything.
func (n *Net) Close() {
	n.stop()
	n.mu.Lock()
	for _, p := range n.proxies {
		p.l.Close()
	}
	n.mu.Unlock()
	n.wg.Wait()
}

// How often and how soon to look again for who has dialled.
const (
	lookups     = 20
	lookupAgain = 5 * time.Millisecond
)

func (n *Net) serve(p *proxy) {
	for {
		conn, err := p.l.Accept()
		if err != nil {
			return // closed
		}
		n.wg.Go(func() { n.carry(p, conn) }) // ends with the connection, at the latest with n.ctx
	}
}

// carry forwards one connection in both directions until it breaks.
func (n *Net) carry(p *proxy, client net.Conn) {
	defer reset(client)
	from := n.dialler(client.RemoteAddr())
	for tries := 0; from == "" && tries < lookups; tries++ { // the kernel's table may miss a line while it changes
		if wait(n.ctx, lookupAgain) != nil {
			return
		}
		from = n.dialler(client.RemoteAddr())
	}
	if from == "" {
		return // it is gone already
	}
	there, back := n.Link(from, p.node), n.Link(p.node, from)
	if there.isCut() || back.isCut() {
		return
	}
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer reset(server)
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { defer cancel(); there.pump(ctx, server, client) })
	wg.Go(func() { defer cancel(); back.pump(ctx, client, server) })
	<-ctx.Done()
	reset(client)
	reset(server)
	wg.Wait()
}

// reset closes a connection so that the other side notices at once, as when a machine has gone.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

// dialler finds the node that a connection comes from: the process that has the socket.
func (n *Net) dialler(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return ""
	}
	inode, err := socketInode(tcp.Port)
	if err != nil {
		return ""
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for node, pid := range n.pids {
		if pid != 0 && owns(pid, inode) {
			return node
		}
	}
	return ""
}

// socketInode looks up the socket with that local port on 127.0.0.1, in the kernel's table.
func socketInode(port int) (string, error) {
	table, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		return "", err
	}
	local := fmt.Sprintf("0100007F:%04X", port)
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) > 9 && f[1] == local && f[9] != "0" {
			return f[9], nil
		}
	}
	return "", errors.New("no such socket")
}

func owns(pid int, inode string) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && to == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}

// wait waits for d or the end of ctx.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
