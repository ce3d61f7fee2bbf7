package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"mars/tests/vm/wire"

	"golang.org/x/sys/unix"
)

// server is the agent's end of the serial port.
type server struct {
	mu   sync.Mutex // of port's writing side
	port *json.Encoder

	jobs sync.Map // ID to *job
}

type job struct {
	cmd   *exec.Cmd
	input io.WriteCloser // nil when it reads nothing
}

// agent does what the lab asks for, until the port fails.
func agent() error {
	port, err := openPort()
	if err != nil {
		return err
	}
	s := &server{port: json.NewEncoder(port)}
	s.send(wire.Reply{})
	in := json.NewDecoder(port)
	for {
		var r wire.Request
		if err := in.Decode(&r); err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		s.handle(r)
	}
}

func openPort() (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == wire.Port {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("no port %s among %q", wire.Port, names)
}

func (s *server) send(r wire.Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.port.Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, "agent: send:", err)
		os.Exit(1) // nobody can talk to this machine any more
	}
}

func (s *server) handle(r wire.Request) {
	switch {
	case r.Now != 0:
		tv := unix.NsecToTimeval(r.Now)
		s.exit(r.ID, unix.Settimeofday(&tv))
	case r.Kill:
		if j, ok := s.jobs.Load(r.ID); ok {
			syscall.Kill(-j.(*job).cmd.Process.Pid, syscall.SIGKILL)
		}
	case r.Input != nil:
		if j, ok := s.jobs.Load(r.ID); ok {
			j.(*job).input.Write(r.Input) // who does not read any more will say why
		}
	default:
		s.run(r)
	}
}

// grace is how long output is awaited of what a finished script has left running.
const grace = 200 * time.Millisecond

func (s *server) run(r wire.Request) {
	cmd := exec.Command("/usr/bin/bash", "-c", r.Script)
	cmd.Dir, cmd.Env, cmd.WaitDelay = "/root", os.Environ(), grace
	cmd.Stdout = output(func(p []byte) { s.send(wire.Reply{ID: r.ID, Stdout: p}) })
	cmd.Stderr = output(func(p []byte) { s.send(wire.Reply{ID: r.ID, Stderr: p}) })
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	j := &job{cmd: cmd}
	if err := j.start(r.Stdin); err != nil {
		s.exit(r.ID, err)
		return
	}
	s.jobs.Store(r.ID, j)
	go func() { // ends with the job
		err := cmd.Wait()
		s.jobs.Delete(r.ID)
		s.exit(r.ID, err)
	}()
}

func (j *job) start(stdin bool) (err error) {
	if stdin {
		if j.input, err = j.cmd.StdinPipe(); err != nil {
			return err
		}
	}
	return j.cmd.Start()
}

func (s *server) exit(id int, err error) {
	status := 0
	var ended *exec.ExitError
	switch {
	case errors.As(err, &ended):
		status = ended.ExitCode()
		if w, ok := ended.Sys().(syscall.WaitStatus); ok && w.Signaled() {
			status = 128 + int(w.Signal())
		}
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		s.send(wire.Reply{ID: id, Stderr: []byte(err.Error() + "\n")})
		status = 127
	}
	s.send(wire.Reply{ID: id, Exit: &status})
}

// output is a writer that passes on what it gets.
type output func(p []byte)

var _ io.Writer = output(nil)

func (o output) Write(p []byte) (int, error) {
	o(p)
	return len(p), nil
}
