package vm

import (
	"testing"
	"time"
)

// TestDisconnectedByHand: somebody disconnects the kernel's nbd device under a mounted file system, which gets errors. That device is not revived:
// the next marsd makes another one, and the old one's number is free when the file system is unmounted.
func TestDisconnectedByHand(t *testing.T) {
	long(t)
	f := front{name: "nbd", modules: []string{"nbd"}, outlives: true}
	x := alone(t, f, 5*time.Minute)
	x.creates("/dev/lab/disk")
	x.mounts("ext4")
	x.sh(`echo kept >/srv/file; sync; nbd-client -d /dev/nbd0
		if dd if=/dev/zero of=/srv/other bs=4k count=1 conv=fsync; then exit 1; fi`)
	x.kills()
	x.launch()
	x.primary()
	x.sh(`[ "$(readlink %[1]s)" = /dev/nbd1 ]; umount /srv; [ ! -e /sys/block/nbd0/backend ]
		mount %[1]s /srv; grep kept /srv/file; [ ! -s /srv/other ]; umount /srv`, device)
	x.stops()
	x.sh("[ ! -e /sys/block/nbd1/backend ]; [ $(cat /sys/block/nbd1/queue/io_timeout) = 30000 ]")
}
