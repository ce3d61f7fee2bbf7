package main

import (
	"context"
	"errors"
	"time"

	"mars/tests/faultnet"
	"mars/tests/nbdclient"
)

// Rows and targets of what only a replicating system does.
const (
	slowLineRow     = "app randwrite 4k QD32, secondary far away"
	marsNoSecondary = "no secondary"
	marsSlow        = "mars, 1 Mbit/s"
	marsCut         = "mars, line cut"

	handoverIdle   = "handover, idle"
	handoverLoaded = "handover, after full load, since the last byte was through"
	handoverWhole  = "handover, after full load, since the command"
)

func slowLineNames() []string { return []string{slowLineRow} }
func handoverNames() []string { return []string{handoverIdle, handoverLoaded, handoverWhole} }

// slowLine: the application's rate with a secondary behind 1 Mbit/s, and then behind nothing at all, against that without a secondary.
func (b *bench) slowLine(ctx context.Context, rep int) error {
	parts := []func(context.Context) error{b.noSecondary, b.farSecondary}
	for i := range parts { // begin with another one each time
		if err := errors.Join(parts[(i+rep)%len(parts)](ctx), b.unwind()); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) noSecondary(ctx context.Context) error {
	c, err := b.startCluster(ctx, plan{shape: shape{1, b.o.size}, nodes: 1})
	if err != nil {
		return err
	}
	return b.appRate(ctx, c, marsNoSecondary)
}

func (b *bench) farSecondary(ctx context.Context) error {
	line := faultnet.New()
	b.later(func() error { line.Close(); return nil })
	c, err := b.startCluster(ctx, plan{shape: shape{1, b.o.size}, nodes: 2, between: line})
	if err != nil {
		return err
	}
	const mbit = 1e6 / 8
	line.Link("a", "b").Limit(mbit)
	line.Link("b", "a").Limit(mbit)
	if err := b.appRate(ctx, c, marsSlow); err != nil {
		return err
	}
	line.Stall("a", "b")
	return b.appRate(ctx, c, marsCut)
}

// appRate measures the application on a's device; the state before is the same for all: a's log is on its disk.
func (b *bench) appRate(ctx context.Context, c *cluster, name string) error {
	t := c.target(c.a)
	t.settle = (&cluster{a: c.a, shape: c.shape}).settle
	if err := b.equalise(ctx, t); err != nil {
		return err
	}
	f, err := b.fio(ctx, writeJob, t)
	if err == nil {
		b.add(slowLineRow, writeJob.unit, name, f.rate)
	}
	return err
}

// handover: from the command to the first write that the new primary's device has taken.
func (b *bench) handover(ctx context.Context, _ int) error {
	c, err := b.startCluster(ctx, plan{shape: shape{1, b.o.size}, nodes: 2})
	if err != nil {
		return err
	}
	for _, n := range []*node{c.b, c.a} {
		if err := c.settle(ctx); err != nil {
			return err
		}
		began := time.Now()
		if err := takeOver(ctx, n); err != nil {
			return err
		}
		b.add(handoverIdle, "ms", marsAlone, since(began)*1e3)
	}
	return b.handoverLoaded(ctx, c)
}

func takeOver(ctx context.Context, n *node) error {
	if _, err := n.adm(ctx, "primary", "disk0"); err != nil {
		return err
	}
	return writable(ctx, n)
}

// writable waits until a write to the node's device is answered.
func writable(ctx context.Context, n *node) error {
	return waitFor(ctx, "device of "+n.name, func() error {
		c, err := nbdclient.Dial(n.socket("disk0"), "disk0")
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Write(0, make([]byte, 4096))
	})
}

// handoverLoaded hands over in the moment in which an application ends that has written as fast as it could.
func (b *bench) handoverLoaded(ctx context.Context, c *cluster) error {
	if _, err := b.fio(ctx, writeJob, c.target(c.a)); err != nil {
		return err
	}
	m, err := c.a.member(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	through := make(chan error, 1)
	var last time.Time
	go func() { // ends when b has all of the log, or with waitFor's patience
		err := waitFor(ctx, "last byte at b", func() error { return c.b.has(ctx, m.EndLSN) })
		last = time.Now()
		through <- err
	}()
	if err := takeOver(ctx, c.b); err != nil {
		return err
	}
	ended := time.Now()
	if err := <-through; err != nil {
		return err
	}
	if last.After(ended) { // seen late
		last = ended
	}
	b.add(handoverWhole, "ms", marsAlone, float64(ended.Sub(began))/1e6)
	b.add(handoverLoaded, "ms", marsAlone, float64(ended.Sub(last))/1e6)
	return nil
}
