package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// hundred resources are what a host may well have.
const hundred = 100

// score is as many as it takes to see what metadata cost; a pair with a hundred takes minutes to make.
const score = 20

const (
	startRow     = "start with 100 resources, until all devices are there"
	idleMemory   = "memory, 100 idle resources"
	idleCPU      = "CPU, 100 idle resources"
	oneMemory    = "memory, 1 idle resource with secondary"
	oneCPU       = "CPU, 1 idle resource with secondary"
	oneTraffic   = "metadata, 1 idle resource with secondary"
	scoreMemory  = "memory, 20 idle resources with secondary"
	scoreCPU     = "CPU, 20 idle resources with secondary"
	scoreTraffic = "metadata, 20 idle resources with secondary"
)

func idleNames() []string {
	return []string{startRow, oneMemory, oneCPU, oneTraffic, scoreMemory, scoreCPU, scoreTraffic, idleMemory, idleCPU}
}

// idleRows is what it costs to be there, and to come back. All repetitions are done in the first one: to make so many resources takes long.
func (b *bench) idleRows(ctx context.Context, rep int) error {
	if rep > 0 {
		return nil
	}
	for _, part := range []struct {
		plan
		memory, cpu, traffic string
	}{
		{plan{shape: shape{count: 1}, nodes: 2}, oneMemory, oneCPU, oneTraffic},
		{plan{shape: shape{count: score}, nodes: 2}, scoreMemory, scoreCPU, scoreTraffic},
		{plan{shape: shape{count: hundred}, nodes: 1}, idleMemory, idleCPU, ""},
	} {
		part.size, part.args = 4<<20, []string{"--segment-size", "4MiB"}
		c, err := b.startCluster(ctx, part.plan)
		if err != nil {
			return err
		}
		if err := b.idle(ctx, c, part.memory, part.cpu, part.traffic); err != nil {
			return err
		}
		if part.count == hundred {
			err = b.restarts(ctx, c.a)
		}
		if err := errors.Join(err, b.unwind()); err != nil {
			return err
		}
	}
	return b.idlePeer(ctx)
}

// idle looks at a cluster that has nothing to do; traffic names no row if there is none to measure.
func (b *bench) idle(ctx context.Context, c *cluster, memory, cpu, traffic string) error {
	if err := c.settle(ctx); err != nil {
		return err
	}
	for range b.o.reps {
		before, err := wireBytes()
		if err != nil {
			return err
		}
		t := c.target(c.a)
		t.name = marsAlone
		if err := b.idleProcess(ctx, t, cpu); err != nil {
			return err
		}
		after, err := wireBytes()
		switch {
		case err != nil:
			return err
		case traffic == "":
		case inside():
			b.add(traffic, "KiB/min and node", marsAlone, b.perMinute(after-before)/1024/2)
		default:
			b.note("bytes on the wire: needs root")
		}
	}
	return b.idleMemory(marsAlone, []*process{c.a.proc}, memory)
}

// idleTime is how long one looks at something idle: several rounds of whatever it does in seconds.
func (b *bench) idleTime() time.Duration { return 2 * b.o.runtime }

func (b *bench) perMinute(v float64) float64 { return v * 60 / b.idleTime().Seconds() }

// idleProcess measures the CPU time of the target's servers while nothing happens.
func (b *bench) idleProcess(ctx context.Context, t *target, row string) error {
	before, err := t.cpu()
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(b.idleTime()):
	}
	after, err := t.cpu()
	if err == nil {
		b.add(row, "ms/min", t.name, b.perMinute(after[t.name]-before[t.name])*1e3)
	}
	return err
}

func (b *bench) idleMemory(name string, procs []*process, row string) error {
	sum := 0.0
	for _, p := range procs {
		x, err := p.memory("smaps_rollup", "Pss")
		if err != nil {
			return err
		}
		sum += x
	}
	b.add(row, "MiB", name, sum/(1<<20))
	return nil
}

func (b *bench) restarts(ctx context.Context, n *node) error {
	for range b.o.reps {
		if err := b.restart(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// restart stops a node in good order and measures how long it takes to be there again as it was.
func (b *bench) restart(ctx context.Context, n *node) error {
	if err := n.proc.stop(); err != nil {
		return err
	}
	began := time.Now()
	if err := n.run(ctx); err != nil {
		return err
	}
	if err := waitFor(ctx, "devices", func() error { return n.showsAll(ctx) }); err != nil {
		return err
	}
	b.add(startRow, "s", marsAlone, since(began))
	return nil
}

// showsAll answers nil when the devices of all resources are there.
func (n *node) showsAll(ctx context.Context) error {
	s, err := n.status(ctx)
	if err != nil {
		return err
	}
	shown := 0
	for _, r := range s.Resources {
		if r.Members[0].Device != "" {
			shown++
		}
	}
	if shown < hundred {
		return fmt.Errorf("%d of %d devices are there", shown, hundred)
	}
	return nil
}

// idlePeer is the same with one server for each device.
func (b *bench) idlePeer(ctx context.Context) error {
	for range b.o.reps {
		t := &target{name: qemu}
		for i := range hundred {
			disk, err := b.disk(fmt.Sprintf("disk%d.img", i), 1<<20, content{})
			if err != nil {
				return err
			}
			t.disks = append(t.disks, disk)
		}
		began := time.Now()
		if err := b.serve(ctx, t, qemuServer); err != nil {
			return err
		}
		b.add(startRow, "s", qemu, since(began))
		if err := b.idleProcess(ctx, t, idleCPU); err != nil {
			return err
		}
		if err := b.idleMemory(qemu, t.procs, idleMemory); err != nil {
			return err
		}
		if err := b.unwind(); err != nil {
			return err
		}
	}
	return nil
}
