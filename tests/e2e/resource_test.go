package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"mars/internal/control"
	"mars/tests/stamp"
)

const mib = 1 << 20

// Sizes of volumes: small, because every check reads all of it.
const volumeSize = 24 * mib

// makeDisk creates the backing file of a node's replica.
func makeDisk(t *testing.T, path string, size int64) string {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

// joins makes the node a member of the cluster of another one.
func (x *node) joins(host *node) {
	x.w.t.Helper()
	x.do("join-cluster", host.via, "--token", host.do("join-token"))
}

// creates makes the node the primary of a new resource.
func (x *node) creates(res string) {
	x.w.t.Helper()
	x.do("create-resource", res, makeDisk(x.w.t, x.diskOf(res), volumeSize))
}

// gets adds a replica and waits until it is complete.
func (x *node) gets(res string) {
	x.w.t.Helper()
	x.joinsResource(res)
	x.do("wait-resource", res, "uptodate")
}

func (x *node) joinsResource(res string) {
	x.w.t.Helper()
	x.knows(res)
	x.do("join-resource", res, makeDisk(x.w.t, x.diskOf(res), volumeSize))
}

// knows waits until the news of a resource has arrived.
func (x *node) knows(res string) {
	x.w.t.Helper()
	x.await(res+" is known", func(st control.Status) bool { _, ok := find(st, res); return ok })
}

func (x *node) diskOf(res string) string {
	return strings.TrimSuffix(x.disk(), ".img") + "-" + res + ".img"
}

// pair is a cluster of two with one resource that is on both: alpha is primary.
func pair(t *testing.T, flags ...string) (w *world, a, b *node) {
	t.Helper()
	w = newCluster(t, 2, flags...)
	a, b = w.nodes[0], w.nodes[1]
	a.creates(res)
	b.gets(res)
	return w, a, b
}

// res is the resource of tests that have only one.
const res = "mydata"

func find(st control.Status, res string) (control.Resource, bool) {
	i := slices.IndexFunc(st.Resources, func(r control.Resource) bool { return r.Name == res })
	if i < 0 {
		return control.Resource{}, false
	}
	return st.Resources[i], true
}

// member finds what a status says about a replica; the zero Member when there is none.
func member(st control.Status, res, name string) control.Member {
	r, _ := find(st, res)
	i := slices.IndexFunc(r.Members, func(m control.Member) bool { return m.Node == name })
	if i < 0 {
		return control.Member{}
	}
	return r.Members[i]
}

// self is what the node says about its own replica.
func (x *node) self(res string) control.Member {
	x.w.t.Helper()
	st := x.await("marsd answers", func(control.Status) bool { return true })
	return member(st, res, x.name)
}

// awaitSelf waits for a condition of the node's own replica.
func (x *node) awaitSelf(res, what string, cond func(control.Member) bool) control.Member {
	x.w.t.Helper()
	st := x.await(what, func(st control.Status) bool { return cond(member(st, res, x.name)) })
	return member(st, res, x.name)
}

// awaitSight waits until this node sees another one alive, or not.
func (x *node) awaitSight(of *node, alive bool) {
	x.w.t.Helper()
	x.await(fmt.Sprintf("%s is alive: %t", of.name, alive), func(st control.Status) bool {
		return slices.ContainsFunc(st.Nodes, func(n control.Node) bool { return n.Name == of.name && n.Alive == alive })
	})
}

func hasMessage(m control.Member, key string) bool {
	return slices.ContainsFunc(m.Messages, func(m control.Message) bool { return m.Key == key })
}

func isPrimary(m control.Member) bool { return m.Role == control.RolePrimary && m.Device != "" }

// settle waits until all log of the primary is on the disks of all the others, and the primary's own disk is written back.
func settle(res string, primary *node, others ...*node) {
	primary.w.t.Helper()
	at := primary.self(res)
	for _, x := range append([]*node{primary}, others...) {
		x.awaitSelf(res, fmt.Sprintf("its disk has everything up to LSN %d on timeline %s", at.EndLSN, at.Timeline), func(m control.Member) bool {
			return m.Consistent && m.Timeline == at.Timeline && m.AppliedLSN >= at.EndLSN
		})
	}
}

// checkEqual compares disks byte by byte.
func checkEqual(t *testing.T, res string, a, b *node) {
	t.Helper()
	fa, fb := openDisk(t, a.diskOf(res)), openDisk(t, b.diskOf(res))
	defer fa.Close()
	defer fb.Close()
	pa, pb := make([]byte, mib), make([]byte, mib)
	for off := int64(0); ; off += mib {
		na, errA := io.ReadFull(fa, pa)
		nb, errB := io.ReadFull(fb, pb)
		if !bytes.Equal(pa[:na], pb[:nb]) {
			i := 0
			for i < min(na, nb) && pa[i] == pb[i] {
				i++
			}
			t.Errorf("disks of %s on %s and %s differ at byte %d", res, a.name, b.name, off+int64(i))
			return
		}
		if errA != nil || errB != nil {
			return
		}
	}
}

func openDisk(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// image reads which write each sector of the node's disk comes from.
func (x *node) image(res string) stamp.Image {
	x.w.t.Helper()
	f := openDisk(x.w.t, x.diskOf(res))
	defer f.Close()
	img, err := stamp.ReadImage(f, volumeSize)
	if err != nil {
		x.w.t.Fatalf("disk of %s on %s: %v", res, x.name, err)
	}
	return img
}

// checkDisk: the node's disk is a state after a prefix of the writes that has all that was acknowledged until must.
func (x *node) checkDisk(res string, j *stamp.Journal, must stamp.Time) {
	x.w.t.Helper()
	if err := j.Check(x.image(res), must); err != nil {
		x.w.t.Errorf("disk of %s on %s: %v", res, x.name, err)
	}
}

// checkDevice: the same for what the application reads.
func (x *node) checkDevice(res string, j *stamp.Journal, must stamp.Time) stamp.Image {
	x.w.t.Helper()
	c := x.open(res)
	defer c.Close()
	img, err := stamp.ReadImage(c, c.Size())
	if err != nil {
		x.w.t.Fatalf("device of %s on %s: %v", res, x.name, err)
	}
	if err := j.Check(img, must); err != nil {
		x.w.t.Errorf("device of %s on %s: %v", res, x.name, err)
	}
	return img
}

func show(st control.Status) string {
	b, err := json.MarshalIndent(st, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(b)
}
