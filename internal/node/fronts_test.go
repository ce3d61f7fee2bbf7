package node

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mars/internal/block"
	"mars/internal/config"
	"mars/internal/control"
)

// patience is how long a test waits for something that should happen soon, on a busy machine too.
const patience = 30 * time.Second

func testConfig(t *testing.T, set map[string]string) config.Config {
	t.Helper()
	all := map[string]string{"dir": t.TempDir(), "name": "a", "listen": "127.0.0.1:0", "device": "none"}
	for k, v := range set {
		all[k] = v
	}
	cfg, err := config.Load(config.Source{Set: all})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// hubNode is a node in a cluster of its own that serves NBD over TCP and is primary of the resources.
func hubNode(t *testing.T, resources ...string) *Node {
	t.Helper()
	cfg := testConfig(t, map[string]string{"nbd_listen": "127.0.0.1:0"})
	n, err := Open(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	do(t, n, control.Command{Verb: control.VerbCreateCluster})
	for _, res := range resources {
		disk := filepath.Join(cfg.Dir, res+".img")
		if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 16<<20)); err != nil {
			t.Fatal(err)
		}
		do(t, n, control.Command{Verb: control.VerbCreateResource, Resource: res, Disk: disk})
	}
	return n
}

func do(t *testing.T, n *Node, c control.Command) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := n.Do(ctx, c); err != nil {
		t.Fatalf("%s %s: %v", c.Verb, c.Resource, err)
	}
}

// replicaOf returns the replica of a resource by name.
func replicaOf(t *testing.T, n *Node, res string) *replica {
	t.Helper()
	e, err := n.find(res)
	if err != nil {
		t.Fatal(err)
	}
	return n.runner(e.id).replica()
}

// tcpAddress is where n serves NBD, taken from the first front end's URI.
func tcpAddress(t *testing.T, rep *replica) string {
	t.Helper()
	rep.mu.Lock()
	defer rep.mu.Unlock()
	u, err := url.Parse(rep.fronts[0].Path())
	if err != nil || u.Scheme != "nbd" {
		t.Fatalf("the first front end is %s (%v)", rep.fronts[0].Path(), err)
	}
	return u.Host
}

// enterExport asks a hub for an export with NBD_OPT_GO; it returns the connection and the type of the first reply.
func enterExport(t *testing.T, address, name string) (net.Conn, uint32) {
	t.Helper()
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	ask := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	ask = append(ask, "IHAVEOPT\x00\x00\x00\x07"...)
	ask = binary.BigEndian.AppendUint32(ask, uint32(4+len(name)+2))
	ask = binary.BigEndian.AppendUint32(ask, uint32(len(name)))
	ask = append(append(ask, name...), 0, 0)
	if _, err := nc.Write(ask); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 18+20) // greeting, first reply
	if _, err := io.ReadFull(nc, answer); err != nil {
		t.Fatal(err)
	}
	return nc, binary.BigEndian.Uint32(answer[18+12:])
}

const (
	replyInfo       = 3
	replyErrUnknown = 1<<31 + 6
)

// TestHandoverWithClientsOverTCP: a client of one resource keeps that one, and only that one, from being given up; the refusal leaves the
// socket as it was.
func TestHandoverWithClientsOverTCP(t *testing.T) {
	t.Parallel()
	n := hubNode(t, "r1", "r2")
	r1 := replicaOf(t, n, "r1")
	address := tcpAddress(t, r1)
	sock := filepath.Join(n.cfg.Dir, "dev", "r1.sock")
	if path, _ := r1.deviceAndUsers(); path != sock {
		t.Errorf("the device is %s, want %s", path, sock)
	}
	client, kind := enterExport(t, address, "r1")
	if kind != replyInfo {
		t.Fatalf("asked for r1 the hub replies %#x", kind)
	}
	if err := r1.hide(t.Context()); !errors.Is(err, block.ErrBusy) || !strings.Contains(err.Error(), "NBD client "+client.LocalAddr().String()) {
		t.Errorf("withdrawal of a used device: %v", err)
	}
	if path, users := r1.deviceAndUsers(); path != sock || len(users) != 1 {
		t.Errorf("after a refused withdrawal the device is %s, users %q", path, users)
	}
	do(t, n, control.Command{Verb: control.VerbSecondary, Resource: "r2"})
	do(t, n, control.Command{Verb: control.VerbWaitResource, Resource: "r2", Condition: control.CondDeviceOff})
	if _, kind := enterExport(t, address, "r2"); kind != replyErrUnknown {
		t.Errorf("asked for r2 after its handover the hub replies %#x", kind)
	}
	client.Close()
	do(t, n, control.Command{Verb: control.VerbSecondary, Resource: "r1"})
	do(t, n, control.Command{Verb: control.VerbWaitResource, Resource: "r1", Condition: control.CondDeviceOff})
	if _, kind := enterExport(t, address, "r1"); kind != replyErrUnknown {
		t.Errorf("asked for r1 after its handover the hub replies %#x", kind)
	}
	do(t, n, control.Command{Verb: control.VerbPrimary, Resource: "r1"})
	if _, kind := enterExport(t, address, "r1"); kind != replyInfo {
		t.Errorf("asked for r1 when it is primary again the hub replies %#x", kind)
	}
}

// TestFrontEndsAreShownAgain: what was closed before a newcomer was met is opened again.
func TestFrontEndsAreShownAgain(t *testing.T) {
	t.Parallel()
	n := hubNode(t, "r1")
	rep := replicaOf(t, n, "r1")
	rep.mu.Lock()
	defer rep.mu.Unlock()
	if len(rep.fronts) != 2 {
		t.Fatalf("%d front ends, want 2", len(rep.fronts))
	}
	if err := rep.fronts[1].Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	rep.fronts = rep.fronts[:1]
	if err := rep.openFronts(); err != nil {
		t.Fatal(err)
	}
	if path, _ := rep.pathAndUsers(); path != filepath.Join(n.cfg.Dir, "dev", "r1.sock") {
		t.Errorf("the device is %s", path)
	}
}

func TestOpenNamesWhatIsWrongWithNBD(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	junk := filepath.Join(t.TempDir(), "junk.pem")
	if err := os.WriteFile(junk, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	taken := l.Addr().String()
	for name, tt := range map[string]struct {
		set  map[string]string
		says []string
	}{
		"port in use":  {map[string]string{"nbd_listen": taken}, []string{taken, "in use", "set nbd_listen"}},
		"missing file": {map[string]string{"nbd_listen": "0.0.0.0:0", "nbd_tls_cert": "/nowhere/c", "nbd_tls_key": junk, "nbd_tls_ca": junk}, []string{"/nowhere/c", "nbd_tls_cert"}},
		"bad file":     {map[string]string{"nbd_listen": "0.0.0.0:0", "nbd_tls_cert": junk, "nbd_tls_key": junk, "nbd_tls_ca": junk}, []string{junk, "nbd_tls_cert", "PEM"}},
	} {
		cfg := testConfig(t, tt.set)
		for range 2 { // the first failure has left nothing locked
			n, err := Open(cfg, slog.New(slog.DiscardHandler))
			if err == nil {
				t.Errorf("%s: no error", name)
				_ = n.Close() // the test has failed already
				break
			}
			for _, word := range tt.says {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%s: %q does not say %q", name, err, word)
				}
			}
		}
	}
}
