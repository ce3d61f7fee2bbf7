package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// startPair starts n nodes; via may give another address under which the second one finds the first, and the other way round.
func (b *bench) startPair(ctx context.Context, n int, via func(addr string) (string, error)) (*pair, error) {
	disk, err := b.disk("a.img")
	if err != nil {
		return nil, err
	}
	p := &pair{}
	if p.a, err = b.startAdvertised(ctx, "a", via); err != nil {
		return nil, err
	}
	for _, c := range [][]string{{"create-cluster"}, {"create-resource", "disk", disk}} {
		if _, err := p.a.adm(ctx, c...); err != nil {
			return nil, err
		}
	}
	if n == 1 {
		return p, nil
	}
	if p.b, err = b.startAdvertised(ctx, "b", via); err != nil {
		return nil, err
	}
	return p, b.join(ctx, p)
}

func (b *bench) startAdvertised(ctx context.Context, name string, via func(string) (string, error)) (*marsNode, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	adv, err := via(addr)
	if err != nil {
		return nil, err
	}
	return b.startNode(ctx, name, "--listen", addr, "--advertise", adv)
}

// join adds the second replica on a copy of the first disk, so that the sync finds nothing to do.
func (b *bench) join(ctx context.Context, p *pair) error {
	disk, err := b.disk("b.img")
	if err != nil {
		return err
	}
	if err := b.joinCluster(ctx, p); err != nil {
		return err
	}
	if _, err := p.b.adm(ctx, "join-resource", "disk", disk); err != nil {
		return err
	}
	_, err = p.b.adm(ctx, "wait-resource", "disk", "uptodate")
	return err
}

func (b *bench) joinCluster(ctx context.Context, p *pair) error {
	token, err := p.a.adm(ctx, "join-token")
	if err != nil {
		return err
	}
	addr, err := p.a.addr(ctx)
	if err != nil {
		return err
	}
	_, err = p.b.adm(ctx, "join-cluster", addr, "--token", token)
	return err
}

func (n *marsNode) addr(ctx context.Context) (string, error) {
	s, err := n.status(ctx)
	if err != nil {
		return "", err
	}
	for _, x := range s.Nodes {
		if x.Self {
			return x.Addr, nil
		}
	}
	return "", errors.New("no address")
}

// replicationRows measures what only a replicating system does, against the nearest thing that others have.
func (b *bench) replicationRows(ctx context.Context) error {
	rows := []struct {
		name string
		f    func(context.Context) error
	}{
		{"slow line", b.slowLine}, {"full sync", b.fullSync}, {"replay catch-up", b.catchUp}, {"handover", b.handover},
	}
	for _, r := range rows {
		if !b.o.only.MatchString(r.name) {
			continue
		}
		for range b.o.reps {
			if err := errors.Join(os.RemoveAll(b.o.dir), os.MkdirAll(b.o.dir, 0o700)); err != nil {
				return err
			}
			if err := r.f(ctx); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
	}
	return nil
}

var writeJob = job{"", []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"}, "IOPS"}

// slowLine: the application's rate with a secondary behind 1 Mbit/s against that without secondary.
func (b *bench) slowLine(ctx context.Context) error {
	const row = "slow line: app randwrite 4k QD32"
	alone, err := b.startPair(ctx, 1, direct)
	if err != nil {
		return err
	}
	v, err := b.fio(ctx, writeJob, alone.a.socket())
	if err := errors.Join(err, alone.stop()); err != nil {
		return err
	}
	b.add(row, "IOPS", "mars, no secondary", v)
	if err := errors.Join(os.RemoveAll(b.o.dir), os.MkdirAll(b.o.dir, 0o700)); err != nil {
		return err
	}
	line := &slowProxy{}
	defer line.close()
	p, err := b.startPair(ctx, 2, line.forward)
	if err != nil {
		return err
	}
	line.limit(1e6 / 8)
	v, err = b.fio(ctx, writeJob, p.a.socket())
	if err := errors.Join(err, p.stop()); err != nil {
		return err
	}
	b.add(row, "IOPS", "mars, secondary at 1 Mbit/s", v)
	return nil
}

func direct(addr string) (string, error) { return addr, nil }

func (n *marsNode) socket() string { return filepath.Join(n.dir, "dev", "disk.sock") }

// fullSync: a join with an empty disk, against cp and rsync of the same file.
func (b *bench) fullSync(ctx context.Context) error {
	const row = "full sync, empty target"
	p, err := b.startPair(ctx, 1, direct)
	if err != nil {
		return err
	}
	defer p.stop()
	if p.b, err = b.startAdvertised(ctx, "b", direct); err != nil {
		return err
	}
	if err := b.joinCluster(ctx, p); err != nil {
		return err
	}
	empty := filepath.Join(b.o.dir, "b.img")
	if err := errors.Join(os.WriteFile(empty, nil, 0o600), os.Truncate(empty, b.o.size)); err != nil {
		return err
	}
	start := time.Now()
	if _, err := p.b.adm(ctx, "join-resource", "disk", empty); err != nil {
		return err
	}
	if _, err := p.b.adm(ctx, "wait-resource", "disk", "sync-off"); err != nil {
		return err
	}
	b.add(row, "MiB/s", "mars", b.rate(start))
	src := filepath.Join(b.o.dir, "a.img")
	for name, cmd := range map[string][]string{
		"cp":    {"sh", "-c", "cp --reflink=never '" + src + "' '" + empty + ".cp' && sync '" + empty + ".cp'"},
		"rsync": {"sh", "-c", "rsync --whole-file '" + src + "' '" + empty + ".rsync' && sync '" + empty + ".rsync'"},
	} {
		start := time.Now()
		if out, err := exec.CommandContext(ctx, cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, out)
		}
		b.add(row, "MiB/s", name, b.rate(start))
	}
	return nil
}

func (b *bench) rate(start time.Time) float64 {
	return float64(b.o.size) / (1 << 20) / time.Since(start).Seconds()
}

// catchUp: how fast a backlog of random 4 KiB writes is replayed, against the bare disk taking them as O_DSYNC writes and sequentially.
func (b *bench) catchUp(ctx context.Context) error {
	const row = "replay catch-up, random 4k backlog"
	p, err := b.startPair(ctx, 2, direct)
	if err != nil {
		return err
	}
	defer p.stop()
	if _, err := p.b.adm(ctx, "pause-replay", "disk"); err != nil {
		return err
	}
	if _, err := b.fio(ctx, writeJob, p.a.socket()); err != nil {
		return err
	}
	if _, err := p.b.adm(ctx, "wait-resource", "disk", "fetch-reached"); err != nil {
		return err
	}
	s, err := p.b.status(ctx)
	if err != nil {
		return err
	}
	backlog := s.Resources[0].Members[0].EndLSN - s.Resources[0].Members[0].AppliedLSN
	start := time.Now()
	for _, c := range [][]string{{"resume-replay", "disk"}, {"wait-resource", "disk", "replay-reached"}} {
		if _, err := p.b.adm(ctx, c...); err != nil {
			return err
		}
	}
	b.add(row, "MiB/s", "mars", float64(backlog)/(1<<20)/time.Since(start).Seconds())
	for name, args := range map[string][]string{
		"disk, randwrite 4k O_DSYNC": {"--rw=randwrite", "--bs=4k", "--sync=dsync"},
		"disk, seqwrite 1M":          {"--rw=write", "--bs=1m", "--end_fsync=1"},
	} {
		v, err := b.fioFile(ctx, args)
		if err != nil {
			return err
		}
		b.add(row, "MiB/s", name, v)
	}
	return nil
}

// fioFile measures the bare disk.
func (b *bench) fioFile(ctx context.Context, args []string) (float64, error) {
	out, err := exec.CommandContext(ctx, "fio", append([]string{"--name=job", "--ioengine=psync", "--filename=" + filepath.Join(b.o.dir, "a.img"), "--output-format=json",
		fmt.Sprintf("--size=%d", b.o.size), fmt.Sprintf("--runtime=%d", int(b.o.runtime/time.Second)), "--randrepeat=0", "--norandommap"}, args...)...).Output()
	if err != nil {
		return 0, err
	}
	return parseFio(out, "MiB/s")
}

// handover: from the command to the device being there, idle.
func (b *bench) handover(ctx context.Context) error {
	p, err := b.startPair(ctx, 2, direct)
	if err != nil {
		return err
	}
	defer p.stop()
	for _, n := range []*marsNode{p.b, p.a} {
		start := time.Now()
		if _, err := n.adm(ctx, "primary", "disk"); err != nil {
			return err
		}
		b.add("handover, idle", "ms", "mars", float64(time.Since(start))/1e6)
	}
	for _, n := range []*marsNode{p.a, p.b} {
		cpu, peak, err := usage(n.cmd.Process.Pid)
		if err != nil {
			return err
		}
		b.add("memory, peak of the daemon", "MiB", "mars "+n.name, peak/(1<<20))
		b.add("CPU of the daemon, idle pair", "ms", "mars "+n.name, cpu*1000)
	}
	return nil
}

// usage returns CPU seconds and peak resident bytes of a process.
func usage(pid int) (cpu, peak float64, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, x := range f[11:13] { // utime and stime, in ticks of 10 ms
		n, err := strconv.ParseFloat(x, 64)
		if err != nil {
			return 0, 0, err
		}
		cpu += n / 100
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return cpu, kib * 1024, err
		}
	}
	return cpu, 0, errors.New("no VmHWM")
}

// slowProxy forwards TCP connections and can limit their rate.
type slowProxy struct {
	mu        sync.Mutex
	rate      float64 // bytes per second, 0 = unlimited
	listeners []net.Listener
}

func (s *slowProxy) limit(rate float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rate = rate
}

// forward opens a port that leads to addr.
func (s *slowProxy) forward(addr string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	s.listeners = append(s.listeners, l)
	s.mu.Unlock()
	go func() { // ends when the listener is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.pipe(c, addr)
		}
	}()
	return l.Addr().String(), nil
}

func (s *slowProxy) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		l.Close()
	}
}

func (s *slowProxy) pipe(c net.Conn, addr string) {
	d, err := net.Dial("tcp", addr)
	if err != nil {
		c.Close()
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.copy(d, c) })
	wg.Go(func() { s.copy(c, d) })
	wg.Wait()
}

func (s *slowProxy) copy(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		if _, werr := dst.Write(buf[:n]); err != nil || werr != nil {
			return
		}
		s.mu.Lock()
		rate := s.rate
		s.mu.Unlock()
		if rate > 0 {
			time.Sleep(time.Duration(float64(n) / rate * float64(time.Second)))
		}
	}
}
