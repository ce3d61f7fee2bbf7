package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"mars/internal/control"
	"mars/tests/stamp"
)

// TestDiskShrinks: somebody truncates the file below a replica. What was in the end is gone, and writing there again would hide that.
func TestDiskShrinks(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	application.runs(100)
	if err := os.Truncate(b.diskOf(res), volumeSize/4); err != nil {
		t.Fatal(err)
	}
	b.awaitSelf(res, "the disk is reported as broken", func(m control.Member) bool { return m.DiskState == control.DiskError })
	application.runs(100)
	application.stops()
}

// TestWrongDisks: disks that cannot be used are refused by name, and a refusal leaves nothing behind.
func TestWrongDisks(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	a.creates(res)

	small := makeDisk(t, filepath.Join(w.root, "small.img"), volumeSize-4096)
	b.knows(res)
	b.await("the size is known", func(st control.Status) bool { r, _ := find(st, res); return r.SizeBytes == volumeSize })
	b.refuses([]string{small}, "join-resource", res, small)
	a.refuses([]string{small}, "create-resource", "other", small, "--size", "1GiB")
	a.refuses([]string{"no-such-file"}, "create-resource", "other", filepath.Join(w.root, "no-such-file"))
	a.refuses([]string{a.dir}, "create-resource", "other", a.dir)

	a.refuses([]string{a.diskOf(res)}, "create-resource", "other", a.diskOf(res))
	link := filepath.Join(w.root, "link.img")
	if err := os.Symlink(a.diskOf(res), link); err != nil {
		t.Fatal(err)
	}
	a.refuses([]string{link}, "create-resource", "other", link)
	b.refuses([]string{a.diskOf(res)}, "join-resource", res, a.diskOf(res)) // in use by another marsd of this host

	st := a.await("it runs", func(control.Status) bool { return true })
	if len(st.Resources) != 1 || len(st.Resources[0].Members) != 1 {
		t.Errorf("a refused command has left something behind:\n%s", show(st))
	}
	b.gets(res)
	settle(res, a, b)
	checkEqual(t, res, a, b)
}

// TestDiskVanishes: a secondary's disk is not there when the node starts. That is said, the rest of the cluster goes on, and with the disk the
// replica comes back by itself.
func TestDiskVanishes(t *testing.T) {
	t.Parallel()
	w, a, b := pair(t)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	application.runs(100)
	b.kill()
	away := filepath.Join(w.root, "away.img")
	if err := os.Rename(b.diskOf(res), away); err != nil {
		t.Fatal(err)
	}
	b.start()
	m := b.awaitSelf(res, "the missing disk is shown", func(m control.Member) bool { return m.DiskState == control.DiskError })
	if !hasMessage(m, "attach") {
		t.Errorf("no message says why: %+v", m)
	}
	b.refuses([]string{b.diskOf(res)}, "primary", res)
	application.runs(100)
	if err := os.Rename(away, b.diskOf(res)); err != nil {
		t.Fatal(err)
	}
	must := application.stops()
	settle(res, a, b)
	b.checkDisk(res, j, must)
	checkEqual(t, res, a, b)
}
