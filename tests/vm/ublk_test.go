package vm

import (
	"strings"
	"testing"
	"time"
)

var ublkFront = front{name: "ublk", modules: []string{"ublk_drv"}, outlives: true}

// TestUblkDropDevices: an operator who does not start marsd again frees those who wait for its device.
func TestUblkDropDevices(t *testing.T) {
	long(t)
	x := alone(t, ublkFront, 5*time.Minute)
	x.creates("/dev/lab/disk")
	x.mounts("ext4")
	if out, err := x.try("marsd drop-devices 2>&1"); err == nil {
		t.Errorf("the device of a living marsd was given up: %s", out)
	}
	x.kills()
	x.sh("nohup dd if=/dev/zero of=/srv/file bs=4k count=1 conv=fsync >/dd.log 2>&1 </dev/null & echo $! >/dd.pid")
	x.sh("until grep -q D /proc/$(cat /dd.pid)/status; do sleep 0.05; done; kill -9 $(cat /dd.pid)")
	out := x.sh("marsd drop-devices")
	if !strings.Contains(out, "mounted on /srv") {
		t.Errorf("it says %q", out)
	}
	x.sh("while [ -e /proc/$(cat /dd.pid) ]; do sleep 0.1; done; umount /srv; [ ! -e %s ]; [ ! -e /dev/ublkc0 ]", device)
	x.launch()
	x.primary()
	x.sh("e2fsck -fy %s || [ $? = 1 ]; mount %s /srv; umount /srv", device, device)
	x.stops()
}
