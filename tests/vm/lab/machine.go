package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"mars/tests/vm/wire"
)

// Machine is one virtual machine of a lab. Its methods are for one goroutine at a time, but Run may be called concurrently.
type Machine struct {
	Name   string // "n1"
	number int
	lab    *Lab
	dir    string
	drives []*drive

	agent   *agent                     // while it runs
	process atomic.Pointer[os.Process] // QEMU
	ended   chan error                 // receives its end
}

// bootTime bounds the boot of a machine. An emulated processor on a busy host may need a tenth of that.
const bootTime = 2 * time.Minute

// Boot starts the machine, which must not run, and waits until it answers.
func (m *Machine) Boot(ctx context.Context) error {
	args, err := m.args()
	if err != nil {
		return err
	}
	if err := m.start(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	if m.agent, err = dialAgent(ctx, filepath.Join(m.dir, "agent")); err != nil {
		return fmt.Errorf("%s does not answer: %w\n%s", m.Name, err, m.Console())
	}
	return m.agent.setClock(ctx)
}

func (m *Machine) args() ([]string, error) {
	left := time.Minute
	if d, ok := m.lab.ctx.Deadline(); ok {
		left += time.Until(d)
	}
	args := []string{
		"-name", m.Name, "-M", "q35,hpet=off", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", strconv.Itoa(m.lab.cfg.MemoryMiB), "-smp", strconv.Itoa(m.lab.cfg.CPUs),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-rtc", "base=utc",
		"-kernel", m.lab.image.Kernel, "-initrd", m.lab.initramfs,
		"-append", fmt.Sprintf("console=ttyS0 quiet panic=-1 mitigations=off audit=0 no_timer_check tsc=reliable cryptomgr.notests mars.node=%d mars.nodes=%d mars.deadline=%s %s",
			m.number, len(m.lab.Machines), left.Round(time.Second), m.lab.cfg.Append),
		"-chardev", "file,id=console,append=on,path=" + m.consoleFile(), "-serial", "chardev:console",
		"-device", "virtio-serial-pci", "-device", "virtio-rng-pci",
		"-chardev", "socket,id=agent,server=on,wait=off,path=" + filepath.Join(m.dir, "agent"),
		"-device", "virtserialport,chardev=agent,name=" + wire.Port,
	}
	args = append(args, m.lab.net.args(m.number)...)
	for _, d := range m.drives {
		more, err := d.plug()
		if err != nil {
			return nil, err
		}
		args = append(args, more...)
	}
	return append(args, "-blockdev", "driver=file,read-only=on,node-name=root,filename="+m.lab.image.Root,
		"-device", "virtio-blk-pci,drive=root,serial=root"), nil
}

// start starts QEMU, which dies with this process at the latest.
func (m *Machine) start(args []string) error {
	log, err := os.OpenFile(filepath.Join(m.dir, "qemu.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	os.Remove(filepath.Join(m.dir, "agent"))
	cmd := exec.Command("qemu-system-x86_64", args...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started, ended := make(chan error), make(chan error, 1)
	go func() { // ends with QEMU
		runtime.LockOSThread() // the death signal comes with the end of the thread that has started the process
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
		runtime.UnlockOSThread()
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", m.Name, err)
	}
	m.ended = ended
	m.process.Store(cmd.Process)
	return m.lab.ctx.Err() // it may have ended before there was something to kill
}

// Running reports whether the machine has been started and not been stopped; it may have died by itself.
func (m *Machine) Running() bool { return m.process.Load() != nil }

// Kill ends the machine at once, like a broken mainboard: its disks keep what it has written.
func (m *Machine) Kill() error {
	p := m.process.Load()
	if p == nil {
		return nil
	}
	p.Kill() // an error means that it has ended by itself
	<-m.ended
	return m.gone()
}

// Cut ends the machine at once by taking its power away: its volatile disks lose an arbitrary part, chosen by rng, of what was not flushed.
func (m *Machine) Cut(rng *rand.Rand) error {
	err := m.Kill()
	for _, d := range m.drives {
		d.cut(rng)
	}
	return err
}

// Off asks the machine to stop, and waits for that.
func (m *Machine) Off(ctx context.Context) error {
	if !m.Running() {
		return nil
	}
	m.Start("sync; echo o >/proc/sysrq-trigger", nil, nil)
	select {
	case <-m.ended:
		return m.gone()
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%s does not stop: %w", m.Name, context.Cause(ctx)), m.Kill())
	}
}

func (m *Machine) gone() error {
	m.process.Store(nil)
	if m.agent != nil {
		m.agent.Close()
		m.agent = nil
	}
	var errs []error
	for _, d := range m.drives {
		errs = append(errs, d.unplug())
	}
	return errors.Join(errs...)
}

func (m *Machine) consoleFile() string { return filepath.Join(m.dir, "console") }

// Console returns the end of what the kernel and QEMU have said.
func (m *Machine) Console() string {
	console, _ := os.ReadFile(m.consoleFile())
	qemu, _ := os.ReadFile(filepath.Join(m.dir, "qemu.log"))
	return tail(string(console)) + tail(string(qemu))
}

// Disk returns a reader of a disk of the machine, which should not run.
func (m *Machine) Disk(name string) (io.ReaderAt, error) {
	for _, d := range m.drives {
		if d.Name == name {
			return d, nil
		}
	}
	return nil, fmt.Errorf("%s has no disk %s", m.Name, name)
}
