package loop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mars/internal/block"
	"mars/internal/device/blockdev"

	"golang.org/x/sys/unix"
)

const (
	mib      = 1 << 20
	deadline = 60 * time.Second
)

func TestMain(m *testing.M) {
	if role := os.Getenv("MARS_LOOP_HELPER"); role != "" {
		os.Exit(helperMain(role))
	}
	os.Exit(m.Run())
}

// skip says loudly what is not tested, and fails where everything is required.
func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("MARS_TEST_REQUIRE") == "all" {
		t.Fatal("REQUIRED: " + why)
	}
	t.Skip("SKIPPED: " + why)
}

// need skips the test unless loop devices and the tools can be used here.
func need(t testing.TB, tools ...string) {
	t.Helper()
	if err := Available(); err != nil {
		skip(t, err.Error())
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			skip(t, err.Error())
		}
	}
}

// memDev is a Device in memory. Requests lock the MiB they touch, so that overlapping ones are no data race.
type memDev struct {
	data  []byte
	size  atomic.Int64
	locks [1024]sync.RWMutex

	reads, writes, flushes, discards, zeroes atomic.Int64

	mu struct {
		sync.Mutex
		ranges []string // discards and zeroes, as text
	}
	fail  atomic.Pointer[error]         // answer of all requests
	stall atomic.Pointer[chan struct{}] // requests wait until it is closed
}

// newMemDev can grow up to limit.
func newMemDev(size, limit int64) *memDev {
	d := &memDev{data: make([]byte, limit)}
	d.size.Store(size)
	return d
}

func (d *memDev) Size() int64 { return d.size.Load() }

func (d *memDev) begin(off, n int64) error {
	if c := d.stall.Load(); c != nil {
		<-*c
	}
	if err := d.fail.Load(); err != nil {
		return *err
	}
	return block.Check(off, n, d.Size())
}

// chunks calls f for the parts of [off, off+n) in one MiB each.
func (d *memDev) chunks(off, n int64, f func(l *sync.RWMutex, from, to int64)) {
	for end := off + n; off < end; {
		to := min(end, (off/mib+1)*mib)
		f(&d.locks[off/mib%int64(len(d.locks))], off, to)
		off = to
	}
}

func (d *memDev) ReadAt(p []byte, off int64) error {
	d.reads.Add(1)
	if err := d.begin(off, int64(len(p))); err != nil {
		return err
	}
	d.chunks(off, int64(len(p)), func(l *sync.RWMutex, from, to int64) {
		l.RLock()
		copy(p[from-off:], d.data[from:to])
		l.RUnlock()
	})
	return nil
}

func (d *memDev) WriteAt(p []byte, off int64, _ block.Flags) error {
	d.writes.Add(1)
	if err := d.begin(off, int64(len(p))); err != nil {
		return err
	}
	d.chunks(off, int64(len(p)), func(l *sync.RWMutex, from, to int64) {
		l.Lock()
		copy(d.data[from:to], p[from-off:])
		l.Unlock()
	})
	return nil
}

func (d *memDev) zero(what string, off, n int64, f block.Flags) error {
	if err := d.begin(off, n); err != nil {
		return err
	}
	d.mu.Lock()
	d.mu.ranges = append(d.mu.ranges, fmt.Sprintf("%s %d+%d flags %d", what, off, n, f))
	d.mu.Unlock()
	d.chunks(off, n, func(l *sync.RWMutex, from, to int64) {
		l.Lock()
		clear(d.data[from:to])
		l.Unlock()
	})
	return nil
}

func (d *memDev) WriteZeroes(off, n int64, f block.Flags) error {
	d.zeroes.Add(1)
	return d.zero("zero", off, n, f)
}

func (d *memDev) Discard(off, n int64, f block.Flags) error {
	d.discards.Add(1)
	return d.zero("discard", off, n, f)
}

func (d *memDev) Flush() error {
	d.flushes.Add(1)
	return d.begin(0, 0)
}

func (d *memDev) ranges() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.mu.ranges, "; ")
}

// rig is a directory for one test, checked and cleaned at its end.
type rig struct {
	t   testing.TB
	dir string
	log *bytes.Buffer
}

func newRig(t testing.TB) *rig {
	r := &rig{t: t, dir: t.TempDir(), log: new(bytes.Buffer)}
	t.Cleanup(r.checkClean)
	return r
}

func (r *rig) mountDir() string        { return filepath.Join(r.dir, "run") }
func (r *rig) link(name string) string { return filepath.Join(r.dir, "dev", name) }

// checkClean fails the test if anything is left, and takes it away.
func (r *rig) checkClean() {
	if left := leftovers(r.dir); left != "" {
		r.t.Errorf("left behind: %s", left)
	}
	if _, err := CleanStale(r.mountDir()); err != nil {
		r.t.Errorf("clean up: %v", err)
	}
}

// leftovers lists loop devices and mounts that have to do with dir.
func leftovers(dir string) string {
	var out []string
	dirs, _ := filepath.Glob(sysBlock + "/loop*/loop/backing_file")
	for _, f := range dirs {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir) {
			out = append(out, f+" -> "+string(b))
		}
	}
	for _, m := range blockdev.ReadMountinfo("/proc/self/mountinfo") {
		if strings.HasPrefix(m.Point, dir) {
			out = append(out, "mount "+m.Point)
		}
	}
	links, _ := filepath.Glob(filepath.Join(dir, "dev", "*"))
	places, _ := filepath.Glob(filepath.Join(dir, "run", "*"))
	return strings.Join(append(append(out, links...), places...), ", ")
}

func (r *rig) config(name string, d block.Device) Config {
	return Config{Name: name, Dev: d, MountDir: r.mountDir(), Link: r.link(name), Log: slog.New(slog.DiscardHandler)}
}

// open shows d until the end of the test.
func (r *rig) open(name string, d block.Device) *FrontEnd {
	r.t.Helper()
	f, err := Open(r.config(name, d))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(f.Abort)
	return f
}

// close closes f, which must work.
func (r *rig) close(f *FrontEnd) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), deadline)
	defer cancel()
	if err := f.Close(ctx); err != nil {
		r.t.Fatalf("close: %v", err)
	}
}

// mounted mounts f, and unmounts it at the end of the test if the test has not.
func (r *rig) mounted(f *FrontEnd, opts ...string) string {
	r.t.Helper()
	at := filepath.Join(r.dir, "mnt-"+f.cfg.Name)
	if err := os.MkdirAll(at, 0o755); err != nil {
		r.t.Fatal(err)
	}
	run(r.t, append(append([]string{"mount"}, opts...), f.Path(), at)...)
	r.t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) }) // usually no longer mounted
	return at
}

// run runs a command, which must succeed.
func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := try(t, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func try(t testing.TB, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), deadline)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	return string(out), err
}

// eventually waits for a state.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), deadline)
	defer cancel()
	if err := blockdev.Poll(ctx, what, func() (bool, error) { return cond(), nil }); err != nil {
		t.Fatal(err)
	}
}

// helperMain is the test binary in another role.
func helperMain(role string) int {
	switch role {
	case "serve":
		return helperServe()
	case "protect":
		return helperProtect()
	}
	return 2
}

// helperServe serves a device until its stdin is closed or it is killed.
func helperServe() int {
	name, dir := os.Getenv("MARS_LOOP_NAME"), os.Getenv("MARS_LOOP_DIR")
	r := &rig{dir: dir}
	f, err := Open(r.config(name, newMemDev(64*mib, 64*mib)))
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	// Like a daemon's, this process has a child, which must not keep the FUSE connection alive.
	grandchild := exec.Command("cat")
	grandchild.Stdin = os.Stdin
	if err := grandchild.Start(); err != nil {
		fmt.Println("error:", err)
		return 1
	}
	fmt.Println(f.loop.node())
	_, _ = os.Stdin.Read(make([]byte, 1)) // returns when the parent closes it or dies
	f.Abort()
	return 0
}

// child is a helper process that serves a device.
type child struct {
	cmd  *exec.Cmd
	node string
}

func (r *rig) child(name string) *child {
	r.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "MARS_LOOP_HELPER=serve", "MARS_LOOP_NAME="+name, "MARS_LOOP_DIR="+r.dir)
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		r.t.Fatal(err)
	}
	c := &child{cmd: cmd}
	r.t.Cleanup(func() {
		_ = stdin.Close()
		c.kill9()
	})
	line := make([]byte, 200)
	n, err := stdout.Read(line)
	if c.node = strings.TrimSpace(string(line[:n])); err != nil || !strings.HasPrefix(c.node, "/dev/") {
		r.t.Fatalf("helper: %q %v", line[:n], err)
	}
	return c
}

// kill9 returns when the process is gone.
func (c *child) kill9() {
	_ = c.cmd.Process.Kill() // may be dead already
	_ = c.cmd.Wait()         // reports the kill
}
