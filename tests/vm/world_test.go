package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mars/internal/control"
	"mars/tests/vm/lab"
)

const (
	mib = 1 << 20
	// patience bounds the wait for anything to become true in a machine.
	patience  = 2 * time.Minute
	pollEvery = 500 * time.Millisecond // a marsadm costs an emulated processor a tenth of a second
	// res is the resource of the scenarios; device is where its primary has it.
	res    = "data"
	device = "/dev/mars/" + res
)

// nodeDisks are what a node has: a disk for the replica, and one for the log store.
var nodeDisks = []lab.Disk{{Name: "disk", Size: 384 * mib}, {Name: "store", Size: 512 * mib}}

// world is a lab in which every machine may become a node.
type world struct {
	t      *testing.T
	ctx    context.Context
	cancel context.CancelFunc
	lab    *lab.Lab
	nodes  []*node
}

// newWorld boots machines. It is taken down when the test ends, or after limit.
func newWorld(t *testing.T, limit time.Duration, cfg lab.Config) *world {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.Background(), limit, fmt.Errorf("the scenario has not ended after %v", limit))
	t.Cleanup(cancel)
	_, err := lab.Prepare(ctx)
	require(t, err)
	cfg.Files = programs
	if keep := os.Getenv("MARS_VM_KEEP"); keep != "" {
		cfg.Dir = filepath.Join(keep, strings.ReplaceAll(t.Name(), "/", "_"))
	}
	l, err := lab.New(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ctx: ctx, cancel: cancel, lab: l}
	t.Cleanup(w.takeDown)
	for _, m := range l.Machines {
		w.nodes = append(w.nodes, &node{w: w, Machine: m})
	}
	if err := l.Boot(); err != nil {
		t.Fatal(err)
	}
	return w
}

// inspect shows what marsd has said and, if it still runs, where all of its threads and goroutines are.
const inspect = `dmesg | tail -n 20; tail -n 40 /marsd.log; p=$(cat /marsd.pid 2>/dev/null || echo none)
	[ -e /proc/$p ] || exit 0
	for t in /proc/$p/task/*; do cat $t/wchan; echo; cat $t/stack; done
	wc -l </marsd.log >/lines; kill -QUIT $p; sleep 2; tail -n +$(cat /lines) /marsd.log | head -n 400`

func (w *world) takeDown() {
	if w.t.Failed() {
		for _, x := range w.nodes {
			w.t.Logf("%s: console:\n%s", x.Name, x.Console())
			if x.Running() {
				log, err := x.Run(context.WithoutCancel(w.ctx), inspect)
				w.t.Logf("%s: marsd:\n%s (%v)", x.Name, log, err)
			}
		}
	}
	if err := w.lab.Close(); err != nil {
		w.t.Error(err)
	}
}

// node is a machine with a marsd, while that runs.
type node struct {
	*lab.Machine
	w     *world
	front front
}

// sh runs a script, every command of which has to succeed.
func (x *node) sh(script string, args ...any) string {
	x.w.t.Helper()
	out, err := x.try(script, args...)
	if err != nil {
		x.w.t.Fatal(err)
	}
	return out
}

func (x *node) try(script string, args ...any) (string, error) {
	if len(args) > 0 {
		script = fmt.Sprintf(script, args...)
	}
	out, err := x.Run(x.w.ctx, "set -euo pipefail\n"+script)
	return strings.TrimSpace(out), err
}

// format makes an empty log store. The disks of a machine keep their contents, so it is for the first boot.
func (x *node) format() { x.w.t.Helper(); x.sh("mkfs.ext4 -q /dev/lab/store") }

// starts mounts the log store and starts marsd.
func (x *node) starts(f front, flags ...string) {
	x.w.t.Helper()
	x.front = f
	if len(f.modules) > 0 {
		x.sh("modprobe -a %s", strings.Join(f.modules, " "))
	}
	x.sh("mkdir -p /mars; mountpoint -q /mars || mount /dev/lab/store /mars")
	x.launch(flags...)
}

// launch starts marsd and waits until it answers.
func (x *node) launch(flags ...string) {
	x.w.t.Helper()
	args := append([]string{"--device", x.front.name, "--listen", x.Name + ":7777", "--log-reserve", "16MiB", "--segment-size", "16MiB", "--primary-wait", "3s"}, flags...)
	x.sh("nohup setsid marsd %s >>/marsd.log 2>&1 </dev/null & echo $! >/marsd.pid", strings.Join(args, " "))
	x.sh("for ((i = 0; i < 600; i++)); do marsadm view >/dev/null 2>&1 && exit; sleep 0.2; done; tail /marsd.log >&2; exit 1")
}

// stops stops marsd, which has to end with status 0.
func (x *node) stops() {
	x.w.t.Helper()
	x.sh("p=$(cat /marsd.pid); kill $p; while [ -e /proc/$p ]; do sleep 0.05; done; tail -n 9 /marsd.log | grep 'marsd stops'; ! tail -n 1 /marsd.log | grep '^marsd: '")
}

// status asks the daemon.
func (x *node) status() (control.Status, error) {
	var st control.Status
	out, err := x.try("marsadm view --json --timeout 10s")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal([]byte(out), &st)
}

// await waits until the daemon's status is as it should be.
func (x *node) await(what string, cond func(control.Status) bool) control.Status {
	x.w.t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	deadline := time.After(patience)
	for {
		st, err := x.status()
		if err == nil && cond(st) {
			return st
		}
		select {
		case <-tick.C:
		case <-deadline:
			text, _ := json.MarshalIndent(st, "", " ")
			x.w.t.Fatalf("%s: waited in vain until %s; last error: %v\n%s", x.Name, what, err, text)
		case <-x.w.ctx.Done():
			x.w.t.Fatalf("%s: %v, while waiting until %s", x.Name, context.Cause(x.w.ctx), what)
		}
	}
}

// self is what a status says about the node's own replica; the zero Member when it has none.
func (x *node) self(st control.Status) control.Member {
	for _, r := range st.Resources {
		if r.Name == res {
			i := slices.IndexFunc(r.Members, func(m control.Member) bool { return m.Node == x.Name })
			if i >= 0 {
				return r.Members[i]
			}
		}
	}
	return control.Member{}
}

// awaitSelf waits for a condition of the node's own replica.
func (x *node) awaitSelf(what string, cond func(control.Member) bool) control.Member {
	x.w.t.Helper()
	return x.self(x.await(what, func(st control.Status) bool { return cond(x.self(st)) }))
}

// primary waits until the node is primary and has the device.
func (x *node) primary() {
	x.w.t.Helper()
	x.sh("marsadm wait-resource %s primary --timeout %v; marsadm wait-resource %s device-on --timeout %v", res, patience, res, patience)
}

// creates makes the node a cluster of its own and the primary of the resource.
func (x *node) creates(disk string) {
	x.w.t.Helper()
	x.sh("marsadm create-cluster; marsadm create-resource %s %s", res, disk)
	x.primary()
}

// joins makes the node a secondary.
func (x *node) joins(first *node, disk string) {
	x.w.t.Helper()
	x.sh("marsadm join-cluster %s:7777 --token %s", first.Name, first.sh("marsadm join-token"))
	x.await("it knows the resource", func(st control.Status) bool { return len(st.Resources) > 0 })
	x.sh("marsadm join-resource %s %s; marsadm wait-resource %s uptodate", res, disk, res)
}

// follows waits until everything that the primary has is on this node's disk.
func (x *node) follows(primary *node) {
	x.w.t.Helper()
	st, err := primary.status()
	if err != nil {
		x.w.t.Fatal(err)
	}
	at := primary.self(st)
	x.awaitSelf(fmt.Sprintf("its disk has everything up to LSN %d", at.EndLSN), func(m control.Member) bool {
		return m.Consistent && m.Timeline == at.Timeline && m.AppliedLSN >= at.EndLSN
	})
}

// pair is two nodes; the first one is the primary.
func pair(w *world, f front, flags ...string) (a, b *node) {
	w.t.Helper()
	a, b = w.nodes[0], w.nodes[1]
	for _, x := range w.nodes {
		x.format()
		x.starts(f, flags...)
	}
	a.creates("/dev/lab/disk")
	b.joins(a, "/dev/lab/disk")
	return a, b
}
