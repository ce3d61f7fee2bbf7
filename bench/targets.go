package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// target is something that serves a block device on a Unix socket.
type target struct {
	name   string
	socket string
	settle func(context.Context) error // before each job: nothing of the job before is still going on
	stop   func() error
}

const (
	qemu      = "qemu-nbd"
	nbdkit    = "nbdkit"
	marsAlone = "mars"
	marsPair  = "mars + secondary"
)

// blockRows measures every job against every target.
func (b *bench) blockRows(ctx context.Context) error {
	var todo []job
	for _, j := range jobs {
		if b.o.only.MatchString(j.row) {
			todo = append(todo, j)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	for rep := range b.o.reps {
		fmt.Fprintf(os.Stderr, "repetition %d of %d\n", rep+1, b.o.reps)
		for i := range targetMakers {
			if err := b.measure(ctx, targetMakers[(i+rep)%len(targetMakers)], todo); err != nil {
				return err
			}
		}
	}
	return nil
}

var targetMakers = []func(*bench, context.Context) (*target, error){
	func(b *bench, ctx context.Context) (*target, error) { return b.startQemu(ctx) },
	func(b *bench, ctx context.Context) (*target, error) { return b.startNbdkit(ctx) },
	func(b *bench, ctx context.Context) (*target, error) { return b.startMars(ctx, 1) },
	func(b *bench, ctx context.Context) (*target, error) { return b.startMars(ctx, 2) },
}

// measure starts a target on a fresh, fully written disk, runs the jobs and stops it.
func (b *bench) measure(ctx context.Context, start func(*bench, context.Context) (*target, error), todo []job) (err error) {
	if err := os.RemoveAll(b.o.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(b.o.dir, 0o700); err != nil {
		return err
	}
	t, err := start(b, ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	for _, j := range todo {
		syscall.Sync()
		if err := t.settle(ctx); err != nil {
			return err
		}
		v, err := b.fio(ctx, j, t.socket)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", t.name, j.row, err)
		}
		b.add(j.row, j.unit, t.name, v)
	}
	return nil
}

// disk makes a file with every block written, so that no target measures allocation.
func (b *bench) disk(name string) (string, error) {
	path := filepath.Join(b.o.dir, name)
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	for n := int64(0); n < b.o.size; n += int64(len(buf)) {
		if _, err := f.Write(buf); err != nil {
			return "", err
		}
	}
	return path, f.Sync()
}

func (b *bench) startQemu(ctx context.Context) (*target, error) {
	disk, err := b.disk("disk.img")
	if err != nil {
		return nil, err
	}
	sock := filepath.Join(b.o.dir, "qemu.sock")
	return b.startPeer(ctx, qemu, sock, exec.Command("qemu-nbd", "--cache=writeback", "-f", "raw", "-t", "-e", "16", "-k", sock, disk))
}

func (b *bench) startNbdkit(ctx context.Context) (*target, error) {
	disk, err := b.disk("disk.img")
	if err != nil {
		return nil, err
	}
	sock := filepath.Join(b.o.dir, "nbdkit.sock")
	return b.startPeer(ctx, nbdkit, sock, exec.Command("nbdkit", "-f", "-U", sock, "file", disk))
}

func (b *bench) startPeer(ctx context.Context, name, sock string, cmd *exec.Cmd) (*target, error) {
	stop, err := startProcess(cmd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := waitSocket(ctx, sock); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), stop())
	}
	return &target{name: name, socket: sock, settle: func(context.Context) error { return nil }, stop: stop}, nil
}

// startProcess starts cmd; the function returned ends it and waits for it.
func startProcess(cmd *exec.Cmd) (stop func() error, err error) {
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() error {
		cmd.Process.Signal(syscall.SIGTERM)
		err := cmd.Wait()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return nil // by our signal
		}
		return err
	}, nil
}

func waitSocket(ctx context.Context, sock string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		_, err := os.Stat(sock)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no answer on %s: %w", sock, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// marsNode is a running daemon.
type marsNode struct {
	b    *bench
	dir  string
	name string
	cmd  *exec.Cmd
	stop func() error
}

func (b *bench) startNode(ctx context.Context, name string, args ...string) (*marsNode, error) {
	n := &marsNode{b: b, name: name, dir: filepath.Join(b.o.dir, name)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	n.cmd = exec.Command(filepath.Join(b.o.bin, "marsd"), append([]string{"--dir", n.dir, "--name", name, "--listen", addr, "--device", "none", "--log-level", "warn"}, args...)...)
	n.cmd.Env = append(os.Environ(), "GODEBUG="+os.Getenv("GODEBUG"))
	if n.stop, err = startProcess(n.cmd); err != nil {
		return nil, err
	}
	return n, waitSocket(ctx, filepath.Join(n.dir, "marsd.sock"))
}

func (n *marsNode) adm(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(n.b.o.bin, "marsadm"), append([]string{"--dir", n.dir, "--timeout", "300s"}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("marsadm on %s: %s", n.name, strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), nil
}

// pair is a cluster of one or two nodes with one resource, "disk".
type pair struct{ a, b *marsNode }

func (p *pair) stop() error {
	err := p.a.stop()
	if p.b != nil {
		err = errors.Join(err, p.b.stop())
	}
	return err
}

// startMars starts a cluster of n nodes whose first one is primary.
func (b *bench) startMars(ctx context.Context, n int) (*target, error) {
	p, err := b.startPair(ctx, n, func(addr string) (string, error) { return addr, nil })
	if err != nil {
		return nil, err
	}
	t := &target{name: marsAlone, socket: filepath.Join(p.a.dir, "dev", "disk.sock"), stop: p.stop, settle: p.settle}
	if n == 2 {
		t.name = marsPair
	}
	return t, nil
}

// settle waits until everything is on the disks.
func (p *pair) settle(ctx context.Context) error {
	_, err := p.a.adm(ctx, "wait-resource", "disk", "replay-reached")
	if err == nil && p.b != nil {
		_, err = p.b.adm(ctx, "wait-resource", "disk", "replay-reached")
	}
	return err
}
