package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"mars/internal/control"
	"mars/tests/stamp"
)

// damage flips one byte of the log of the node, which must not be running: in its newest file, at a part of what is in it.
func (x *node) damage(part float64) {
	x.w.t.Helper()
	files, err := filepath.Glob(filepath.Join(x.dir, "resource", "*", "log", "seg-*"))
	if err != nil || len(files) == 0 {
		x.w.t.Fatalf("%s has no log: %v", x.name, err)
	}
	slices.Sort(files) // by LSN
	f, err := os.OpenFile(files[len(files)-1], os.O_RDWR, 0)
	if err != nil {
		x.w.t.Fatal(err)
	}
	defer f.Close()
	end := lastByte(x.w.t, f)
	at := 4096 + int64(float64(end-4096)*part)
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		x.w.t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], at); err != nil {
		x.w.t.Fatal(err)
	}
}

// lastByte finds the end of what is in a preallocated file.
func lastByte(t *testing.T, f *os.File) int64 {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	n := len(b)
	for n > 0 && b[n-1] == 0 {
		n--
	}
	return int64(n)
}

func isDefective(m control.Member) bool {
	return m.DiskState == control.DiskDefectiveLog && hasMessage(m, "defective-log")
}

// TestLogDamagedOnSecondary: bytes of the log rot at the secondary before they are replayed. Alone, it applies nothing behind the damage: either
// it knows that more was there and says so, or it takes it for a torn tail. With the others it fetches what is missing again and goes on, without
// an operator.
func TestLogDamagedOnSecondary(t *testing.T) {
	t.Parallel()
	w, a, b := pair(t)
	j := &stamp.Journal{}
	b.do("pause-replay", res)
	application := a.starts(res, j)
	application.runs(200)
	must := application.stops()
	b.do("wait-resource", res, "fetch-reached")
	end := b.self(res).EndLSN
	b.stop()
	b.damage(0.5)
	w.net.Isolate(b.name)
	b.start()
	b.do("resume-replay", res)
	// The disk may be looked at only when nothing is being applied to it.
	m := b.awaitSelf(res, "the damage is reported and all before it applied", func(m control.Member) bool {
		return isDefective(m) && m.AppliedLSN == m.EndLSN
	})
	if m.AppliedLSN >= end {
		t.Errorf("what is behind the damage was applied: %+v", m)
	}
	b.checkDisk(res, j, 0)
	w.net.Rejoin(b.name)
	settle(res, a, b)
	b.checkDisk(res, j, must)
	checkEqual(t, res, a, b)
}

// TestLogDamagedOnPrimary: bytes of the log rot at the primary before they are written back, and it restarts. Alone, it reports that, applies
// nothing and takes no role that would hide the loss. A secondary that has the bytes heals it.
func TestLogDamagedOnPrimary(t *testing.T) {
	t.Parallel()
	w, a, b := pair(t)
	j := &stamp.Journal{}
	application := a.starts(res, j)
	application.runs(200)
	must := application.stops()
	b.do("wait-resource", res, "replay-reached")
	a.kill()
	a.damage(0.5)
	w.net.Isolate(b.name)
	a.start()
	m := a.awaitSelf(res, "the damage is reported", isDefective)
	if m.Device != "" || m.Consistent {
		t.Errorf("a primary with a damaged log goes on: %+v", m)
	}
	w.net.Rejoin(b.name)
	a.awaitSelf(res, "alpha is healed and primary again", isPrimary)
	a.checkDevice(res, j, must)
	a.writeOnce(res, j)
	settle(res, a, b)
	b.checkDisk(res, j, j.Now())
	checkEqual(t, res, a, b)
}

// TestLogLostOnPrimary: the same, and nobody has the damaged part: it was never shipped. That cannot be healed and is not hidden; the operator
// fails over and sees what is lost.
func TestLogLostOnPrimary(t *testing.T) {
	t.Parallel()
	w, a, b := pair(t)
	j := &stamp.Journal{}
	a.writeOnce(res, j)
	settle(res, a, b)
	shipped := j.Now()
	w.net.Isolate(b.name)
	application := a.starts(res, j)
	application.runs(200)
	application.stops()
	a.kill()
	a.damage(0.5)
	w.net.Rejoin(b.name)
	a.start()
	a.awaitSelf(res, "the damage is reported", isDefective)
	b.awaitSight(a, true)
	if m := a.self(res); !isDefective(m) || m.Device != "" {
		t.Errorf("acknowledged writes were lost in silence: %+v", m)
	}
	b.do("primary", res, "--force")
	j.Crashed()
	j.Adopt(b.checkDevice(res, j, shipped))
	b.writeOnce(res, j)
	a.do("invalidate", res)
	a.do("wait-resource", res, "uptodate")
	settle(res, b, a)
	a.checkDisk(res, j, j.Now())
	checkEqual(t, res, a, b)
}
