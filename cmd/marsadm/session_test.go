package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mars/internal/control"
)

// daemon is a Backend that remembers what it was asked.
type daemon struct {
	mu struct {
		sync.Mutex
		got []control.Command
	}
	do     func(ctx context.Context, c control.Command) (control.Result, error) // nil: success without words
	status func() (control.Status, error)
}

func (d *daemon) Do(ctx context.Context, c control.Command) (control.Result, error) {
	d.mu.Lock()
	d.mu.got = append(d.mu.got, c)
	d.mu.Unlock()
	if d.do == nil {
		return control.Result{}, nil
	}
	return d.do(ctx, c)
}

func (d *daemon) Status(context.Context) (control.Status, error) {
	if d.status == nil {
		return twoResources(), nil
	}
	return d.status()
}

func (d *daemon) commands() []control.Command {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]control.Command(nil), d.mu.got...)
}

func twoResources() control.Status {
	member := control.Member{
		Node: "node-a", Self: true, Alive: true, DiskState: control.DiskUpToDate, ReplState: control.ReplReplicating, Role: control.RolePrimary, Consistent: true,
		Switches: control.Switches{Attach: true, Fetch: true, Replay: true, Sync: true}, Device: "/dev/mars/x",
	}
	elsewhere := member
	elsewhere.Self, elsewhere.Node = false, "node-b"
	return control.Status{
		Version: "1.2.3", Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Node: "node-a", Cluster: "c1",
		Nodes: []control.Node{{Name: "node-a", Self: true, Alive: true}},
		Resources: []control.Resource{
			{Name: "alpha", SizeBytes: 1 << 30, DesignatedPrimary: "node-a", ActualPrimary: []string{"node-a"}, Members: []control.Member{member}},
			{Name: "beta", SizeBytes: 1 << 30, DesignatedPrimary: "node-a", ActualPrimary: []string{"node-a"}, Members: []control.Member{member}},
			{Name: "gamma", SizeBytes: 1 << 30, DesignatedPrimary: "node-b", ActualPrimary: []string{"node-b"}, Members: []control.Member{elsewhere}},
		},
	}
}

// session is a daemon and what marsadm prints when it talks to it.
type session struct {
	*daemon
	t        *testing.T
	dir      string
	in       string
	env      map[string]string
	terminal *size
	ticks    chan time.Time
	out, err bytes.Buffer
}

// newSession starts d on a socket; with nil there is no daemon.
func newSession(t *testing.T, d *daemon) *session {
	t.Helper()
	s := &session{daemon: d, t: t, dir: t.TempDir(), env: map[string]string{"LANG": "C.UTF-8"}, ticks: make(chan time.Time)}
	if d == nil {
		return s
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	path := filepath.Join(s.dir, control.SocketName)
	go func() { ended <- control.Serve(ctx, path, d, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	for { // until the server listens
		if _, err := control.Dial(path).Status(t.Context()); err == nil || !errors.As(err, new(*control.NotRunningError)) {
			return s
		}
		select {
		case err := <-ended:
			t.Fatalf("server: %v", err)
		default:
		}
	}
}

func (s *session) size() (size, bool) {
	if s.terminal == nil {
		return size{}, false
	}
	return *s.terminal, true
}

func (s *session) app() *app {
	return &app{
		in: strings.NewReader(s.in), out: &s.out, err: &s.err, screen: s,
		getenv: func(key string) string { return s.env[key] },
		ticks:  func() (<-chan time.Time, func()) { return s.ticks, func() {} },
	}
}

// run runs one command line (split at spaces) with --dir, and returns the exit status; out and err hold what it printed.
func (s *session) run(line string) int {
	s.t.Helper()
	return s.runCtx(s.t.Context(), line)
}

func (s *session) runCtx(ctx context.Context, line string) int {
	s.out.Reset()
	s.err.Reset()
	return s.app().run(ctx, append([]string{"--dir", s.dir}, strings.Fields(line)...))
}

func (s *session) wantLines(w *bytes.Buffer, want ...string) {
	s.t.Helper()
	got := strings.Split(strings.TrimSuffix(w.String(), "\n"), "\n")
	if len(got) != len(want) {
		s.t.Errorf("got %d lines, want %d:\n%s", len(got), len(want), w)
		return
	}
	for i := range want {
		if !strings.Contains(got[i], want[i]) {
			s.t.Errorf("line %d is %q, want one with %q", i+1, got[i], want[i])
		}
	}
}
