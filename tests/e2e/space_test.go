package e2e

import (
	"errors"
	"syscall"
	"testing"

	"mars/internal/control"
	"mars/tests/stamp"
)

// TestLogStoreFull: the secondary is away and the log store has a limit. At the limit writes slow down, then fail cleanly with ENOSPC, while
// reads go on; and when the secondary has fetched what was kept for it, they succeed again.
func TestLogStoreFull(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t, "--segment-size", "1MiB", "--log-limit", "8MiB", "--stall-timeout", "2s")
	j := &stamp.Journal{}
	b.stop()
	application := a.starts(res, j)
	application.until("writes fail", func() bool { return application.err() != nil })
	if err := application.err(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("writes fail with %v, want ENOSPC", err)
	}
	application.end()
	j.Crashed()
	must := j.Now()
	m := a.awaitSelf(res, "the reason is shown", func(m control.Member) bool { return hasMessage(m, "log-space") })
	if !isPrimary(m) {
		t.Errorf("the role is gone: %+v", m)
	}
	a.checkDevice(res, j, must)

	b.start()
	c := a.open(res)
	defer c.Close()
	until(t, "writes succeed again", func() bool { return put(c, j, span{mib, 4096}) == nil })
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	a.awaitSelf(res, "the message is gone", func(m control.Member) bool { return !hasMessage(m, "log-space") })
	settle(res, a, b)
	b.checkDisk(res, j, must)
	checkEqual(t, res, a, b)
}

// TestLogStoreFullAtSecondary: the secondary has little room and replay is paused there. It stops fetching, says so, and goes on with replay;
// the primary does not suffer.
func TestLogStoreFullAtSecondary(t *testing.T) {
	t.Parallel()
	w := newCluster(t, 1, "--segment-size", "1MiB")
	a := w.nodes[0]
	b := w.addNode("beta", "--segment-size", "1MiB", "--log-limit", "4MiB")
	b.joins(a)
	a.creates(res)
	b.gets(res)
	j := &stamp.Journal{}
	b.do("pause-replay", res)
	application := a.starts(res, j)
	a.awaitSelf(res, "the log is larger than beta's store", func(m control.Member) bool { return m.EndLSN > 10*mib })
	must := application.stops()
	b.awaitSelf(res, "beta says that it cannot fetch", func(m control.Member) bool { return hasMessage(m, "fetch") || hasMessage(m, "log-space") })
	b.checkDisk(res, j, 0)
	b.do("resume-replay", res)
	settle(res, a, b)
	b.checkDisk(res, j, must)
	checkEqual(t, res, a, b)
}
