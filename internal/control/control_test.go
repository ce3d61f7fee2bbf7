package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fakeBackend calls what a test puts in.
type fakeBackend struct {
	do     func(ctx context.Context, c Command) (Result, error)
	status func(ctx context.Context) (Status, error)
}

func (b fakeBackend) Do(ctx context.Context, c Command) (Result, error) { return b.do(ctx, c) }
func (b fakeBackend) Status(ctx context.Context) (Status, error)        { return b.status(ctx) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start serves b on a new socket until the test ends, and checks that the server ends well.
func start(t *testing.T, b Backend) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), SocketName)
	serveAt(t, path, newServer(b, quiet()))
	return path
}

func serveAt(t *testing.T, path string, s *server) {
	t.Helper()
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ctx, newLimited(l, maxConns), path) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("server: %v", err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("socket is left behind: %v", err)
		}
	})
}

func TestCommandAndStatusTravelUnchanged(t *testing.T) {
	t.Parallel()
	want := Command{Verb: VerbCreateResource, Resource: "mydata", Disk: "/dev/vg/mydata", Size: 1 << 40}
	path := start(t, fakeBackend{
		do: func(_ context.Context, c Command) (Result, error) {
			if c != want {
				return Result{}, fmt.Errorf("got %+v", c)
			}
			return Result{Message: "created\nand more"}, nil
		},
		status: func(context.Context) (Status, error) {
			return Status{Node: "node-a", Resources: []Resource{{Name: "mydata"}}}, nil
		},
	})
	client := Dial(path)
	result, err := client.Do(t.Context(), want)
	if err != nil || result.Message != "created\nand more" {
		t.Errorf("Do = %+v, %v", result, err)
	}
	st, err := client.Status(t.Context())
	if err != nil || st.Node != "node-a" || st.Resources[0].Name != "mydata" {
		t.Errorf("Status = %+v, %v", st, err)
	}
}

func TestErrorTextComesBackVerbatim(t *testing.T) {
	t.Parallel()
	text := `primary mydata: refused: "node-a" has it mounted on /srv: <umount> it & try again`
	path := start(t, fakeBackend{do: func(context.Context, Command) (Result, error) { return Result{}, errors.New(text) }})
	_, err := Dial(path).Do(t.Context(), Command{Verb: VerbPrimary, Resource: "mydata"})
	var refused *RefusedError
	if !errors.As(err, &refused) || err.Error() != text {
		t.Errorf("error %v, want %s", err, text)
	}
}

func TestDeadlineReachesTheBackendBeforeTheClientGivesUp(t *testing.T) {
	t.Parallel()
	path := start(t, fakeBackend{do: func(ctx context.Context, c Command) (Result, error) {
		if _, ok := ctx.Deadline(); !ok {
			return Result{}, errors.New("no deadline")
		}
		<-ctx.Done()
		if c.Verb == VerbWaitCluster {
			return Result{}, ctx.Err()
		}
		return Result{}, fmt.Errorf("wait-umount x: waited for node-b to close it: %w", ctx.Err())
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := Dial(path).Do(ctx, Command{Verb: VerbWaitUmount, Resource: "x"})
	if err == nil || !strings.Contains(err.Error(), "waited for node-b") {
		t.Errorf("error %v, want the daemon's own", err)
	}
	_, err = Dial(path).Do(ctx, Command{Verb: VerbWaitCluster})
	if err == nil || !strings.Contains(err.Error(), "not done within") {
		t.Errorf("error %v, want one without Go's context words", err)
	}
}

func TestClientGoneCancelsTheCommand(t *testing.T) {
	t.Parallel()
	started, cancelled := make(chan struct{}), make(chan struct{})
	path := start(t, fakeBackend{do: func(ctx context.Context, _ Command) (Result, error) {
		close(started)
		<-ctx.Done()
		close(cancelled)
		return Result{}, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if _, err := Dial(path).Do(ctx, Command{Verb: VerbWaitCluster}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want Canceled", err)
	}
	<-cancelled
}

func TestServerEndCancelsCommands(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), SocketName)
	ctx, cancel := context.WithCancel(t.Context())
	b := fakeBackend{do: func(ctx context.Context, _ Command) (Result, error) {
		cancel()
		<-ctx.Done()
		return Result{}, errors.New("marsd is stopping")
	}}
	// The listener exists before Serve is called, so that the client need not poll: Serve would replace it.
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- newServer(b, quiet()).serve(ctx, newLimited(l, maxConns), path) }()
	if _, err := Dial(path).Do(t.Context(), Command{Verb: VerbWaitCluster}); err == nil || err.Error() != "marsd is stopping" {
		t.Errorf("error %v, want the backend's", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	var notRunning *NotRunningError
	if _, err := Dial(path).Status(t.Context()); !errors.As(err, &notRunning) {
		t.Errorf("error %v, want NotRunningError", err)
	}
}

func TestPanicIsSurvived(t *testing.T) {
	t.Parallel()
	path := start(t, fakeBackend{
		do:     func(context.Context, Command) (Result, error) { panic("index out of range") },
		status: func(context.Context) (Status, error) { return Status{Node: "alive"}, nil },
	})
	_, err := Dial(path).Do(t.Context(), Command{Verb: VerbCreateCluster})
	if err == nil || !strings.Contains(err.Error(), "index out of range") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v, want one line that names the panic", err)
	}
	if st, err := Dial(path).Status(t.Context()); err != nil || st.Node != "alive" {
		t.Errorf("after a panic: %+v, %v", st, err)
	}
}

func TestNotRunning(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, path := range []string{filepath.Join(dir, SocketName), stale, filepath.Join(dir, "no", "dir", SocketName)} {
		_, err := Dial(path).Status(t.Context())
		var notRunning *NotRunningError
		if !errors.As(err, &notRunning) || !strings.Contains(err.Error(), "no answer on "+path) || !strings.Contains(err.Error(), "--dir") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestStaleSocketIsReplacedAndAnythingElseIsNot(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), SocketName)
	for range 2 {
		l, err := listen(path)
		if err != nil {
			t.Fatal(err)
		}
		l.Close() // leaves the socket behind, as a crash does
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	os.Remove(path)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Serve(t.Context(), path, fakeBackend{}, quiet()); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("error %v, want a refusal", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "precious" {
		t.Errorf("file is now %q", data)
	}
}

func TestSocketPathLongerThanASocketAddress(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), strings.Repeat("d", 200), SocketName)
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	serveAt(t, path, newServer(fakeBackend{status: func(context.Context) (Status, error) { return Status{Node: "far"}, nil }}, quiet()))
	if st, err := Dial(path).Status(t.Context()); err != nil || st.Node != "far" {
		t.Errorf("Status = %+v, %v", st, err)
	}
}

// raw sends a request that the Client would not.
func raw(t *testing.T, path string, mutate func(*http.Request)) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSocket(ctx, path) },
	}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://marsd"+pathCommand, nil)
	if err != nil {
		t.Fatal(err)
	}
	mutate(req)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var f failure
	if json.Unmarshal(body, &f) == nil && f.Error != "" {
		return resp.StatusCode, f.Error
	}
	return resp.StatusCode, string(body)
}

func withBody(s string) func(*http.Request) {
	return func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader(s)), int64(len(s)) }
}

func TestBadRequestsNeverReachTheBackend(t *testing.T) {
	t.Parallel()
	path := start(t, fakeBackend{do: func(_ context.Context, c Command) (Result, error) {
		t.Errorf("backend got %+v", c)
		return Result{}, nil
	}})
	for body, want := range map[string]string{
		"":                        "not a command",
		"[]":                      "not a command",
		`{"verb":"primary"`:       "not a command",
		`{"verb":"format-disks"}`: "unknown command",
		`{"verb":"primary","resource":"x","frobnicate":true}`: "frobnicate",
		`{"verb":"primary"}`: "needs a resource",
		`{"verb":"primary","resource":"x","disk":"/dev/x"}`:                            "takes no disk",
		`{"verb":"primary","resource":"../x"}`:                                         "starts with",
		`{"verb":"primary","resource":"x"} {}`:                                         "something after",
		`{"verb":"primary","resource":"` + strings.Repeat("x", maxRequestBytes) + `"}`: "too large",
	} {
		code, text := raw(t, path, withBody(body))
		if code != http.StatusBadRequest || !strings.Contains(text, want) {
			t.Errorf("%.60s: %d %q, want 400 with %q", body, code, text, want)
		}
	}
	if code, _ := raw(t, path, func(r *http.Request) { withBody(`{"verb":"create-cluster"}`)(r); r.Header.Set(headerTimeout, "soon") }); code != http.StatusBadRequest {
		t.Errorf("bad timeout header: %d", code)
	}
	if code, _ := raw(t, path, func(r *http.Request) { r.URL.Path = "/v2/command" }); code != http.StatusNotFound {
		t.Errorf("unknown path: %d", code)
	}
	if code, _ := raw(t, path, func(r *http.Request) { r.Method = http.MethodGet }); code != http.StatusMethodNotAllowed {
		t.Errorf("wrong method: %d", code)
	}
}

func TestTooManyCommandsAreRefusedAndWaitsDoNotCount(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	b := fakeBackend{do: func(_ context.Context, c Command) (Result, error) {
		if c.Verb == VerbPrimary {
			return Result{}, nil
		}
		entered <- struct{}{}
		<-release
		return Result{}, nil
	}}
	s := newServer(b, quiet())
	s.waits = make(chan struct{}, 1)
	path := filepath.Join(t.TempDir(), SocketName)
	serveAt(t, path, s)
	first := make(chan error, 1)
	go func() { _, err := Dial(path).Do(t.Context(), Command{Verb: VerbWaitCluster}); first <- err }()
	<-entered
	if _, err := Dial(path).Do(t.Context(), Command{Verb: VerbWaitCluster}); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("error %v, want busy", err)
	}
	if _, err := Dial(path).Do(t.Context(), Command{Verb: VerbPrimary, Resource: "x", Force: true}); err != nil {
		t.Errorf("primary --force was kept out: %v", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), SocketName)
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	limit := newLimited(l, 1)
	for range 2 {
		if _, err := dialSocket(t.Context(), path); err != nil {
			t.Fatal(err)
		}
	}
	one, err := limit.Accept()
	if err != nil {
		t.Fatal(err)
	}
	two := make(chan error, 1)
	go func() {
		conn, err := limit.Accept()
		if err == nil {
			conn.Close()
		}
		two <- err
	}()
	one.Close()
	one.Close() // frees one slot only
	if err := <-two; err != nil {
		t.Error(err)
	}
	if len(limit.slots) != 0 {
		t.Errorf("%d slots taken after all is closed", len(limit.slots))
	}
	limit.slots <- struct{}{}
	go limit.Close()
	if _, err := limit.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
}

// TestSlowRequestsAreCutOff: neither half a header nor half a body keeps a connection for ever, while a command may run as long as it likes.
func TestSlowRequestsAreCutOff(t *testing.T) {
	t.Parallel()
	s := newServer(fakeBackend{do: func(ctx context.Context, _ Command) (Result, error) {
		select {
		case <-ctx.Done():
			return Result{}, ctx.Err()
		case <-time.After(250 * time.Millisecond): // five times the patience
			return Result{Message: "took its time"}, nil
		}
	}}, quiet())
	s.patience = 50 * time.Millisecond
	path := filepath.Join(t.TempDir(), SocketName)
	serveAt(t, path, s)
	for _, part := range []string{"", "POST " + pathCommand + " HTT", "POST " + pathCommand + " HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"} {
		conn, err := dialSocket(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, part); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(conn); err != nil { // returns only when the server hangs up
			t.Errorf("%q: %v", part, err)
		}
		conn.Close()
	}
	if result, err := Dial(path).Do(t.Context(), Command{Verb: VerbWaitCluster}); err != nil || result.Message == "" {
		t.Errorf("a long command: %+v, %v", result, err)
	}
}

// TestHelperStranger is not a test: TestStrangersAreRefused runs it as another user.
func TestHelperStranger(t *testing.T) {
	path := os.Getenv("MARS_TEST_SOCKET")
	if path == "" {
		t.Skip("runs only as a child of TestStrangersAreRefused")
	}
	_, err := Dial(path).Do(t.Context(), Command{Verb: VerbCreateCluster})
	fmt.Printf("stranger got: %v\n", err)
}

func TestStrangersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root to become another user")
	}
	dir, err := os.MkdirTemp("/tmp", "mars-control-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	bin := filepath.Join(dir, "helper")
	exe, err := os.ReadFile("/proc/self/exe")
	if err = errors.Join(err, os.WriteFile(bin, exe, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, SocketName)
	serveAt(t, path, newServer(fakeBackend{do: func(context.Context, Command) (Result, error) {
		t.Error("a stranger's command reached the backend")
		return Result{}, nil
	}}, quiet()))
	run := func() string {
		cmd := exec.Command(bin, "-test.run=TestHelperStranger$")
		cmd.Dir, cmd.Env = "/", []string{"MARS_TEST_SOCKET=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	if out := run(); !strings.Contains(out, "not allowed to talk to marsd") {
		t.Errorf("the socket's mode: %s", out)
	}
	if err := os.Chmod(path, 0o666); err != nil { // now only the credentials stand in the way
		t.Fatal(err)
	}
	if out := run(); !strings.Contains(out, "permission denied: marsd serves only root") {
		t.Errorf("the credentials: %s", out)
	}
}
