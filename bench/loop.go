package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mars/internal/device/loop"
)

// loopFile is the peer of a real block device: the kernel's own loop device over a file, through the page cache, which is its fast mode.
const loopFile = "loop over a file"

var loopJobs = jobList{
	{name: "loop: randwrite 4k QD32", unit: "IOPS", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}, cpu: true},
	{name: "loop: randwrite 4k QD1 fsync=1", unit: "IOPS", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"}, cpu: true},
	{name: "loop: randread 4k QD32", unit: "IOPS", args: []string{"--rw=randread", "--bs=4k", "--iodepth=32"}, cpu: true},
	{name: "loop: sqlite on ext4", unit: "tx/s"},
}

func (b *bench) loopRows(ctx context.Context, rep int) error {
	if err := loop.Available(); err != nil {
		b.note("rows with loop devices: %v", err)
		return nil
	}
	return b.measure(ctx, rep, []maker{(*bench).startLoop, marsLoop(1), marsLoop(2)}, shape{1, b.o.size}, loopJobs)
}

func (b *bench) startLoop(ctx context.Context, s shape) (*target, error) {
	disk, err := b.disk("disk.img", s.size, content{})
	if err != nil {
		return nil, err
	}
	out, err := command(ctx, "losetup", "--find", "--show", disk)
	if err != nil {
		return nil, err
	}
	dev := strings.TrimSpace(string(out))
	b.later(func() error { return exec.Command("losetup", "--detach", dev).Run() })
	return &target{name: loopFile, device: dev, size: s.size, disks: []string{disk}, settle: func(context.Context) error { return nil }}, nil
}

// marsLoop makes targets that are shown as loop devices by the first node of a cluster.
func marsLoop(nodes int) maker {
	start := mars(plan{nodes: nodes, args: []string{"--device", "loop"}})
	return func(b *bench, ctx context.Context, s shape) (*target, error) {
		t, err := start(b, ctx, s)
		if err == nil {
			t.device = filepath.Join(b.o.dir, "a", "links", s.name(0))
		}
		return t, err
	}
}

// sqlite lets a database on an ext4 on the target's device commit one row after the other, with the settings it has by default: a rollback
// journal, and several fsyncs for each transaction.
func (b *bench) sqlite(ctx context.Context, t *target) (f figures, err error) {
	mnt := filepath.Join(b.o.dir, "mnt")
	if err := os.MkdirAll(mnt, 0o700); err != nil {
		return f, err
	}
	if _, err := command(ctx, "mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", t.device); err != nil {
		return f, err
	}
	if err := unix.Mount(t.device, mnt, "ext4", 0, ""); err != nil {
		return f, fmt.Errorf("mount %s: %w", t.device, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(mnt, 0)) }()
	if err := b.equalise(ctx, t); err != nil {
		return f, err
	}
	began := time.Now()
	n, err := feedSQLite(ctx, filepath.Join(mnt, "db"), b.o.runtime)
	return figures{rate: n / since(began), ios: n}, err
}

// feedSQLite commits for a time and returns how many transactions it were.
func feedSQLite(ctx context.Context, db string, d time.Duration) (n float64, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	const pipeSize = 4 << 10 // little, so that it is done soon after the last one
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		return 0, errors.Join(err, w.Close())
	}
	cmd := exec.CommandContext(ctx, "sqlite3", "-bail", db)
	cmd.Stdin, cmd.Stderr = r, os.Stderr
	owned(cmd)
	if err := cmd.Start(); err != nil {
		return 0, errors.Join(err, w.Close())
	}
	r.Close()
	_, err = w.WriteString("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);\n")
	for end := time.Now().Add(d); err == nil && time.Now().Before(end); n++ {
		_, err = w.WriteString("INSERT INTO t(v) VALUES(randomblob(200));\n")
	}
	if errors.Is(err, syscall.EPIPE) {
		err = nil // it ended, and says why
	}
	return n, errors.Join(err, w.Close(), cmd.Wait())
}
