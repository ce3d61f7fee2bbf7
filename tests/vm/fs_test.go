package vm

import (
	"fmt"
	"testing"
	"time"

	"mars/tests/vm/lab"
)

// fsck are the commands that say whether an unmounted file system is sound, changing nothing.
var fsck = map[string]string{"ext4": "e2fsck -fn", "xfs": "xfs_repair -n"}

// verify is an application that writes files of numbered blocks, with syncs between, and reads them again. With "--verify_only" it only reads.
const verify = `fio --name=verify --directory=/srv --size=%dm --rw=randwrite --bsrange=4k-64k --ioengine=libaio --iodepth=8 --direct=1 \
	--fsync=64 --verify=crc32c --verify_fatal=1 --randseed=7 --output-format=terse`

// TestSmoke: the device is a block device that a file system can trust: what fio has written is there after a restart of the daemon.
func TestSmoke(t *testing.T) { fileSystem(t, fronts[0], "ext4", 32) }

func TestFileSystems(t *testing.T) {
	long(t)
	onEachFront(t, func(t *testing.T, f front) {
		for fs := range fsck {
			t.Run(fs, func(t *testing.T) { fileSystem(t, f, fs, 48) })
		}
	})
}

func fileSystem(t *testing.T, f front, fs string, sizeMiB int) {
	w := newWorld(t, 5*time.Minute, lab.Config{Machines: 1, Disks: nodeDisks})
	x := w.nodes[0]
	x.format()
	x.starts(f)
	x.creates("/dev/lab/disk")
	x.sh("mkfs.%s -q %s; mount %s /srv", fs, device, device)
	x.sh(verify, sizeMiB)
	x.sh("umount /srv; " + fsck[fs] + " " + device)
	x.stops()
	x.launch()
	x.primary()
	x.sh("mount %s /srv; %s --verify_only; umount /srv", device, fmt.Sprintf(verify, sizeMiB))
	x.stops()
	x.sh(fsck[fs] + " /dev/lab/disk") // without the daemon: everything has been written back
}
