package vm

import (
	"strings"
	"testing"
	"time"

	"mars/internal/control"
	"mars/tests/vm/lab"
)

// Scenarios about devices that outlive marsd: it is killed under a mounted file system.

func onEachThatOutlives(t *testing.T, scenario func(t *testing.T, f front)) {
	t.Helper()
	long(t)
	onEachFront(t, func(t *testing.T, f front) {
		if !f.outlives {
			t.Skipf("a %s device ends with marsd", f.name)
		}
		scenario(t, f)
	})
}

// kills kills marsd, and waits until it is gone.
func (x *node) kills() {
	x.w.t.Helper()
	x.sh("p=$(cat /marsd.pid); kill -9 $p; while [ -e /proc/$p ]; do sleep 0.02; done")
}

// mounts makes a file system on the device and mounts it.
func (x *node) mounts(fs string) {
	x.w.t.Helper()
	x.sh("mkfs.%s -q %s; mount %s /srv", fs, device, device)
}

// TestKillUnderLoad: marsd is killed again and again under an application that syncs, and verifies what it reads. The application sees pauses, and
// no error; the file system is sound, on the device and on the disk.
func TestKillUnderLoad(t *testing.T) {
	onEachThatOutlives(t, func(t *testing.T, f front) {
		for fs := range fsck {
			t.Run(fs, func(t *testing.T) { killUnderLoad(t, f, fs) })
		}
	})
}

func killUnderLoad(t *testing.T, f front, fs string) {
	x := alone(t, f, 8*time.Minute)
	x.creates("/dev/lab/disk")
	x.mounts(fs)
	x.sh(`nohup fio --name=app --directory=/srv --size=16m --rw=randrw --bs=4k --ioengine=libaio --iodepth=8 --direct=1 --fsync=32 --verify=crc32c \
		--verify_fatal=1 --verify_backlog=64 --time_based --runtime=40 --output-format=json --output=/fio.json </dev/null >/fio.log 2>&1 & echo $! >/fio.pid`)
	kills := 0
	for x.sh(goesOn+"; if [ -e /proc/$(cat /fio.pid) ]; then echo on; fi") == "on" {
		x.kills()
		x.launch()
		x.primary()
		kills++
	}
	t.Logf("%d kills, the longest request took %v", kills, slowest(t, x.sh("cat /fio.log >&2; cat /fio.json")))
	if kills == 0 {
		t.Error("the application has ended before marsd was killed")
	}
	x.sh("umount /srv; %s %s", fsck[fs], device)
	x.stops()
	x.sh("%s /dev/lab/disk", fsck[fs])
}

// TestMountedThroughAKill: a wish for another primary waits for the file system on the device also when marsd was killed and started in between,
// and comes true when it is unmounted.
func TestMountedThroughAKill(t *testing.T) {
	onEachThatOutlives(t, func(t *testing.T, f front) {
		w := newWorld(t, 8*time.Minute, lab.Config{Machines: 2, Disks: nodeDisks})
		a, b := pair(w, f)
		a.mounts("ext4")
		if out, err := b.try("marsadm primary %s --timeout 3s 2>&1", res); err == nil || !strings.Contains(err.Error()+out, "mounted on /srv") {
			t.Errorf("the other node became primary, or does not know why not: %s, %v", out, err)
		}
		b.sh("nohup marsadm primary %s --timeout 5m >/primary.log 2>&1 </dev/null &", res)
		a.await("it knows the wish", func(st control.Status) bool { return st.Resources[0].DesignatedPrimary == b.Name })
		b.kills() // so that nobody takes the wish back
		a.kills()
		a.sh("nohup dd if=/dev/zero of=/srv/file bs=4k count=64 conv=fsync >/dd.log 2>&1 </dev/null & echo $! >/dd.pid")
		a.launch()
		b.launch()
		a.primary()
		a.sh("while [ -e /proc/$(cat /dd.pid) ]; do sleep 0.1; done; cat /dd.log; [ $(stat -c %s /srv/file) = 262144 ]; umount /srv")
		b.primary()
		b.sh("e2fsck -fn %s; mount %s /srv; cmp -n 262144 /srv/file /dev/zero; umount /srv", device, device)
	})
}

// TestOvertakenWhilePaused: while marsd was dead another node was made primary by force. The file system on the old device gets errors, not data
// from there, and the device goes when it is unmounted.
func TestOvertakenWhilePaused(t *testing.T) {
	onEachThatOutlives(t, func(t *testing.T, f front) {
		w := newWorld(t, 8*time.Minute, lab.Config{Machines: 2, Disks: nodeDisks})
		a, b := pair(w, f)
		a.mounts("ext4")
		a.sh("echo old >/srv/file; sync")
		b.follows(a)
		a.kills()
		b.sh("marsadm primary %s --force; mount %s /srv; echo new >/srv/file; umount /srv", res, device)
		a.sh("(nohup dd if=/dev/zero of=/srv/late bs=4k count=1 conv=fsync || touch /failed) >/dd.log 2>&1 </dev/null & echo $! >/dd.pid")
		a.launch()
		a.awaitSelf("it follows the new primary", func(m control.Member) bool { return m.Role != control.RolePrimary && m.Device == "" })
		a.sh("while [ -e /proc/$(cat /dd.pid) ]; do sleep 0.1; done; cat /dd.log; [ -e /failed ]; [ ! -e %s ]; umount /srv", device)
		a.follows(b)
		b.sh("marsadm secondary %s", res)
		a.sh("marsadm primary %s; mount %s /srv; grep new /srv/file; [ ! -e /srv/late ]; umount /srv", res, device)
		a.stops()
	})
}

// TestDevicesOfOthers: one of two daemons on a host is killed and started again in another mode. It disconnects its own device, whose users get
// errors, and nothing else: the other daemon's device works, and waits for that one when it is killed in its turn.
func TestDevicesOfOthers(t *testing.T) {
	onEachThatOutlives(t, func(t *testing.T, f front) {
		x := alone(t, f, 6*time.Minute)
		x.creates("/dev/lab/disk")
		x.sh(`mkdir /other; mount -t tmpfs none /other; truncate -s 64M /other/disk
			other() { nohup setsid marsd --dir /other --name other --listen n1:7778 --dev-dir /dev/other --device %s --log-reserve 0 --segment-size 4MiB --writeback-limit 8MiB \
				>>/other.log 2>&1 </dev/null & echo $! >/other.pid; until marsadm --dir /other view >/dev/null 2>&1; do sleep 0.2; done; }
			declare -f other >/other.sh; other
			marsadm --dir /other create-cluster; marsadm --dir /other create-resource mine /other/disk
			mkfs.ext4 -q /dev/other/mine; mkdir /mine; mount /dev/other/mine /mine`, f.name)
		x.mounts("ext4")
		x.kills()
		x.sh("marsd --listen n1:7777 --device none >>/marsd.log 2>&1 </dev/null & echo $! >/marsd.pid; until marsadm view >/dev/null 2>&1; do sleep 0.2; done")
		x.primary()
		x.sh(`if dd if=/dev/zero of=/srv/file bs=4k count=1 conv=fsync; then exit 1; fi; umount /srv; [ ! -e %s ]
			dd if=/dev/zero of=/mine/file bs=4k count=100 conv=fsync
			kill -9 $(cat /other.pid); . /other.sh; other; dd if=/dev/zero of=/mine/file bs=4k count=200 conv=fsync; umount /mine
			marsadm --dir /other secondary mine; [ ! -e /dev/other/mine ]`, device)
		x.stops()
	})
}
