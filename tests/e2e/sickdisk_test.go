package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"mars/internal/control"
	"mars/tests/stamp"
)

// sickDisk is a disk that fails when the test wants it: a file in a FUSE file system of this process, with a real file behind it.
type sickDisk struct {
	fs.Inode
	real *os.File
	sick atomic.Bool // whatever touches the medium fails with EIO
}

var (
	_ fs.NodeOpener    = (*sickDisk)(nil)
	_ fs.NodeGetattrer = (*sickDisk)(nil)
	_ fs.NodeReader    = (*sickDisk)(nil)
	_ fs.NodeWriter    = (*sickDisk)(nil)
	_ fs.NodeFsyncer   = (*sickDisk)(nil)
)

// sickDiskAt mounts a disk for the node's replica of res and returns it. What it holds can be looked at in the node's ordinary disk file.
func sickDiskAt(t *testing.T, x *node, res string) (d *sickDisk, path string) {
	t.Helper()
	if missing := needLoop(); missing != "" {
		require(t, missing)
	}
	real, err := os.OpenFile(makeDisk(t, x.diskOf(res), volumeSize), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	d = &sickDisk{real: real}
	dir, err := os.MkdirTemp(x.w.root, "sick-")
	if err != nil {
		t.Fatal(err)
	}
	root := &fs.Inode{}
	server, err := fs.Mount(dir, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "sick"},
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, d, fs.StableAttr{Mode: syscall.S_IFREG}), false)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	x.w.onEnd(func() {
		if err := errors.Join(server.Unmount(), real.Close()); err != nil {
			t.Errorf("take the sick disk down: %v", err)
		}
	})
	return d, filepath.Join(dir, "disk")
}

func (d *sickDisk) health() syscall.Errno {
	if d.sick.Load() {
		return syscall.EIO
	}
	return 0
}

// Open implements fs.NodeOpener. Nothing of it is cached by the kernel.
func (d *sickDisk) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

// Getattr implements fs.NodeGetattrer.
func (d *sickDisk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = syscall.S_IFREG|0o600, volumeSize
	return 0
}

// Read implements fs.NodeReader.
func (d *sickDisk) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if e := d.health(); e != 0 {
		return nil, e
	}
	n, err := d.real.ReadAt(p, off)
	if n == 0 && err != nil {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(p[:n]), 0
}

// Write implements fs.NodeWriter.
func (d *sickDisk) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	if e := d.health(); e != 0 {
		return 0, e
	}
	n, err := d.real.WriteAt(p, off)
	return uint32(n), fs.ToErrno(err)
}

// Fsync implements fs.NodeFsyncer.
func (d *sickDisk) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return d.health() }

// TestSickDiskOfSecondary: the secondary's disk begins to fail in the middle of replay. It says so and stops; the application does not notice.
// When the disk is well again it goes on, after the operator has attached it anew at the latest.
func TestSickDiskOfSecondary(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	disk, path := sickDiskAt(t, b, res)
	a.creates(res)
	b.knows(res)
	b.do("join-resource", res, path)
	b.do("wait-resource", res, "uptodate")
	j := &stamp.Journal{}
	application := a.starts(res, j)
	application.runs(100)
	disk.sick.Store(true)
	m := b.awaitSelf(res, "the sick disk is shown", func(m control.Member) bool { return m.DiskState == control.DiskError })
	if !hasMessage(m, "disk") {
		t.Errorf("no message says what is wrong: %+v", m)
	}
	application.runs(200)
	disk.sick.Store(false)
	b.do("detach", res)
	b.do("attach", res)
	must := application.stops()
	settle(res, a, b)
	b.checkDisk(res, j, must)
	checkEqual(t, res, a, b)
}

// TestSickDiskOfPrimary: the primary's own disk dies while the application writes. Writes go on: they are in the log, and the secondary gets
// them. The role can be handed over as if nothing were, and nothing is lost.
func TestSickDiskOfPrimary(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	disk, path := sickDiskAt(t, a, res)
	a.do("create-resource", res, path)
	b.gets(res)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	application.runs(100)
	disk.sick.Store(true)
	application.runs(200)
	must := application.stops()
	checkReadsFail(t, a)
	b.do("primary", res)
	b.checkDevice(res, j, must)
	b.writeOnce(res, j)
	a.awaitSelf(res, "the sick disk is shown", func(m control.Member) bool { return m.DiskState == control.DiskError })

	disk.sick.Store(false)
	a.do("detach", res)
	a.do("attach", res)
	settle(res, b, a)
	a.checkDisk(res, j, j.Now())
	checkEqual(t, res, a, b)
}

// checkReadsFail: a device whose disk is sick says so to its readers.
func checkReadsFail(t *testing.T, x *node) {
	t.Helper()
	c := x.open(res)
	defer c.Close()
	p := make([]byte, stamp.SectorSize)
	failed := 0
	for off := int64(0); off < c.Size(); off += 128 << 10 {
		_, err := c.ReadAt(p, off)
		switch {
		case errors.Is(err, syscall.EIO):
			failed++
		case err != nil:
			t.Errorf("read fails with %v, want EIO", err)
		}
	}
	if failed == 0 {
		t.Error("the disk is sick, and every read succeeds")
	}
}
