package vm

import (
	"strings"
	"testing"
	"time"
)

var ublkFront = front{name: "ublk", modules: []string{"ublk_drv"}, outlives: true, fixed: true}

// TestUblkIsChosen: with the drivers there, marsd shows devices as ublk devices by itself.
func TestUblkIsChosen(t *testing.T) {
	long(t)
	x := alone(t, front{name: "auto", modules: []string{"ublk_drv", "nbd", "loop"}}, 4*time.Minute)
	x.creates("/dev/lab/disk")
	if is := x.sh("readlink %s", device); is != "/dev/ublkb0" {
		t.Errorf("the device is %s", is)
	}
	x.sh("marsadm secondary %s; [ ! -e %s ]; [ ! -e /dev/ublkb0 ]; [ ! -e /dev/ublkc0 ]; [ -z \"$(ls /mars/ublk)\" ]", res, device)
	x.stops()
}

// TestUblkFullQueue: marsd is killed while every request that the device may have is under way. The kernel notices all the same at once, not when
// a request times out after half a minute.
func TestUblkFullQueue(t *testing.T) {
	long(t)
	x := alone(t, ublkFront, 5*time.Minute)
	x.creates("/dev/lab/disk")
	x.sh(`nohup fio --name=full --filename=%s --size=64m --rw=randwrite --bs=4k --ioengine=libaio --iodepth=512 --direct=1 --verify=crc32c --verify_fatal=1 \
		--output-format=json --output=/fio.json </dev/null >/fio.log 2>&1 & echo $! >/fio.pid`, device)
	// A stopped marsd answers nothing, so the queue fills up.
	x.sh(`p=$(cat /marsd.pid); until [ $(awk '{print $5}' /sys/block/ublkb0/stat) -gt 100 ]; do sleep 0.05; done
		kill -STOP $p; until [ $(awk '{print $9}' /sys/block/ublkb0/stat) -ge 127 ]; do sleep 0.05; done`)
	start := time.Now()
	x.kills()
	x.launch()
	x.primary()
	took := time.Since(start)
	t.Logf("killed, started, and shown again after %v", took)
	if took > 25*time.Second {
		t.Errorf("it took %v: the kernel waited for a request to time out", took)
	}
	x.sh("while [ -e /proc/$(cat /fio.pid) ]; do sleep 0.2; done; cat /fio.log >&2")
	slowest(t, x.sh("cat /fio.json")) // fails for an error of fio
	x.stops()
}

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
