// Package lab boots virtual machines with Debian's kernel on a network of their own, runs things in them and takes their power away. It is
// for what cannot be had in a container: kernel devices (loop, nbd, ublk, device mapper, DRBD), file systems on them, a shaped network, and
// machines that die in the middle of a write.
//
// Guarantees: machines end with the lab, with its context, with the process that has it, and by themselves a minute after the deadline of the
// context, whichever comes first. Nothing outside of the lab's directory and the cache of images is touched; the host's network takes no part.
package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Config says what is in a lab. The zero values of sizes are defaults.
type Config struct {
	Machines  int
	Disks     []Disk // of each machine
	MemoryMiB int    // of each machine; 1024
	CPUs      int    // of each machine; 1
	// Files are programs and other files of this host that the machines have below /host, by their path there; /host/bin is first in PATH. Static
	// binaries run everywhere.
	Files  map[string]string
	Append string // to the kernel's command line
	Dir    string // for disks and logs: must not exist; a temporary one, removed by Close, when empty
}

// Lab is a set of machines.
type Lab struct {
	Machines  []*Machine // machine 1 is at 0
	cfg       Config
	ctx       context.Context
	image     *Image
	dir       string
	net       *network
	initramfs string
}

// New prepares machines; none runs yet. The lab must be closed. When ctx ends, machines end.
func New(ctx context.Context, cfg Config) (*Lab, error) {
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = 1024
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 1
	}
	img, err := Prepare(ctx)
	if err != nil {
		return nil, err
	}
	l := &Lab{cfg: cfg, ctx: ctx, image: img}
	if err := l.setUp(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	context.AfterFunc(ctx, l.kill)
	return l, nil
}

func (l *Lab) setUp() (err error) {
	if l.cfg.Dir == "" {
		l.dir, err = os.MkdirTemp("", "mars-vm-")
	} else {
		l.dir, err = l.cfg.Dir, os.Mkdir(l.cfg.Dir, 0o755)
	}
	if err != nil {
		return err
	}
	if l.net, err = newNetwork(l.dir, l.cfg.Machines); err != nil {
		return err
	}
	agent, err := l.buildAgent()
	if err != nil {
		return err
	}
	l.initramfs = filepath.Join(l.dir, "initramfs")
	if err := writeInitramfs(l.initramfs, l.image, agent, l.cfg.Files); err != nil {
		return err
	}
	for i := range l.cfg.Machines {
		if err := l.addMachine(i + 1); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) addMachine(number int) error {
	m := &Machine{Name: fmt.Sprintf("n%d", number), number: number, lab: l}
	m.dir = filepath.Join(l.dir, m.Name)
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		return err
	}
	for _, d := range l.cfg.Disks {
		v, err := newDrive(d, m.dir)
		if err != nil {
			return err
		}
		m.drives = append(m.drives, v)
	}
	l.Machines = append(l.Machines, m)
	return nil
}

func (l *Lab) buildAgent() (string, error) {
	return Build(l.ctx, l.dir, "mars/tests/vm/guest")
}

// Build compiles a package of this module for the machines, and returns the file, which is in dir.
func Build(ctx context.Context, dir, pkg string) (string, error) {
	file := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", file, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return file, nil
}

// Boot boots all machines at the same time.
func (l *Lab) Boot() error {
	ends := make(chan error)
	for _, m := range l.Machines {
		go func() { ends <- m.Boot(l.ctx) }() // ends with ctx or the boot
	}
	var errs []error
	for range l.Machines {
		errs = append(errs, <-ends)
	}
	return errors.Join(errs...)
}

// Dir is where disks and consoles of the machines are.
func (l *Lab) Dir() string { return l.dir }

// kill makes all machines end, without waiting for that: whoever waits for one of them notices.
func (l *Lab) kill() {
	for _, m := range l.Machines {
		if p := m.process.Load(); p != nil {
			p.Kill()
		}
	}
}

// Close ends all machines.
func (l *Lab) Close() error {
	var errs []error
	for _, m := range l.Machines {
		errs = append(errs, m.Kill())
	}
	if l.net != nil {
		errs = append(errs, l.net.Close())
	}
	if l.cfg.Dir == "" && l.dir != "" {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}
