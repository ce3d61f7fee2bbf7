package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Names of targets.
const (
	qemu      = "qemu-nbd"
	nbdkit    = "nbdkit"
	marsAlone = "mars"
	marsPair  = "mars + secondary"
)

// target is something that serves block devices.
type target struct {
	name    string
	sockets []string                    // NBD, one for each device
	device  string                      // or one block device
	size    int64                       // of each
	disks   []string                    // files in which the data are
	procs   []*process                  // who serves
	behind  []*process                  // who replicates it
	settle  func(context.Context) error // waits until nothing of the job before is going on any more
}

// shape says what devices a target shall show.
type shape struct {
	count int
	size  int64
}

func (s shape) name(i int) string { return fmt.Sprintf("disk%d", i) }

// maker starts a target on fresh disks; unwind stops it.
type maker func(b *bench, ctx context.Context, s shape) (*target, error)

var nbdMakers = []maker{
	peer(qemuServer), peer(nbdkitServer), mars(plan{nodes: 1}), mars(plan{nodes: 2}),
}

func (b *bench) blockRows(ctx context.Context, rep int) error {
	return b.measure(ctx, rep, nbdMakers, shape{1, b.o.size}, blockJobs)
}

func (b *bench) manyRows(ctx context.Context, rep int) error {
	const many = 20
	return b.measure(ctx, rep, nbdMakers, shape{many, max(b.o.size/many, 32<<20) &^ (1<<20 - 1)}, manyJobs)
}

// measure does all jobs with every target, each time beginning with another one.
func (b *bench) measure(ctx context.Context, rep int, makers []maker, s shape, jobs jobList) error {
	for i := range makers {
		t, err := makers[(i+rep)%len(makers)](b, ctx, s)
		if err != nil {
			return err
		}
		for _, j := range jobs.of(b) {
			if err := b.measureOne(ctx, j, t); err != nil {
				return err
			}
		}
		if err := b.recordMemory(t, s); err != nil {
			return err
		}
		if err := b.unwind(); err != nil {
			return err
		}
	}
	return nil
}

// measureOne does one job. What the daemon still has to do for it afterwards (write back, replicate) counts as its CPU time, too.
func (b *bench) measureOne(ctx context.Context, j job, t *target) error {
	if err := b.equalise(ctx, t); err != nil {
		return err
	}
	before, err := t.cpu()
	if err != nil {
		return err
	}
	f, err := j.do(b, ctx, t)
	if err != nil {
		return err
	}
	if err := t.settle(ctx); err != nil {
		return err
	}
	after, err := t.cpu()
	if err != nil {
		return err
	}
	b.record(j, t.name, f)
	if j.cpu {
		for name := range after {
			b.add(j.name+" CPU", "us/IO", name, (after[name]-before[name])*1e6/f.ios)
		}
	}
	return nil
}

const marsBehind = "mars: that secondary"

// cpu returns the seconds used so far by who serves the target, and by who replicates it.
func (t *target) cpu() (map[string]float64, error) {
	used := map[string]float64{}
	for name, procs := range map[string][]*process{t.name: t.procs, marsBehind: t.behind} {
		for _, p := range procs {
			x, err := p.cpu()
			if err != nil {
				return nil, err
			}
			used[name] += x
		}
	}
	return used, nil
}

func (j job) do(b *bench, ctx context.Context, t *target) (figures, error) {
	if len(j.args) == 0 {
		return b.sqlite(ctx, t)
	}
	return b.fio(ctx, j, t)
}

// equalise brings the machine into the same state before every job of every target: nothing is going on, nothing is waiting to be written,
// the disks are in the page cache as a whole.
func (b *bench) equalise(ctx context.Context, t *target) error {
	if err := t.settle(ctx); err != nil {
		return err
	}
	syscall.Sync()
	for _, d := range t.disks {
		if err := readThrough(d); err != nil {
			return err
		}
	}
	b.touchMemory()
	return nil
}

// touchMemory leaves as much free memory that has been in use before as a job needs. On a virtual machine whose host takes free memory back, the first
// touch of a page costs ten times the next one, and who has kept its pages from the job before would be the faster one.
func (b *bench) touchMemory() {
	m, err := syscall.Mmap(-1, 0, int(4*b.o.size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_POPULATE)
	if err == nil {
		_ = syscall.Munmap(m) // cannot fail for what was mapped
	}
}

func readThrough(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return err
}

func (b *bench) recordMemory(t *target, s shape) error {
	if s.count > 1 || len(t.procs) == 0 || t.device != "" {
		return nil
	}
	peak, err := t.procs[0].memory("status", "VmHWM")
	if err == nil {
		b.add(peakMemory, "MiB", t.name, peak/(1<<20))
	}
	return err
}

// content is what a disk is filled with: random data of a seed, of which every n-th block of 4 KiB, at random, is replaced (0: none).
type content struct {
	seed  uint64
	every int
}

// disk makes a file with every block written, so that nobody measures allocation. The data are the same for the same content.
func (b *bench) disk(name string, size int64, c content) (string, error) {
	path := filepath.Join(b.o.dir, name)
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	data, change := seeded(c.seed), rand.New(seeded(^c.seed))
	buf := make([]byte, 1<<20)
	for n := int64(0); n < size; n += int64(len(buf)) {
		data.Read(buf)
		for at := 0; c.every > 0 && at < len(buf); at += 4 << 10 {
			if change.IntN(c.every) == 0 {
				binary.LittleEndian.PutUint64(buf[at:], change.Uint64())
			}
		}
		if _, err := f.Write(buf); err != nil {
			return "", errors.Join(err, f.Close())
		}
	}
	return path, errors.Join(f.Sync(), f.Close())
}

func seeded(seed uint64) *rand.ChaCha8 {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// server is the command line of a peer.
type server struct {
	name string
	argv func(sock, disk string) []string
}

var (
	qemuServer = server{qemu, func(sock, disk string) []string {
		return []string{"qemu-nbd", "--cache=writeback", "-f", "raw", "-t", "-e", "16", "-k", sock, disk}
	}}
	nbdkitServer = server{nbdkit, func(sock, disk string) []string { return []string{"nbdkit", "-f", "-U", sock, "file", disk} }}
)

// peer makes targets that are served by s, one process for each device.
func peer(s server) maker {
	return func(b *bench, ctx context.Context, sh shape) (*target, error) {
		t := &target{name: s.name, size: sh.size, settle: func(context.Context) error { return nil }}
		for i := range sh.count {
			disk, err := b.disk(sh.name(i)+".img", sh.size, content{seed: uint64(i)})
			if err != nil {
				return nil, err
			}
			t.disks = append(t.disks, disk)
		}
		return t, b.serve(ctx, t, s)
	}
}

// serve starts the processes for the disks of t and waits until all of them are there.
func (b *bench) serve(ctx context.Context, t *target, s server) error {
	for _, disk := range t.disks {
		sock := disk + ".sock"
		argv := s.argv(sock, disk)
		p, err := b.start(argv[0], argv[1:]...)
		if err != nil {
			return err
		}
		t.sockets, t.procs = append(t.sockets, sock), append(t.procs, p)
	}
	for _, sock := range t.sockets {
		if err := waitSocket(ctx, sock); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

// since is the time in seconds.
func since(t time.Time) float64 { return time.Since(t).Seconds() }
