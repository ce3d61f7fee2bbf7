package vm

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"mars/tests/vm/lab"
)

// TestMachine: what scenarios rely on. A script's output and status come back; a cut loses what was not flushed and nothing else; machines reach
// each other; and with its context a machine is gone, whatever it is doing.
func TestMachine(t *testing.T) {
	long(t)
	w := newWorld(t, 5*time.Minute, lab.Config{Machines: 2, Disks: []lab.Disk{{Name: "v", Size: 16 * mib, Volatile: true}, {Name: "f", Size: 16 * mib}}})
	x, y := w.nodes[0], w.nodes[1]

	var failed *lab.ExitError
	if out, err := x.Run(w.ctx, "echo out; echo err >&2; exit 7"); out != "out\n" || !errors.As(err, &failed) || failed.Status != 7 || !strings.Contains(failed.Output, "err") {
		t.Errorf("a script that fails gives %q, %v", out, err)
	}
	short, cancel := context.WithTimeout(w.ctx, time.Second)
	defer cancel()
	if _, err := x.Run(short, "sleep 1000"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a script that hangs gives %v", err)
	}
	y.sh("ping -q -c 1 -W 10 n1")

	whole := strconv.Itoa(8 * 64 << 10 / len("kept\n")) // lines that fill has written to their end
	fill := "yes %s | dd of=/dev/lab/%s bs=64k count=8 seek=%d iflag=fullblock oflag=direct status=none || true"
	for _, disk := range []string{"v", "f"} {
		x.sh(fill, "kept", disk, 0)
		x.sh("blockdev --flushbufs /dev/lab/%s; sync /dev/lab/%s", disk, disk)
		x.sh(fill, "lost", disk, 8)
	}
	x.loses(rand.New(rand.NewPCG(4, 1))) // with these numbers some sectors are lost: others are for losing all, or nothing
	if err := x.Boot(w.ctx); err != nil {
		t.Fatal(err)
	}
	for disk, all := range map[string]bool{"v": false, "f": true} {
		count := "dd if=/dev/lab/%s bs=64k count=16 status=none | grep -ac %s || true"
		if kept := x.sh(count, disk, "kept"); kept != whole {
			t.Errorf("disk %s has %s flushed lines of %s", disk, kept, whole)
		}
		if lost := x.sh(count, disk, "lost"); (lost == whole) != all {
			t.Errorf("disk %s has %s lines of %s that were not flushed", disk, lost, whole)
		}
	}
	y.ends(t)
}

// ends checks that the machine ends with the lab's context.
func (x *node) ends(t *testing.T) {
	job := x.Start("sleep 1000", nil, nil)
	x.w.cancel()
	select {
	case <-job.Done():
	case <-time.After(20 * time.Second):
		t.Errorf("%s still runs", x.Name)
	}
}
