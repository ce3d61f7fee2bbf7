package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"mars/tests/nbdclient"
	"mars/tests/stamp"
)

// Bounds of a flood, and those of the daemon.
const (
	flooders    = 10_000
	floodAtOnce = 64
	daemonFiles = 1024        // its RLIMIT_NOFILE, the usual one: with more it could hide that it collects connections
	floodFiles  = 2*128 + 128 // negotiating ones, clients of the export, and some for what else goes on
	floodMemory = 128 * mib   // what its resident memory may grow by
	floodLog    = 300 << 10   // above debug level: at most some lines for each of those who are let in
)

// TestTenThousandConnections: that many connections to one listener that are all kept open as long as the daemon lets them: silent ones, half
// greetings, rubbish, and real clients. The daemon keeps no more than it may, in files and memory, sends the others away at once, and does not fill its log;
// who was there before works on as if nothing happened, marsadm answers, and when it is over newcomers are let in again.
func TestTenThousandConnections(t *testing.T) {
	needFiles(t, flooders+1000)
	w := newWorld(t, 1)
	a := w.nodes[0]
	a.do("create-cluster")
	a.stop()
	tcp := freeAddr(t)
	a.flags = append(a.flags, "--nbd-listen", tcp)
	a.start()
	a.creates(res)
	limit := unix.Rlimit{Cur: daemonFiles, Max: daemonFiles}
	if err := unix.Prlimit(a.cmd.Process.Pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	j := &stamp.Journal{}
	for _, at := range []struct{ network, addr string }{{"tcp", tcp}, {"unix", a.socket(res)}} {
		t.Run(at.network, func(t *testing.T) { floodOne(t, a, j, at.network, at.addr) })
	}
}

func floodOne(t *testing.T, a *node, j *stamp.Journal, network, addr string) {
	application := a.starts(res, j)
	guest := openAt(t, network, addr)
	defer guest.Close()
	application.runs(100)
	before, logged := usage(t, a), len(a.log(t))

	f := &floodOf{network: network, addr: addr}
	f.start()
	defer f.end()
	most := before
	until(t, "all connections have been made", func() bool {
		now := usage(t, a)
		most.files, most.memory = max(most.files, now.files), max(most.memory, now.memory)
		readSome(t, guest)
		a.do("view")
		return f.over.Load()
	})
	application.runs(100)
	readSome(t, guest)
	t.Logf("%d connections made, %d are clients, %d were sent away; the daemon had %d files (before %d) and %d MiB (before %d)",
		f.made.Load(), f.clients.Load(), f.refused.Load(), most.files, before.files, most.memory/mib, before.memory/mib)
	if f.clients.Load() == 0 || f.refused.Load() == 0 || f.hung.Load() > 0 {
		t.Errorf("%d clients, %d sent away, %d without an answer", f.clients.Load(), f.refused.Load(), f.hung.Load())
	}
	if n := most.files - before.files; n > floodFiles {
		t.Errorf("the daemon has opened %d files, more than %d", n, floodFiles)
	}
	if n := most.memory - before.memory; n > floodMemory {
		t.Errorf("the daemon's memory has grown by %d MiB, more than %d", n/mib, floodMemory/mib)
	}
	f.end()
	if n := len(a.log(t)) - logged; n > floodLog {
		t.Errorf("the daemon has logged %d bytes, more than %d", n, floodLog)
	}
	until(t, "a newcomer is let in", func() bool {
		conn, err := net.Dial(network, addr)
		if err != nil {
			return false
		}
		c, err := nbdclient.Open(conn, res)
		if err != nil {
			return false
		}
		readSome(t, c)
		return c.Close() == nil
	})
	a.checkDevice(res, j, application.stops())
}

// needFiles raises how many files this process may have open.
func needFiles(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur >= n {
		return
	}
	limit.Cur, limit.Max = n, max(n, limit.Max)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		require(t, fmt.Sprintf("cannot open %d files: %v", n, err))
	}
}

func openAt(t *testing.T, network, addr string) *nbdclient.Client {
	t.Helper()
	conn, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := nbdclient.Open(conn, res)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func readSome(t *testing.T, c *nbdclient.Client) {
	t.Helper()
	if _, err := c.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Fatalf("somebody else's request fails: %v", err)
	}
}

// log is what the daemon has logged, without what is logged only for tests.
func (x *node) log(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(x.logFile())
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for line := range bytes.Lines(b) {
		if !bytes.Contains(line, []byte("level=DEBUG")) {
			out = append(out, line...)
		}
	}
	return out
}

type resources struct{ files, memory int }

// usage is what the daemon has now.
func usage(t *testing.T, x *node) (u resources) {
	t.Helper()
	proc := filepath.Join("/proc", strconv.Itoa(x.cmd.Process.Pid))
	files, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(status) {
		if n, err := fmt.Sscanf(string(line), "VmRSS: %d kB", &u.memory); n == 1 && err == nil {
			u.memory <<= 10
			break
		}
	}
	u.files = len(files)
	return u
}

// floodOf is ten thousand connections.
type floodOf struct {
	network, addr                string
	made, clients, refused, hung atomic.Int64
	over                         atomic.Bool
	cancel                       context.CancelFunc
	wg                           sync.WaitGroup
	mu                           sync.Mutex
	open                         []func()
}

func (f *floodOf) start() {
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	var next atomic.Int64
	var wg sync.WaitGroup
	for range floodAtOnce {
		wg.Go(func() { // ends with the last connection, or with ctx
			for ctx.Err() == nil {
				n := next.Add(1)
				if n > flooders {
					return
				}
				f.one(ctx, n)
			}
		})
	}
	f.wg.Go(func() { wg.Wait(); f.over.Store(true) }) // ends with those
}

// end closes all connections. It may be called again.
func (f *floodOf) end() {
	f.cancel()
	f.wg.Wait()
	for _, closeIt := range f.open {
		closeIt()
	}
	f.open = nil
}

func (f *floodOf) keep(closeIt func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = append(f.open, closeIt)
}

// one makes the connection number n, from a host of its own.
func (f *floodOf) one(ctx context.Context, n int64) {
	d := net.Dialer{}
	if f.network == "tcp" {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 1, byte(n>>8), byte(n))}
	}
	conn, err := d.DialContext(ctx, f.network, f.addr)
	for errors.Is(err, syscall.EAGAIN) && ctx.Err() == nil { // the backlog of a Unix socket is full
		conn, err = d.DialContext(ctx, f.network, f.addr)
	}
	if err != nil {
		f.refused.Add(1)
		return
	}
	f.made.Add(1)
	switch n % 5 {
	case 0: // silent
	case 1: // rubbish
		_, _ = conn.Write(rubbish(n)) // it may have been cut already
	case 2: // half a greeting
		_, _ = conn.Write([]byte{0, 0})
	default:
		f.client(conn)
		return
	}
	f.keep(func() { conn.Close() })
}

func rubbish(n int64) []byte {
	rnd := rand.New(rand.NewPCG(uint64(n), 5))
	p := make([]byte, 64+rnd.IntN(1000))
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	return p
}

// client tries to be a real one.
func (f *floodOf) client(conn net.Conn) {
	c, err := nbdclient.Open(conn, res)
	switch {
	case err == nil:
		f.clients.Add(1)
		f.keep(c.Abort)
	case errors.Is(err, os.ErrDeadlineExceeded):
		f.hung.Add(1)
	default:
		f.refused.Add(1)
	}
}
