package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	recoveryRow = "crash recovery"
	copyBytes   = "dd of as many bytes"
)

func recoveryNames() []string { return []string{recoveryRow} }

// recovery kills a primary whose log is durable but not on the disk and measures from its start until its device takes a write, against a copy of as many
// bytes as there are in the log. Both find nothing in the page cache, as after a crash of the whole machine.
func (b *bench) recovery(ctx context.Context, _ int) error {
	c, err := b.startCluster(ctx, plan{shape: shape{1, b.o.size}, nodes: 1, args: []string{"--writeback-limit", "1TiB"}})
	if err != nil {
		return err
	}
	if err := c.settle(ctx); err != nil {
		return err
	}
	if _, err := fio(ctx, writeJob, c.target(c.a), fmt.Sprintf("--io_size=%d", b.o.size), "--end_fsync=1"); err != nil {
		return err
	}
	time.Sleep(2 * time.Second) // marsd notes now and then how far the log is durable
	m, err := c.a.member(ctx)
	if err != nil {
		return err
	}
	c.a.proc.kill()
	pending := m.EndLSN - m.AppliedLSN
	if pending < b.o.size/4 {
		return fmt.Errorf("only %d bytes of log are not on the disk: it was written back too soon", pending)
	}
	b.dropCaches()
	began := time.Now()
	if err := c.a.run(ctx); err != nil {
		return err
	}
	if err := writable(ctx, c.a); err != nil {
		return err
	}
	b.add(recoveryRow, "s/GiB", marsAlone, since(began)*(1<<30)/float64(pending))
	if err := c.a.proc.stop(); err != nil {
		return err
	}
	return b.copyAsMany(ctx, c.disks[0], pending)
}

func (b *bench) copyAsMany(ctx context.Context, src string, n int64) error {
	b.dropCaches()
	began := time.Now()
	_, err := command(ctx, "dd", "if="+src, "of="+filepath.Join(b.o.dir, "copy"), "bs=1M", fmt.Sprintf("count=%d", n>>20), "conv=fsync")
	if err == nil {
		b.add(recoveryRow, "s/GiB", copyBytes, since(began)*(1<<30)/float64(n))
	}
	return err
}

// dropCaches makes the next reads come from the medium.
func (b *bench) dropCaches() {
	b.touchMemory()
	syscall.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		b.note("with cold caches: %v (figures of recovery and full sync are with warm ones)", err)
	}
}
