package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"mars/internal/control"
	"mars/tests/stamp"
)

// TestLifecycle walks through everything an operator does in the life of a resource, in the order of the manual.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	j := &stamp.Journal{}

	a.refuses([]string{"create-cluster"}, "create-resource", res, makeDisk(t, a.diskOf(res), volumeSize))
	a.do("create-cluster")
	b.joins(a)
	a.do("wait-cluster")

	writeFile(t, a.diskOf(res), 3*mib, "what was on the disk before")
	a.do("create-resource", res, a.diskOf(res))
	checkFile(t, a, 3*mib, "what was on the disk before")
	writeFile(t, a.diskOf(res), 3*mib, strings.Repeat("\x00", 27)) // for the checker, which knows only its own writes
	b.gets(res)
	viewIsComplete(t, b)

	application := a.starts(res, j)
	application.runs(500)
	must := application.stops()
	b.do("wait-resource", res, "replay-reached")
	b.do("primary", res)
	b.checkDevice(res, j, must)
	a.awaitSelf(res, "alpha is secondary", func(m control.Member) bool { return m.Role == control.RoleSecondary && m.Device == "" })

	b.writeOnce(res, j)
	a.do("primary", res)
	must = j.Now()
	a.checkDevice(res, j, must)

	a.do("secondary", res)
	a.do("wait-resource", res, "device-off")
	a.do("primary", res)
	a.checkDevice(res, j, must)

	b.do("wait-resource", res, "replay-reached")
	b.do("invalidate", res)
	b.do("wait-resource", res, "uptodate")
	a.do("log-rotate", res)
	a.writeOnce(res, j)
	settle(res, a, b)
	checkEqual(t, res, a, b)
	b.refuses([]string{"not primary"}, "log-rotate", res)

	a.do("secondary", res)
	leaveEverything(t, a, b)
}

// leaveEverything takes the resource and the cluster apart.
func leaveEverything(t *testing.T, a, b *node) {
	t.Helper()
	a.do("primary", res)
	a.refuses([]string{"primary"}, "leave-resource", res)
	b.do("leave-resource", res)
	b.refuses([]string{"no member"}, "primary", res)
	a.refuses([]string{"delete-resource"}, "leave-resource", res)
	a.refuses([]string{"primary"}, "delete-resource", res)
	a.do("secondary", res)
	a.do("delete-resource", res)
	b.await("the resource is gone", func(st control.Status) bool { _, ok := find(st, res); return !ok })
	for _, x := range []*node{a, b} {
		if left, err := os.ReadDir(x.dir + "/resource"); err != nil || len(left) > 0 {
			t.Errorf("%s: log of the deleted resource is left: %v %v", x.name, left, err)
		}
	}
	b.do("leave-cluster")
	a.await("beta is gone", func(st control.Status) bool { return len(st.Nodes) == 1 })
	a.do("leave-cluster")
	if st, err := a.tryStatus(); err != nil || st.Cluster != "" {
		t.Errorf("after leave-cluster: cluster %q, %v", st.Cluster, err)
	}
}

func writeFile(t *testing.T, path string, off int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), off); err != nil {
		t.Fatal(err)
	}
}

func checkFile(t *testing.T, x *node, off int64, text string) {
	t.Helper()
	c := x.open(res)
	defer c.Close()
	p := make([]byte, 512)
	if _, err := c.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	if got := string(p[:len(text)]); got != text {
		t.Errorf("the device has %q at %d, want %q", got, off, text)
	}
}

// viewIsComplete: what marsadm shows names everything, for humans and as JSON.
func viewIsComplete(t *testing.T, x *node) {
	t.Helper()
	text := x.do("view")
	for _, word := range []string{res, "alpha", control.DiskUpToDate} {
		if !strings.Contains(text, word) {
			t.Errorf("view does not mention %q:\n%s", word, text)
		}
	}
	var st control.Status
	if err := json.Unmarshal([]byte(x.do("view", "all", "--json")), &st); err != nil {
		t.Fatal(err)
	}
	r, ok := find(st, res)
	if !ok || r.SizeBytes != volumeSize || len(r.Members) != 2 || len(st.Nodes) != 2 || r.DesignatedPrimary != "alpha" {
		t.Errorf("view --json is not complete:\n%s", show(st))
	}
}

// TestSwitches: each switch does what it says, survives a restart, and stops nothing at the primary.
func TestSwitches(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	application.runs(100)

	b.do("pause-replay", res)
	before := b.self(res).AppliedLSN // nothing is being applied any more when the command returns
	application.runs(300)
	m := b.awaitSelf(res, "fetch goes on while replay is paused", func(m control.Member) bool { return m.EndLSN > before+mib/2 })
	if m.AppliedLSN != before || m.ReplState != control.ReplPausedReplay || m.Switches.Replay {
		t.Errorf("replay is paused, and yet: %+v", m)
	}

	b.do("disconnect", res) // the alias of pause-fetch
	end := b.self(res).EndLSN
	b.stop()
	application.runs(300)
	b.start()
	m = b.awaitSelf(res, "the replica is open", func(m control.Member) bool { return m.Consistent })
	if m.EndLSN > end || m.AppliedLSN != before || m.Switches.Fetch {
		t.Errorf("switches did not last over a restart: %+v", m)
	}
	b.checkDisk(res, j, 0)

	b.do("connect", res)
	b.do("resume-replay", res)
	application.runs(100)

	b.do("detach", res)
	if m := b.self(res); m.DiskState != control.DiskDetached {
		t.Errorf("detached, and yet: %+v", m)
	}
	application.runs(200)
	b.do("attach", res)
	b.do("down", res)
	b.do("up", res)
	checkRefusal(t, "detach while the device is in use", a.admIn(shortly, "detach", res), "NBD client")
	must := application.stops()
	settle(res, a, b)
	b.checkDisk(res, j, must)
	checkEqual(t, res, a, b)
}

// TestResize: grow online, with both disks enlarged first.
func TestResize(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	application.runs(100)
	const more = volumeSize + 8*mib
	grow := func(x *node) {
		if err := os.Truncate(x.diskOf(res), more); err != nil {
			t.Fatal(err)
		}
	}
	grow(a)
	a.refuses([]string{"beta"}, "resize", res, "--size", "32MiB")
	grow(b)
	a.await("the disk of beta has grown", func(control.Status) bool { return a.adm("resize", res).code == 0 && a.sizeOf(res) == more })
	a.refuses([]string{"shrink"}, "resize", res, "--size", "24MiB")
	application.runs(100)
	application.stops()

	c := a.open(res)
	defer c.Close()
	if c.Size() != more {
		t.Fatalf("the device has %d bytes, want %d", c.Size(), more)
	}
	if err := put(c, j, span{more - 4096, 4096}); err != nil {
		t.Fatalf("write into the new room: %v", err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	settle(res, a, b)
	checkEqual(t, res, a, b)
}

func (x *node) sizeOf(res string) int64 {
	x.w.t.Helper()
	st := x.await("marsd answers", func(control.Status) bool { return true })
	r, _ := find(st, res)
	return r.SizeBytes
}
