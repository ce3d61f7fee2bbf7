package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a child that serves. unwind stops it.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// stopTime is how long a child may take to end when it is told to.
const stopTime = 20 * time.Second

// start starts a child in a process group of its own, so that only the bench decides when it ends.
func (b *bench) start(name string, args ...string) (*process, error) {
	p := &process{name: filepath.Base(name), cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() { // ends with the child
		p.cmd.Wait() // how it ended shows in what it has done or not
		close(p.done)
	}()
	b.later(p.stop)
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the child and waits; it may be called again.
func (p *process) stop() error {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTime):
		p.kill()
		return fmt.Errorf("%s had to be killed: it did not end within %v", p.name, stopTime)
	}
}

// kill ends the child at once.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

func (p *process) signal(s syscall.Signal) {
	select {
	case <-p.done: // the number may be somebody else's now
	default:
		syscall.Kill(-p.pid(), s)
	}
}

// cpu returns the CPU time in seconds that the child has used so far, all its threads, living and dead.
func (p *process) cpu() (float64, error) {
	clock := int32(^p.pid())<<3 | 2 // see clock_getcpuclockid(3)
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0, fmt.Errorf("CPU clock of %s: %w", p.name, err)
	}
	return float64(t.Nano()) / 1e9, nil
}

// memory returns a line of /proc/PID/FILE in bytes: VmHWM in status is the peak, Pss in smaps_rollup what there is now, shared pages divided.
func (p *process) memory(file, line string) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.pid(), file))
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(l, line+":"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib * 1024, err
		}
	}
	return 0, fmt.Errorf("no %s in %s of %s", line, file, p.name)
}

// command runs a program to its end and returns what it prints. When ctx ends, the program does, with all its children.
func command(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var errText bytes.Buffer
	cmd.Stderr = &errText
	owned(cmd)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(name), err, strings.TrimSpace(errText.String()))
	}
	return out, nil
}

// owned makes the end of cmd's context the end of its process group.
func owned(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = stopTime
}

// waitFor looks again and again until f answers nil. It returns the last answer when ctx or the time ends.
func waitFor(ctx context.Context, what string, f func() error) error {
	const patience = 60 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, errors.Join(ctx.Err(), err))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func waitSocket(ctx context.Context, path string) error {
	return waitFor(ctx, "no socket "+path, func() error {
		_, err := os.Stat(path)
		return err
	})
}
