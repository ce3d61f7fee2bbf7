package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"mars/tests/vm/wire"
)

// ErrGone is the end of what runs in a machine that is no more.
var ErrGone = errors.New("the machine is gone")

// agent is the lab's end of the serial port of one machine.
type agent struct {
	conn net.Conn
	wg   sync.WaitGroup

	mu   sync.Mutex // of all below, and of writing
	out  *json.Encoder
	next int
	jobs map[int]*Job
	gone bool
}

// Job is a script that runs in a machine.
type Job struct {
	agent          *agent
	id             int
	stdout, stderr io.Writer
	done           chan struct{}
	status         int // valid when done
	err            error
}

// dialAgent waits until the agent of a machine that boots says that it is ready.
func dialAgent(ctx context.Context, socket string) (*agent, error) {
	conn, err := dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	in := json.NewDecoder(conn)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	var hello wire.Reply
	err = in.Decode(&hello)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wait for the agent: %w", err), conn.Close())
	}
	a := &agent{conn: conn, out: json.NewEncoder(conn), jobs: map[int]*Job{}}
	a.wg.Go(func() { a.receive(in) }) // ends with conn
	return a, nil
}

// dial connects as soon as QEMU listens.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return conn, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.Join(err, context.Cause(ctx))
		}
	}
}

// Close ends the connection and all jobs, as far as the lab is concerned.
func (a *agent) Close() error {
	err := a.conn.Close()
	a.wg.Wait()
	return err
}

func (a *agent) receive(in *json.Decoder) {
	for {
		var r wire.Reply
		if err := in.Decode(&r); err != nil {
			a.abandon()
			return
		}
		a.mu.Lock()
		j := a.jobs[r.ID]
		if r.Exit != nil {
			delete(a.jobs, r.ID)
		}
		a.mu.Unlock()
		if j != nil {
			j.take(r)
		}
	}
}

func (a *agent) abandon() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone = true
	for _, j := range a.jobs {
		j.err = ErrGone
		close(j.done)
	}
	a.jobs = nil
}

func (j *Job) take(r wire.Reply) {
	if len(r.Stdout) > 0 {
		j.stdout.Write(r.Stdout)
	}
	if len(r.Stderr) > 0 {
		j.stderr.Write(r.Stderr)
	}
	if r.Exit != nil {
		j.status = *r.Exit
		close(j.done)
	}
}

func (a *agent) ask(r wire.Request, stdout, stderr io.Writer) *Job {
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next++
	j := &Job{agent: a, id: a.next, stdout: stdout, stderr: stderr, done: make(chan struct{})}
	r.ID = j.id
	if a.gone || a.out.Encode(r) != nil {
		j.err = ErrGone
		close(j.done)
		return j
	}
	a.jobs[j.id] = j
	return j
}

// Wait waits for the end of the job, which it kills when ctx ends before.
func (j *Job) Wait(ctx context.Context) (status int, err error) {
	select {
	case <-j.done:
		return j.status, j.err
	case <-ctx.Done():
		j.Kill()
		return -1, context.Cause(ctx)
	}
}

// Done is closed when the job has ended.
func (j *Job) Done() <-chan struct{} { return j.done }

// Kill ends the job and what it has started in its session.
func (j *Job) Kill() {
	j.agent.mu.Lock()
	defer j.agent.mu.Unlock()
	if !j.agent.gone {
		j.agent.out.Encode(wire.Request{ID: j.id, Kill: true}) // an error ends the receiver too
	}
}

func (a *agent) setClock(ctx context.Context) error {
	status, err := a.ask(wire.Request{Now: time.Now().UnixNano()}, nil, nil).Wait(ctx)
	if err == nil && status != 0 {
		err = fmt.Errorf("set the clock: status %d", status)
	}
	return err
}

// Write sends input to the job, which must have been started by Converse.
func (j *Job) Write(p []byte) (int, error) {
	j.agent.mu.Lock()
	defer j.agent.mu.Unlock()
	if j.agent.gone {
		return 0, ErrGone
	}
	if err := j.agent.out.Encode(wire.Request{ID: j.id, Input: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Start starts a bash script in the machine. Its output goes to the writers, which must not block and are called on one goroutine for all jobs
// of the machine; nil drops it.
func (m *Machine) Start(script string, stdout, stderr io.Writer) *Job {
	return m.agent.ask(wire.Request{Script: script}, stdout, stderr)
}

// Converse is Start for a script that reads what is written to the job.
func (m *Machine) Converse(script string, stdout, stderr io.Writer) *Job {
	return m.agent.ask(wire.Request{Script: script, Stdin: true}, stdout, stderr)
}

// ExitError says that a script in a machine has failed.
type ExitError struct {
	Machine string
	Script  string
	Status  int
	Output  string // the end of all that it has printed
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit status %d of:\n%s\n%s", e.Machine, e.Status, e.Script, e.Output)
}

// Run runs a bash script in the machine and returns its standard output. An exit status other than 0 is an *ExitError.
func (m *Machine) Run(ctx context.Context, script string) (string, error) {
	var out, all bytes.Buffer
	status, err := m.Start(script, io.MultiWriter(&out, &all), &all).Wait(ctx)
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", m.Name, err, script)
	}
	if status != 0 {
		return out.String(), &ExitError{m.Name, script, status, tail(all.String())}
	}
	return out.String(), nil
}
