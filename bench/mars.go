package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"

	"mars/internal/control"
	"mars/tests/faultnet"
)

// node is one daemon.
type node struct {
	b    *bench
	name string
	dir  string
	args []string
	proc *process
}

// network is what lies between the nodes; nil is loopback as it is.
type network = *faultnet.Net

// startNode starts a daemon with further arguments and waits until it answers.
func (b *bench) startNode(ctx context.Context, name string, between network, args ...string) (*node, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	n := &node{b: b, name: name, dir: filepath.Join(b.o.dir, name)}
	n.args = append([]string{"--dir", n.dir, "--name", name, "--listen", addr, "--log-level", "error", "--device", "none", "--dev-dir", filepath.Join(n.dir, "links")}, args...)
	if between != nil {
		via, err := between.Add(name, addr)
		if err != nil {
			return nil, err
		}
		n.args = append(n.args, "--advertise", via)
	}
	if err := n.run(ctx); err != nil {
		return nil, err
	}
	if between != nil {
		between.Running(name, n.proc.pid())
	}
	return n, nil
}

// run starts the daemon, again if it has run before.
func (n *node) run(ctx context.Context) (err error) {
	n.proc, err = n.b.start(filepath.Join(n.b.o.bin, "marsd"), n.args...)
	if err != nil {
		return err
	}
	return waitFor(ctx, "marsd "+n.name+" does not answer", func() error {
		_, err := n.status(ctx)
		return err
	})
}

// adm runs marsadm at the node.
func (n *node) adm(ctx context.Context, args ...string) (string, error) {
	out, err := command(ctx, filepath.Join(n.b.o.bin, "marsadm"), append([]string{"--dir", n.dir, "--timeout", "300s"}, args...)...)
	if err != nil {
		return "", fmt.Errorf("on %s: %v: %w", n.name, args, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// wait is marsadm wait-resource, without starting a process.
func (n *node) wait(ctx context.Context, resource, condition string) error {
	_, err := n.client().Do(ctx, control.Command{Verb: control.VerbWaitResource, Resource: resource, Condition: condition})
	return err
}

func (n *node) client() *control.Client {
	return control.Dial(filepath.Join(n.dir, control.SocketName))
}

func (n *node) status(ctx context.Context) (control.Status, error) {
	return n.client().Status(ctx)
}

// member is the node's own replica of its first resource.
func (n *node) member(ctx context.Context) (control.Member, error) {
	s, err := n.status(ctx)
	if err != nil {
		return control.Member{}, err
	}
	if len(s.Resources) == 0 || len(s.Resources[0].Members) == 0 {
		return control.Member{}, fmt.Errorf("%s knows no resource", n.name)
	}
	return s.Resources[0].Members[0], nil
}

func (n *node) socket(resource string) string { return filepath.Join(n.dir, "dev", resource+".sock") }

// cluster is one or two nodes with the same resources; a is primary.
type cluster struct {
	a, b  *node // b is nil if there is only one
	shape shape
	disks []string
}

// plan says how to start a cluster.
type plan struct {
	shape
	nodes   int
	between network
	args    []string // of the daemons
}

// startCluster starts the daemons and fills all replicas; the disks are alike from the beginning, so that the sync finds nothing to copy.
func (b *bench) startCluster(ctx context.Context, p plan) (*cluster, error) {
	c := &cluster{shape: p.shape}
	var err error
	if c.a, err = b.startNode(ctx, "a", p.between, p.args...); err != nil {
		return nil, err
	}
	if _, err := c.a.adm(ctx, "create-cluster"); err != nil {
		return nil, err
	}
	if err := c.place(ctx, c.a, "create-resource"); err != nil || p.nodes == 1 {
		return c, err
	}
	return c, c.addNode(ctx, p)
}

// addNode starts the second node with its replicas.
func (c *cluster) addNode(ctx context.Context, p plan) (err error) {
	if err := c.joinNode(ctx, p); err != nil {
		return err
	}
	if err := c.place(ctx, c.b, "join-resource"); err != nil {
		return err
	}
	for i := range c.shape.count {
		if err := c.b.wait(ctx, c.shape.name(i), control.CondUpToDate); err != nil {
			return err
		}
	}
	return nil
}

// joinNode starts the second node without replicas.
func (c *cluster) joinNode(ctx context.Context, p plan) (err error) {
	if c.b, err = c.a.b.startNode(ctx, "b", p.between, p.args...); err != nil {
		return err
	}
	token, err := c.a.adm(ctx, "join-token")
	if err != nil {
		return err
	}
	s, err := c.a.status(ctx)
	if err != nil {
		return err
	}
	_, err = c.b.adm(ctx, "join-cluster", s.Nodes[0].Addr, "--token", token)
	return err
}

// place gives a node a disk for every resource, some at a time.
func (c *cluster) place(ctx context.Context, n *node, verb string) error {
	const atOnce = 8
	errs := make([]error, c.shape.count)
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i := range c.shape.count {
		disk, err := n.b.disk(n.name+"-"+c.shape.name(i)+".img", c.shape.size, content{seed: uint64(i)})
		if err != nil {
			errs[i] = err
			break
		}
		c.disks = append(c.disks, disk)
		slots <- struct{}{}
		wg.Go(func() { // ends with the command
			_, errs[i] = n.adm(ctx, verb, c.shape.name(i), disk)
			<-slots
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c *cluster) nodes() []*node {
	if c.b == nil {
		return []*node{c.a}
	}
	return []*node{c.a, c.b}
}

// settle waits until everything is on all disks.
func (c *cluster) settle(ctx context.Context) error {
	for _, n := range c.nodes() {
		for i := range c.shape.count {
			if err := n.wait(ctx, c.shape.name(i), control.CondReplayReached); err != nil {
				return err
			}
		}
	}
	return nil
}

// target shows the devices at node n.
func (c *cluster) target(n *node) *target {
	t := &target{name: marsAlone, size: c.shape.size, disks: c.disks, procs: []*process{n.proc}, settle: c.settle}
	if c.b != nil {
		t.name, t.behind = marsPair, []*process{c.b.proc}
	}
	for i := range c.shape.count {
		t.sockets = append(t.sockets, n.socket(c.shape.name(i)))
	}
	return t
}

// mars makes targets that are served by the first node of a cluster.
func mars(p plan) maker {
	return func(b *bench, ctx context.Context, s shape) (*target, error) {
		p.shape = s
		c, err := b.startCluster(ctx, p)
		if err != nil {
			return nil, err
		}
		return c.target(c.a), nil
	}
}

// has answers nil when the node has all log up to an LSN on stable storage.
func (n *node) has(ctx context.Context, lsn int64) error {
	m, err := n.member(ctx)
	if err == nil && m.DurableLSN < lsn {
		err = fmt.Errorf("%s has %d of %d", n.name, m.DurableLSN, lsn)
	}
	return err
}
