package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mars/internal/control"
	"mars/internal/transport"
	"mars/tests/stamp"
)

// loris is connections that are kept open and say one byte now and then, or nothing.
type loris struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

const (
	lorisOpens = 300 // of each kind
	lorisHosts = 12
	lorisSays  = 500 * time.Millisecond
)

// starts keeps n connections of one kind open, anew whenever they are cut, until end.
func (l *loris) starts(ctx context.Context, n int, open func() (net.Conn, error), say string) {
	for range n {
		l.wg.Go(func() { // ends with ctx
			for ctx.Err() == nil {
				l.one(ctx, open, say)
			}
		})
	}
}

func (l *loris) one(ctx context.Context, open func() (net.Conn, error), say string) {
	tick := time.NewTicker(lorisSays)
	defer tick.Stop()
	conn, err := open()
	if err != nil {
		if conn != nil {
			conn.Close()
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		return
	}
	defer conn.Close()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if i < len(say) {
			if _, err := conn.Write([]byte{say[i]}); err != nil {
				return
			}
			continue
		}
		if err := conn.SetReadDeadline(time.Now()); err != nil {
			return
		}
		if _, err := conn.Read(make([]byte, 4096)); err != nil && !os.IsTimeout(err) {
			return // cut: the next one
		}
	}
}

// TestSlowLoris holds hundreds of connections to each listener of a daemon that never come to the point. Members, newcomers, clients and operators
// get through all the same.
func TestSlowLoris(t *testing.T) {
	w := newCluster(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	a.stop()
	tcp := freeAddr(t)
	a.flags = append(a.flags, "--nbd-listen", tcp)
	a.start()
	a.creates(res)
	b.gets(res)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	before := usage(t, a)

	ctx, cancel := context.WithCancel(context.Background())
	l := loris{cancel: cancel}
	w.onEnd(func() { l.cancel(); l.wg.Wait() })
	var made atomic.Uint32
	dial := func(network, addr string) func() (net.Conn, error) {
		return func() (net.Conn, error) {
			d := net.Dialer{Timeout: patience}
			if network == "tcp" { // from several hosts, and from others than those who are in the right
				d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 2, 0, byte(1+made.Add(1)%lorisHosts))}
			}
			return d.DialContext(ctx, network, addr)
		}
	}
	join := func() (net.Conn, error) {
		conn, err := dial("tcp", a.listen)()
		if err != nil {
			return nil, err
		}
		c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{string(transport.Join)}})
		return c, c.HandshakeContext(ctx)
	}
	l.starts(ctx, lorisOpens, dial("tcp", a.listen), "\x16\x03\x01\x01\x00") // the beginning of a greeting
	l.starts(ctx, lorisOpens, join, "\x01\x00\x00")
	l.starts(ctx, lorisOpens, dial("tcp", tcp), "\x00\x00\x00\x03IHAVE")
	l.starts(ctx, 100, dial("unix", a.socket(res)), "\x00\x00")
	l.starts(ctx, lorisOpens, dial("unix", filepath.Join(a.dir, control.SocketName)), "POST /v1/command HTTP/1.1\r\nHost: mars\r\n")

	for range 3 {
		application.runs(200)
		guest := openAt(t, "tcp", tcp)
		readSome(t, guest)
		guest.Close()
		a.do("view")
		b.kill()
		b.start()
		b.awaitSight(a, true)
		a.awaitSight(b, true)
	}
	w.addNode("delta").joins(a)
	if n := usage(t, a).files - before.files; n > 900 { // 256 handshakes, 64 newcomers, 128 visitors, 128 clients, 160 callers
		t.Errorf("the daemon has opened %d files", n)
	}
	must := application.stops()
	settle(res, a, b)
	b.checkDisk(res, j, must)
	checkEqual(t, res, a, b)
}

// badNames lead elsewhere, hide something, or are too long.
var badNames = []string{"", ".", "..", "../x", "a/b", "/etc/passwd", "a\x00b", "a\nb", "a\tb", "a b", "-rf", "ü", "\u202egnp", "\xff\xfe", "$(reboot)", "a;b", strings.Repeat("n", 64), strings.Repeat("n", 4096)}

// TestBadNames: somebody who speaks to the control socket without marsadm gets nowhere with such names, in no place of a command, and leaves nothing
// behind in the file system.
func TestBadNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	a := w.nodes[0]
	a.do("create-cluster")
	a.creates(res)
	disk := makeDisk(t, filepath.Join(w.root, "other.img"), mib)
	before := tree(t, w.root)
	for _, name := range badNames {
		for _, c := range []control.Command{
			{Verb: control.VerbCreateResource, Resource: name, Disk: disk},
			{Verb: control.VerbJoinResource, Resource: name, Disk: disk},
			{Verb: control.VerbDeleteResource, Resource: name, Force: true},
			{Verb: control.VerbPrimary, Resource: name},
			{Verb: control.VerbLeaveResource, Resource: res, Host: name},
			{Verb: control.VerbJoinCluster, Peer: name, Token: "x"},
			{Verb: control.VerbJoinCluster, Peer: a.via, Token: name},
			{Verb: name, Resource: res},
		} {
			if c.Verb == control.VerbLeaveResource && name == "" {
				continue // without a host it is a good command
			}
			code, said := a.post(t, c)
			if code < 400 || code >= 500 || said == "" {
				t.Errorf("%+v: status %d: %s", c, code, said)
			}
		}
	}
	for _, body := range []string{"", "{", "[]", `{"verb":"view"}{"verb":"view"}`, `{"verb":"primary","resource":"` + res + `","sudo":true}`, strings.Repeat("{", 1<<20), strings.Repeat(" ", 2<<20)} {
		if code, said := a.postRaw(t, []byte(body)); code < 400 || code >= 500 {
			t.Errorf("%.40q: status %d: %s", body, code, said)
		}
	}
	if after := tree(t, w.root); after != before {
		t.Errorf("there is something new:\n%s\nbefore:\n%s", after, before)
	}
	st := a.await("it runs", func(control.Status) bool { return true })
	if len(st.Resources) != 1 {
		t.Errorf("resources: %s", show(st))
	}
}

// TestBadNodeNames: what may not be the name of a node.
func TestBadNodeNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	for _, name := range badNames {
		if name == "" || strings.Contains(name, "\x00") {
			continue // the host's name is the default, and a program gets no NUL
		}
		x := &node{w: w, name: name, dir: filepath.Join(w.root, "omega"), listen: freeAddr(t), via: "127.0.0.1:1"}
		checkStart(t, x, 2, "name")
	}
}

// tree lists everything below a directory, except for what a replica does in its own.
func tree(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		fmt.Fprintln(&b, path)
		if filepath.Base(filepath.Dir(path)) == "resource" {
			return filepath.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// post sends a command as it is.
func (x *node) post(t *testing.T, c control.Command) (code int, said string) {
	t.Helper()
	body, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return x.postRaw(t, body)
}

func (x *node) postRaw(t *testing.T, body []byte) (code int, said string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(x.dir, control.SocketName))
	}}}
	answer, err := client.Post("http://mars/v1/command", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatalf("%.40q: %v", body, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}
