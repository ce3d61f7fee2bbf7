package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mars/internal/control"
	"mars/tests/stamp"
)

// The wall clock of a daemon is set wrong without touching that of the machine, and without anything in the product that could be touched by
// accident: marsd is built a second time, with an overlay (go help build) in place of two files. In the one, package time's Now adds a number of seconds, to
// the wall clock only, as when an administrator sets it; the other one, beside marsd's main, reads that number from the file that the environment
// variable clockFile names, when it starts and with each SIGUSR1.
const clockFile = "MARS_E2E_CLOCK"

const (
	overlayTime = `package time

import "sync/atomic"

var e2eJump atomic.Int64

// E2EJump sets by how many seconds the wall clock is wrong.
func E2EJump(seconds int64) { e2eJump.Store(seconds) }
`
	overlayMain = `package main

import (
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func init() {
	jump()
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	go func() {
		for range c {
			jump()
		}
	}()
}

func jump() {
	b, err := os.ReadFile(os.Getenv("` + clockFile + `"))
	if err != nil {
		return
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		panic(err)
	}
	time.E2EJump(n)
}
`
	nowBegins = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
)

// jumpyMarsd is the path of a marsd whose clock can be set wrong.
var jumpyMarsd = sync.OnceValues(func() (string, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	original := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	src, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	if !bytes.Contains(src, []byte(nowBegins)) {
		return "", fmt.Errorf("%s does not look as expected: make this test fit this version of Go", original)
	}
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", err
	}
	files := map[string]string{
		original: strings.Replace(string(src), nowBegins, nowBegins+"\tsec += e2eJump.Load()\n", 1),
		filepath.Join(filepath.Dir(original), "e2ejump.go"):                            overlayTime,
		filepath.Join(strings.TrimSpace(string(module)), "cmd", "marsd", "e2ejump.go"): overlayMain,
	}
	var overlay struct{ Replace map[string]string }
	overlay.Replace = map[string]string{}
	for path, text := range files {
		at := filepath.Join(bin.dir, fmt.Sprintf("overlay%d.go", len(overlay.Replace)))
		overlay.Replace[path] = at
		if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}
	list := filepath.Join(bin.dir, "overlay.json")
	if err := os.WriteFile(list, b, 0o600); err != nil {
		return "", err
	}
	out := filepath.Join(bin.dir, "e2e-marsd-jumpy")
	return out, buildOne("mars/cmd/marsd", out, "-overlay", list)
})

// getsJumpyClock makes the node run a marsd whose clock can be set wrong, from its next start on.
func (x *node) getsJumpyClock() {
	x.w.t.Helper()
	marsd, err := jumpyMarsd()
	if err != nil {
		x.w.t.Fatal(err)
	}
	x.marsd = marsd
}

func (x *node) clockFile() string { return filepath.Join(x.w.root, x.name+".clock") }

// setClock makes the node's clock wrong by d from now on, or right. It returns when the node shows it.
func (x *node) setClock(d time.Duration) {
	x.w.t.Helper()
	if err := writeSynced(x.clockFile(), []byte(strconv.FormatInt(int64(d/time.Second), 10))); err != nil {
		x.w.t.Fatal(err)
	}
	if !x.running() {
		return
	}
	x.signal(syscall.SIGUSR1)
	x.await(fmt.Sprintf("its clock is wrong by %v", d), func(st control.Status) bool {
		return (time.Until(st.Time) - d).Abs() < time.Minute
	})
}

const farOff = 40 * 24 * time.Hour // further than the 30 days that are tolerated

func clocksDiffer(st control.Status) bool {
	return slices.ContainsFunc(st.Messages, func(m control.Message) bool { return m.Key == "clock" })
}

func clocksAgree(st control.Status) bool { return !clocksDiffer(st) }

// TestClockFarAhead: the clock of the secondary jumps far ahead. Data go on to be replicated; both say that their clocks are apart; what the secondary
// says and wishes is not taken, so it cannot become primary; and its clock being put right, also while it is down, everything is as before.
func TestClockFarAhead(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"running", "down"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			_, a, b := pair(t)
			b.stop()
			b.getsJumpyClock()
			b.start()
			j := &stamp.Journal{}
			b.setClock(farOff)
			application := a.starts(res, j)
			a.await("alpha says that the clocks are apart", clocksDiffer)
			b.await("beta says that the clocks are apart", clocksDiffer)
			application.runs(200)
			must := application.stops()
			settle(res, a, b)
			b.checkDisk(res, j, must)
			if got := b.admIn(shortly, "primary", res); got.code == 0 {
				t.Error("a handover that the primary must not have heard of has succeeded")
			}
			b.do("pause-replay", res)
			if way == "down" {
				b.stop()
			}
			b.setClock(0)
			if way == "down" {
				b.start()
			}
			a.await("alpha has nothing to say about clocks", clocksAgree)
			b.await("beta has nothing to say about clocks", clocksAgree)
			a.await("alpha has heard what beta has switched", func(st control.Status) bool { return !member(st, res, b.name).Switches.Replay })
			b.do("resume-replay", res)
			b.do("primary", res)
			b.writeOnce(res, j)
			settle(res, b, a)
			b.checkDevice(res, j, j.Now())
			checkEqual(t, res, a, b)
		})
	}
}

// TestClockFarBehind: the clock of the primary jumps far back, and it does not take what the secondary wishes until that is corrected. Nothing else
// suffers, not even when it is restarted meanwhile.
func TestClockFarBehind(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	a.stop()
	a.getsJumpyClock()
	a.start()
	a.awaitSelf(res, "it is primary", isPrimary)
	j := &stamp.Journal{}
	a.setClock(-farOff)
	a.writeOnce(res, j)
	a.await("alpha says that the clocks are apart", clocksDiffer)
	settle(res, a, b)
	if got := b.admIn(shortly, "primary", res); got.code == 0 {
		t.Error("a handover that the primary must not have heard of has succeeded")
	}
	a.kill()
	a.start()
	a.awaitSelf(res, "it is primary again", isPrimary)
	a.writeOnce(res, j)
	settle(res, a, b)
	a.setClock(0)
	b.do("primary", res)
	b.checkDevice(res, j, j.Now())
	settle(res, b, a)
	checkEqual(t, res, a, b)
}
