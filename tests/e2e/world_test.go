package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"mars/tests/faultnet"
)

// world is some nodes on the loopback interface and the network between them. It is taken down when the test ends.
type world struct {
	t     *testing.T
	root  string // short, so that socket paths fit into the kernel's 108 bytes
	net   *faultnet.Net
	nodes []*node
	ends  []func() // what must be taken down after the daemons
}

// onEnd takes something down when the daemons have ended.
func (w *world) onEnd(f func()) { w.ends = append(w.ends, f) }

// names of nodes, as many as the largest world has.
var names = []string{"alpha", "beta", "gamma"}

// newWorld starts n nodes, which are in no cluster yet. flags are given to each marsd.
func newWorld(t *testing.T, n int, flags ...string) *world {
	t.Helper()
	root, err := os.MkdirTemp("", "mars-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, root: root, net: faultnet.New()}
	t.Cleanup(w.takeDown)
	for _, name := range names[:n] {
		w.addNode(name, flags...)
	}
	return w
}

// newCluster is newWorld with all nodes in one cluster.
func newCluster(t *testing.T, n int, flags ...string) *world {
	t.Helper()
	w := newWorld(t, n, flags...)
	w.nodes[0].do("create-cluster")
	for _, x := range w.nodes[1:] {
		x.joins(w.nodes[0])
	}
	return w
}

func (w *world) addNode(name string, flags ...string) *node {
	w.t.Helper()
	x := &node{w: w, name: name, dir: filepath.Join(w.root, name), listen: freeAddr(w.t)}
	via, err := w.net.Add(name, x.listen)
	if err != nil {
		w.t.Fatal(err)
	}
	x.via = via
	x.flags = append([]string{"--device", "none", "--dev-dir", filepath.Join(w.root, name+"-devs"), "--segment-size", "4MiB", "--log-reserve", "16MiB",
		"--primary-wait", "2s", "--log-level", "debug"}, flags...)
	w.nodes = append(w.nodes, x)
	x.start()
	return x
}

var lastHost atomic.Int32

// freeAddr returns an address that the kernel says is free and that nobody else can take meanwhile: each node has a host address of its own.
func freeAddr(t *testing.T) string {
	t.Helper()
	n := lastHost.Add(1)
	host := fmt.Sprintf("127.%d.%d.%d", 64+os.Getpid()>>8&127, os.Getpid()&255, n%254+1)
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// takeDown ends everything that the test has started. It fails the test if something of it is left, or if a daemon has complained in a
// way that no daemon ever may.
func (w *world) takeDown() {
	if w.t.Failed() {
		w.keepStates()
	}
	for _, x := range w.nodes {
		x.end()
	}
	for _, end := range w.ends {
		end()
	}
	w.net.Close()
	for _, x := range w.nodes {
		x.checkLog()
	}
	w.checkLeftovers()
	if w.t.Failed() {
		w.keepArtifacts()
	}
	if err := os.RemoveAll(w.root); err != nil {
		w.t.Errorf("clean up: %v", err)
	}
}

// keepStates saves what each node that still runs says about the world.
func (w *world) keepStates() {
	for _, x := range w.nodes {
		st, err := x.tryStatus()
		if err != nil {
			continue
		}
		b, err := json.MarshalIndent(st, "", "  ")
		if err == nil {
			err = os.WriteFile(filepath.Join(w.root, x.name+".view.json"), b, 0o600)
		}
		if err != nil {
			w.t.Log(err)
		}
	}
}

// keepArtifacts copies logs and states to where they outlive the test.
func (w *world) keepArtifacts() {
	base := os.Getenv("MARS_E2E_KEEP")
	if base == "" {
		base = filepath.Join(os.TempDir(), "mars-e2e-failed")
	}
	dir := filepath.Join(base, strings.ReplaceAll(w.t.Name(), "/", "_"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.t.Log(err)
		return
	}
	for _, pattern := range []string{"*.log", "*.view.json"} {
		files, _ := filepath.Glob(filepath.Join(w.root, pattern)) // the pattern is right
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, filepath.Base(f)), b, 0o600)
			}
			if err != nil {
				w.t.Log(err)
			}
		}
	}
	w.t.Logf("logs and states are kept in %s", dir)
}

// checkLeftovers looks for mounts and loop devices below the world's directory. The daemons are dead: what is there now stays.
func (w *world) checkLeftovers() {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		w.t.Error(err)
	}
	if bytes.Contains(mounts, []byte(w.root)) {
		w.t.Errorf("mounts are left below %s", w.root)
	}
	for _, dev := range loopsBelow(w.root) {
		w.t.Errorf("loop device %s is left", dev)
	}
}

// loopsBelow returns the loop devices whose backing file is below dir.
func loopsBelow(dir string) []string {
	var out []string
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is right
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir) {
			out = append(out, "/dev/"+strings.Split(f, "/")[3])
		}
	}
	slices.Sort(out)
	return out
}
