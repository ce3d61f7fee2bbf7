package vm

import (
	"strings"
	"testing"
	"time"

	"mars/tests/vm/lab"
)

// alone boots one machine and starts marsd there.
func alone(t *testing.T, f front, limit time.Duration) *node {
	t.Helper()
	x := newWorld(t, limit, lab.Config{Machines: 1, Disks: nodeDisks}).nodes[0]
	x.format()
	x.starts(f)
	return x
}

// TestGrowOnline: the device grows under a mounted file system, which then grows, while an application works on it.
func TestGrowOnline(t *testing.T) {
	long(t)
	onEachFront(t, func(t *testing.T, f front) {
		x := alone(t, f, 5*time.Minute)
		x.sh("marsadm create-cluster; marsadm create-resource %s /dev/lab/disk --size 128MiB", res)
		x.primary()
		x.sh("mkfs.ext4 -q %s; mount %s /srv", device, device)
		x.sh("nohup "+verify+" </dev/null >/fio.log 2>&1 & echo $! >/fio.pid", 16)
		if f.fixed {
			out, err := x.try("marsadm resize %s 2>&1", res)
			if err == nil || !strings.Contains(err.Error()+out, "this needs Linux 6.16") {
				t.Errorf("resize says %q, %v", out, err)
			}
			x.sh("while [ -e /proc/$(cat /fio.pid) ]; do sleep 0.2; done; cat /fio.log >&2; umount /srv; marsadm secondary %s; marsadm primary %s", res, res)
			x.primary()
			x.sh("[ $(blockdev --getsize64 %s) = %d ]; e2fsck -fn %s", device, 384*mib, device)
			return
		}
		x.sh("marsadm resize %s; [ $(blockdev --getsize64 %s) = %d ]; resize2fs %s; [ $(stat -f -c %%b /srv) -gt 300000 ]", res, device, 384*mib, device)
		x.sh("while [ -e /proc/$(cat /fio.pid) ]; do sleep 0.2; done; cat /fio.log >&2; "+verify+" --verify_only", 16)
		x.sh("umount /srv; e2fsck -fn %s", device)
	})
}

// TestDiscard: what is discarded or zeroed reads as zeroes, to the end of the device, on the disk too; its neighbours stay.
func TestDiscard(t *testing.T) {
	long(t)
	onEachFront(t, func(t *testing.T, f front) {
		x := alone(t, f, 5*time.Minute)
		x.creates("/dev/lab/disk")
		x.sh(`head -c 24M /dev/zero | tr '\0' x | dd of=%[1]s bs=1M iflag=fullblock oflag=direct status=none
			blkdiscard -o 4M -l 4M %[1]s
			blkdiscard -z -o 12M -l 4M %[1]s
			blkdiscard -o 20M %[1]s`, device)
		const check = `at() { dd if=%[1]s bs=4M skip=$1 count=1 iflag=direct status=none; }
			for i in 0 2 4; do at $i | cmp -n 4194304 - <(tr '\0' x </dev/zero); done
			for i in 1 3 5 6 95; do at $i | cmp -n 4194304 - /dev/zero; done`
		x.sh(check, device)
		x.stops()
		x.sh(check, "/dev/lab/disk")
	})
}
