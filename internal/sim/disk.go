package sim

import (
	"syscall"

	"mars/internal/block"
	"mars/internal/block/blocktest"
	"mars/internal/vfs"
	"mars/internal/vfs/crashfs"
)

var errNoSpace = syscall.ENOSPC

// simDisk is a replica's view of its disk. While the volume writes to it others of the node may run in between.
type simDisk struct {
	*blocktest.Disk
	r      *replica
	inside bool  // a preemption is under way, or must not happen
	failed error // of the first flush that has failed: final, as package block has it
}

// ReadAtNowait is hidden: nothing here is about latency.
func (d *simDisk) ReadAtNowait([]byte, int64) (bool, error) { return false, nil }

// WriteAt implements block.Device.
func (d *simDisk) WriteAt(p []byte, off int64, f block.Flags) error {
	d.preempt()
	if d.failed != nil {
		return d.failed
	}
	if d.r.n.w.canary("apply-damage") && len(p) >= 512 {
		q := append([]byte(nil), p...)
		q[100] ^= 1
		p = q
	}
	err := d.Disk.WriteAt(p, off, f)
	if w := d.r.n.w; err == nil && d.r.vol != nil && !d.r.n.dying && chance(w.rng.check, 40) {
		w.checkAhead(d.r)
	}
	return err
}

// Discard implements block.Device.
func (d *simDisk) Discard(off, n int64, f block.Flags) error {
	d.preempt()
	if d.failed != nil {
		return d.failed
	}
	return d.Disk.Discard(off, n, f)
}

// Flush implements block.Device.
func (d *simDisk) Flush() error {
	d.preempt()
	if d.r.n.w.canary("skip-flush") {
		return nil
	}
	if d.failed == nil {
		d.failed = d.Disk.Flush()
		d.r.n.sick[d.r.res.slot] = d.r.n.sick[d.r.res.slot] || d.failed != nil
	}
	return d.failed
}

// preempt lets an application or a session go on in the middle of what the mover does.
func (d *simDisk) preempt() {
	w := d.r.n.w
	if d.inside || !w.swarm["preempt"] || w.phase != 1 || d.r.n.dying || d.r.vol == nil || !chance(w.rng.disk, 4) {
		return
	}
	d.inside = true
	defer func() { d.inside = false }()
	switch w.rng.disk.IntN(3) {
	case 0:
		d.r.res.app.burst(d.r)
	case 1:
		d.r.vol.SyncStep()
	case 2:
		d.r.res.app.read(d.r)
	}
}

// simFS is a replica's view of the node's file system.
type simFS struct {
	*crashfs.FS
	r *replica
}

// Create implements vfs.FS.
func (f simFS) Create(name string) (vfs.File, error) {
	x, err := f.FS.Create(name)
	if err == nil && f.r.n.w.canary("lying-sync") {
		return lyingFile{x}, nil
	}
	return x, err
}

// lyingFile says that it has synced and has not: the bug behind a canary.
type lyingFile struct{ vfs.File }

// SyncData implements vfs.File.
func (lyingFile) SyncData() error { return nil }
