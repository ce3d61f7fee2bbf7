package vm

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"mars/tests/vm/lab"
)

// longestPause is how long an upgrade may keep one request waiting.
const longestPause = 2 * time.Second

// TestUpgradeUnderLoad: the daemon is replaced under a mounted file system and an application that verifies what it reads. The application
// sees a pause, and no error.
func TestUpgradeUnderLoad(t *testing.T) {
	long(t)
	onEachFront(t, func(t *testing.T, f front) {
		if !f.outlives {
			t.Skipf("a %s device ends with marsd", f.name)
		}
		w := newWorld(t, 5*time.Minute, lab.Config{Machines: 1, Disks: nodeDisks})
		x := w.nodes[0]
		x.format()
		x.starts(f)
		x.creates("/dev/lab/disk")
		x.sh("mkfs.ext4 -q %s; mount %s /srv", device, device)
		x.sh(`nohup fio --name=app --directory=/srv --size=16m --rw=randrw --bs=4k --ioengine=libaio --iodepth=4 --direct=1 --verify=crc32c \
			--verify_fatal=1 --verify_backlog=64 --time_based --runtime=40 --output-format=json --output=/fio.json </dev/null >/fio.log 2>&1 & echo $! >/fio.pid`)
		for range 3 {
			x.sh(goesOn)
			x.sh("cp /host/bin/marsd /host/bin/marsd.new; mv /host/bin/marsd.new /host/bin/marsd; p=$(cat /marsd.pid); kill $p; while [ -e /proc/$p ]; do sleep 0.02; done")
			x.launch()
			x.primary()
		}
		x.sh("while [ -e /proc/$(cat /fio.pid) ]; do sleep 0.2; done; cat /fio.log >&2")
		pause := slowest(t, x.sh("cat /fio.json"))
		t.Logf("the longest request took %v", pause)
		if pause > longestPause {
			t.Errorf("a request took %v, more than %v", pause, longestPause)
		}
		x.sh("umount /srv; e2fsck -fn %s", device)
	})
}

// goesOn waits until the application has written some more, or has ended.
const goesOn = `writes() { read -r _ _ _ _ n _ </sys/class/block/$(basename "$(readlink -f ` + device + `)")/stat; echo $n; }
	until [ ! -e /proc/$(cat /fio.pid) ] || [ $(writes) -gt $((${before:=$(writes)} + 300)) ]; do sleep 0.1; done`

// slowest is the longest time that fio has waited for one request. It fails the test for an error of fio.
func slowest(t *testing.T, report string) time.Duration {
	t.Helper()
	type side struct {
		Clat struct{ Max int64 } `json:"clat_ns"`
	}
	var r struct {
		Jobs []struct {
			Error       int
			Read, Write side
		}
	}
	if err := json.NewDecoder(strings.NewReader(report)).Decode(&r); err != nil || len(r.Jobs) == 0 {
		t.Fatalf("fio's report: %v\n%s", err, report)
	}
	j := r.Jobs[0]
	if j.Error != 0 {
		t.Errorf("fio saw error %d", j.Error)
	}
	return time.Duration(max(j.Read.Clat.Max, j.Write.Clat.Max))
}
