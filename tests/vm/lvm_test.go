package vm

import (
	"fmt"
	"testing"
	"time"

	"mars/tests/vm/lab"
)

// TestLVM: the disk is a logical volume, the device is a physical one. The application's volumes on it are grown, the role moves, and the
// other node finds the same volume group with the same contents.
func TestLVM(t *testing.T) {
	long(t)
	onEachFront(t, func(t *testing.T, f front) {
		w := newWorld(t, 8*time.Minute, lab.Config{Machines: 2, Disks: nodeDisks})
		a, b := w.nodes[0], w.nodes[1]
		for _, x := range w.nodes {
			x.sh("modprobe -a dm-mod dm-snapshot; vgcreate -q below /dev/lab/disk; lvcreate -q -L 192M -n disk below")
			x.format()
			x.starts(f)
		}
		a.creates("/dev/below/disk")
		b.joins(a, "/dev/below/disk")

		a.sh("vgcreate -q above %s; lvcreate -q -L 96M -n app above; mkfs.ext4 -q /dev/above/app; mount /dev/above/app /srv", a.pv())
		a.sh(verify, 32)
		grow(a, b)
		a.sh("lvcreate -q -s -L 16M -n before above/app; echo later >/srv/later; sync")
		a.sh("umount /srv; e2fsck -fn /dev/above/app; vgchange -q -an above")

		b.sh("marsadm primary %s --timeout 60s", res)
		b.primary()
		b.sh("vgscan -q; vgchange -q -ay above; e2fsck -fn /dev/above/app; mount /dev/above/app /srv; grep -q later /srv/later")
		b.sh("%s --verify_only", fmt.Sprintf(verify, 32))
		b.sh("mkdir /before; mount -o ro /dev/above/before /before; [ ! -e /before/later ]")
		if got := b.sh("blockdev --getsize64 /dev/above/app"); got != fmt.Sprint(128*mib) {
			t.Errorf("the volume has %s bytes after it was grown, handed over and found again", got)
		}
	})
}

// pv is the device under the name that LVM knows it by.
func (x *node) pv() string { x.w.t.Helper(); return x.sh("readlink -f " + device) }

// grow makes the lower volumes larger, then the device, the physical volume on it, the upper volume and its file system, all in use.
func grow(primary, secondary *node) {
	primary.w.t.Helper()
	for _, x := range []*node{primary, secondary} {
		x.sh("lvextend -q -L 256M below/disk")
	}
	primary.sh("marsadm resize %s --timeout 60s", res)
	primary.sh("until [ $(blockdev --getsize64 %s) = %d ]; do sleep 0.1; done", device, 256*mib)
	primary.sh("pvresize -q %s; lvextend -q -L 128M above/app; resize2fs /dev/above/app", primary.pv())
}
