package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	recoveryRow  = "crash recovery, log durable"
	unsyncedRow  = "crash recovery, log not durable" // of which nobody knows whether the last sync would have failed: it is written once more
	copyBytes    = "dd of as many bytes"
	noteInterval = 2 * time.Second // within which marsd notes how far the log is durable
)

func recoveryNames() []string { return []string{recoveryRow, unsyncedRow} }

// recovery kills a primary whose log is not on the disk and measures from its start until its device takes a write, against a copy of as many
// bytes as there are in the log. Both find nothing in the page cache, as after a crash of the whole machine.
func (b *bench) recovery(ctx context.Context, _ int) error {
	err := b.recover(ctx, unsyncedRow)
	return errors.Join(err, b.unwind(), b.recover(ctx, recoveryRow, "--end_fsync=1"))
}

func (b *bench) recover(ctx context.Context, row string, flush ...string) error {
	if !b.wanted(row) {
		return nil
	}
	c, err := b.startCluster(ctx, plan{shape: shape{1, b.o.size}, nodes: 1, args: []string{"--writeback-limit", "1TiB"}})
	if err != nil {
		return err
	}
	if err := c.settle(ctx); err != nil {
		return err
	}
	if _, err := fio(ctx, writeJob, c.target(c.a), append(flush, fmt.Sprintf("--io_size=%d", b.o.size))...); err != nil {
		return err
	}
	if len(flush) > 0 {
		time.Sleep(noteInterval)
	}
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
	b.add(row, "s/GiB", marsAlone, since(began)*(1<<30)/float64(pending))
	if err := c.a.proc.stop(); err != nil {
		return err
	}
	return b.copyAsMany(ctx, row, c.disks[0], pending)
}

func (b *bench) copyAsMany(ctx context.Context, row, src string, n int64) error {
	b.dropCaches()
	began := time.Now()
	_, err := command(ctx, "dd", "if="+src, "of="+filepath.Join(b.o.dir, "copy"), "bs=1M", fmt.Sprintf("count=%d", n>>20), "conv=fsync")
	if err == nil {
		b.add(row, "s/GiB", copyBytes, since(began)*(1<<30)/float64(n))
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
