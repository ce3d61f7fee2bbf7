package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"mars/internal/control"
)

const (
	catchUpRandom  = "replay catch-up, random 4k"
	catchUpHot     = "replay catch-up, 4k in 4 MiB"
	diskRandom     = "disk, randwrite 4k O_DSYNC QD1"
	diskSequential = "disk, sequential write"
)

func catchUpNames() []string { return []string{catchUpRandom, catchUpHot} }

// catchUp: how fast a backlog of 4 KiB writes is replayed, in bytes of log, against what the bare disk takes.
func (b *bench) catchUp(ctx context.Context, _ int) error {
	c, err := b.startCluster(ctx, plan{shape: shape{1, b.o.size}, nodes: 2})
	if err != nil {
		return err
	}
	for _, row := range []struct {
		name string
		args []string
	}{{catchUpRandom, nil}, {catchUpHot, []string{hotSet}}} {
		if err := b.replayBacklog(ctx, c, row.name, row.args); err != nil {
			return err
		}
	}
	if err := errors.Join(c.b.proc.stop(), c.a.proc.stop()); err != nil {
		return err
	}
	return b.bareDisk(ctx, c.disks[0])
}

// replayBacklog lets b collect log without replaying it, and then measures the replay.
func (b *bench) replayBacklog(ctx context.Context, c *cluster, row string, args []string) error {
	if err := b.equalise(ctx, c.target(c.a)); err != nil {
		return err
	}
	if _, err := c.b.adm(ctx, "pause-replay", "disk0"); err != nil {
		return err
	}
	j := writeJob
	j.args = append(append([]string{fmt.Sprintf("--io_size=%d", b.o.size/2)}, j.args...), args...)
	if _, err := fio(ctx, j, c.target(c.a)); err != nil {
		return err
	}
	if err := c.a.wait(ctx, "disk0", control.CondReplayReached); err != nil {
		return err
	}
	if err := c.b.wait(ctx, "disk0", control.CondFetchReached); err != nil {
		return err
	}
	m, err := c.b.member(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := c.b.adm(ctx, "resume-replay", "disk0"); err != nil {
		return err
	}
	if err := c.b.wait(ctx, "disk0", control.CondReplayReached); err != nil {
		return err
	}
	b.add(row, "MiB/s", marsAlone, float64(m.EndLSN-m.AppliedLSN)/(1<<20)/since(began))
	return nil
}

// bareDisk measures the file that was a replica's disk, which nobody uses any more.
func (b *bench) bareDisk(ctx context.Context, path string) error {
	t := &target{name: diskRandom, size: b.o.size, device: path}
	j := job{name: diskRandom, unit: "MiB/s", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--sync=dsync"}}
	f, err := b.fio(ctx, j, t)
	if err != nil {
		return err
	}
	sequential, err := overwrite(path, b.o.size/2)
	if err != nil {
		return err
	}
	for _, row := range catchUpNames() {
		b.add(row, "MiB/s", diskRandom, f.rate)
		b.add(row, "MiB/s", diskSequential, sequential)
	}
	return nil
}

// overwrite writes the beginning of a file, durable at the end, and returns MiB per second.
func overwrite(path string, size int64) (float64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 1<<20)
	seeded(1).Read(buf)
	began := time.Now()
	for at := int64(0); at < size; at += int64(len(buf)) {
		if _, err := f.WriteAt(buf, at); err != nil {
			return 0, errors.Join(err, f.Close())
		}
	}
	err = errors.Join(f.Sync(), f.Close())
	return float64(size) / (1 << 20) / since(began), err
}
