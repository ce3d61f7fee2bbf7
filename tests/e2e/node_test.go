package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mars/internal/control"
)

// node is one host: a directory, an address, and a marsd while it runs.
type node struct {
	w      *world
	name   string
	dir    string
	listen string // where marsd listens
	via    string // where the others find it: its proxy
	flags  []string
	marsd  string // the program

	cmd   *exec.Cmd
	ended chan error // receives the exit of cmd once
}

// start runs marsd and returns when it answers. extra flags are only for this run.
func (x *node) start(extra ...string) {
	x.w.t.Helper()
	x.launch(extra...)
	x.await("marsd answers", func(control.Status) bool { return true })
}

// launch runs marsd and does not wait for anything.
func (x *node) launch(extra ...string) {
	x.w.t.Helper()
	log, err := os.OpenFile(x.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		x.w.t.Fatal(err)
	}
	defer log.Close()
	x.cmd = x.command(extra...)
	x.cmd.Stderr = log
	x.cmd.Stdout = log
	if err := x.cmd.Start(); err != nil {
		x.w.t.Fatal(err)
	}
	x.w.net.Running(x.name, x.cmd.Process.Pid)
	ended, cmd := make(chan error, 1), x.cmd
	x.ended = ended
	go func() { ended <- cmd.Wait() }() // ends with the process, which every test ends
}

func (x *node) command(extra ...string) *exec.Cmd {
	args := append([]string{"--dir", x.dir, "--name", x.name, "--listen", x.listen, "--advertise", x.via}, x.flags...)
	cmd := exec.Command(cmp.Or(x.marsd, bin.marsd), append(args, extra...)...)
	cmd.Env = append(os.Environ(), clockFile+"="+x.clockFile())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true} // no stray daemons, not even when the tests are killed
	return cmd
}

func (x *node) logFile() string { return filepath.Join(x.w.root, x.name+".log") }
func (x *node) disk() string    { return filepath.Join(x.w.root, x.name+".img") }
func (x *node) running() bool   { return x.cmd != nil }

// kill ends marsd as a power cut would end it, seen from the processes.
func (x *node) kill() {
	x.w.t.Helper()
	x.signal(syscall.SIGKILL)
	x.reap()
}

// stop asks marsd to stop and fails the test when it does not stop cleanly.
func (x *node) stop() {
	x.w.t.Helper()
	x.signal(syscall.SIGTERM)
	if err := x.reap(); err != nil {
		x.w.t.Errorf("marsd %s does not stop cleanly: %v\n%s", x.name, err, x.tail())
	}
}

// freeze stops the process without ending it; thaw lets it go on.
func (x *node) freeze() { x.signal(syscall.SIGSTOP) }
func (x *node) thaw()   { x.signal(syscall.SIGCONT) }

func (x *node) signal(s os.Signal) {
	x.w.t.Helper()
	if err := x.cmd.Process.Signal(s); err != nil {
		x.w.t.Fatalf("signal marsd %s: %v\n%s", x.name, err, x.tail())
	}
}

// reap waits for the end of marsd and returns how it ended.
func (x *node) reap() error {
	x.w.t.Helper()
	defer func() {
		x.cmd = nil
		x.w.net.Running(x.name, 0)
	}()
	select {
	case err := <-x.ended:
		return err
	case <-time.After(patience):
		x.signal(syscall.SIGQUIT) // for the goroutines in the log
		x.w.t.Errorf("marsd %s does not end", x.name)
		x.signal(syscall.SIGKILL)
		return <-x.ended
	}
}

// end makes sure that marsd is gone when the test is over, however it went. A stop that is asked for must always succeed.
func (x *node) end() {
	if !x.running() {
		return
	}
	if x.w.t.Failed() {
		x.cmd.Process.Signal(syscall.SIGCONT)
		x.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-x.ended:
		case <-time.After(10 * time.Second):
			x.cmd.Process.Kill()
			<-x.ended
		}
		x.cmd = nil
		return
	}
	x.stop()
}

// checkLog fails the test for what no marsd may ever say.
func (x *node) checkLog() {
	b, err := os.ReadFile(x.logFile())
	if err != nil {
		x.w.t.Error(err)
	}
	for _, bad := range []string{"DATA RACE", "panic: ", "fatal error: "} {
		if i := bytes.Index(b, []byte(bad)); i >= 0 {
			x.w.t.Errorf("marsd %s: %s", x.name, b[i:min(len(b), i+4000)])
		}
	}
}

// tail is the end of marsd's log.
func (x *node) tail() string {
	b, err := os.ReadFile(x.logFile())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-3000):])
}

// answer is how a marsadm command ended.
type answer struct {
	code     int
	out, err string
}

// adm runs marsadm for this node.
func (x *node) adm(args ...string) answer {
	x.w.t.Helper()
	return x.admIn(commandly, args...)
}

// admIn is adm with a time-out of its own.
func (x *node) admIn(d time.Duration, args ...string) answer {
	x.w.t.Helper()
	cmd := exec.Command(bin.marsadm, append([]string{"--dir", x.dir, "--timeout", d.String()}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		x.w.t.Fatalf("run marsadm: %v", err)
	}
	return answer{cmd.ProcessState.ExitCode(), strings.TrimSpace(out.String()), strings.TrimSpace(errs.String())}
}

// do runs a command that must succeed and returns its output.
func (x *node) do(args ...string) string {
	x.w.t.Helper()
	a := x.adm(args...)
	if a.code != 0 {
		x.w.t.Fatalf("%s: marsadm %s: exit status %d\n%s", x.name, strings.Join(args, " "), a.code, a.err)
	}
	return a.out
}

// refuses runs a command that must be refused with one line that has all the words.
func (x *node) refuses(words []string, args ...string) {
	x.w.t.Helper()
	checkRefusal(x.w.t, x.name+": marsadm "+strings.Join(args, " "), x.adm(args...), words...)
}

// checkRefusal: exit status 1, and one line on stderr that tells the operator what the words say.
func checkRefusal(t *testing.T, what string, a answer, words ...string) {
	t.Helper()
	if a.code != 1 {
		t.Fatalf("%s: exit status %d, want 1\nstdout: %s\nstderr: %s", what, a.code, a.out, a.err)
	}
	if strings.Contains(a.err, "\n") {
		t.Errorf("%s: more than one line on stderr:\n%s", what, a.err)
	}
	for _, w := range words {
		if !strings.Contains(a.err, w) {
			t.Errorf("%s: the refusal does not mention %q:\n%s", what, w, a.err)
		}
	}
}

func (x *node) tryStatus() (control.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return control.Dial(filepath.Join(x.dir, control.SocketName)).Status(ctx)
}

// await waits until the node's status fulfils the condition. What it says last is shown when it never does.
func (x *node) await(what string, cond func(control.Status) bool) control.Status {
	x.w.t.Helper()
	end := time.NewTimer(patience)
	defer end.Stop()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		st, err := x.tryStatus()
		if err == nil && cond(st) {
			return st
		}
		select {
		case err := <-x.ended:
			x.ended <- err
			x.cmd = nil
			x.w.t.Fatalf("%s: waiting until %s: marsd has ended: %v\n%s", x.name, what, err, x.tail())
		case <-end.C:
			x.w.t.Fatalf("%s: waited %v in vain until %s; last status (%v):\n%s", x.name, patience, what, err, show(st))
		case <-poll.C:
		}
	}
}
