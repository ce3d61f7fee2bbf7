// Package knbd shows a block.Device to applications as a kernel block device, through the kernel's own nbd driver: the driver is configured
// over generic netlink and gets one end of a socket pair; package nbd serves the other one, in the transmission phase from the start.
//
//	application -> /dev/mars/NAME -> /dev/nbdN -> socket pair -> package nbd -> block.Device
//
// Sources: include/uapi/linux/nbd-netlink.h and nbd.h and drivers/block/nbd.c of Linux, doc/proto.md of the NetworkBlockDevice/nbd project.
// Linux 5.15 or later is needed, for the backend identifier; the driver is a module (modprobe nbd).
//
// What it guarantees:
//
//   - The Device's contract is the block device's: a volatile write cache, FLUSH, FUA, discard, and write-zeroes where the driver knows it
//     (Linux 6.12). The driver has no cache and answers when the Device has.
//   - The device outlives the process. After kill -9, or Leave, the users' IO waits; Open in the next process takes the device over and it goes
//     on. Nothing fails for deadTimeout. After that new requests fail until somebody takes over; requests that were in flight go on waiting,
//     until the device is taken over or disconnected (nbd-client -d).
//   - It is taken over only if the caller says that the content is what the users expect (Config.Continues); else, and whenever
//     Paused.Drop was called once, it is disconnected for ever: users get errors, never old or foreign data.
//   - Devices of others are not touched. Each device carries a random backend identifier that was recorded durably before; whatever does
//     not carry one of those does not exist for this package, and the driver itself checks it whenever it reconfigures a device. (Only its
//     disconnect goes by number: while the device is served its number is held by keeping it open; when it is not, somebody would have to
//     disconnect it and connect another one in the same place between two system calls.)
//   - Close never takes the device away from a user that can be seen: mounts, also in other mount namespaces, and other exclusive openers are
//     kept out by the kernel; processes that merely have it open are found in /proc. One that opens it in the last moment gets errors.
//
// Why what was acknowledged is kept when the connection is replaced (invariant I4):
//
//   - A write that was answered is in the log, which survives kill -9 of its writer, and the volume reads the log to its end before the
//     device is taken over. So later reads see it.
//   - The next process makes all log that it finds durable before it goes on. A flush that was not answered is sent again, and covers
//     every write that was answered before, whichever process has done that.
//   - What was in flight and not answered is sent again by the driver, and by nobody else, when the connection has been replaced. It may have
//     been carried out already; doing it twice is the same as once, for its sender has not been told and hence has not built on it.
//   - That is so because nothing of an old connection is carried out after the new one is there: else an old write, sent again and answered,
//     could come to life once more and undo a newer one. An old process is dead, its threads are gone when its lock is; and within
//     one process reconnect waits until every request of the old connection has ended.
//
// That last point is why there is one connection per device, although the driver can do with several: it then sends a request that is slow
// again over another one, on its own, without a word, while the first copy may still be on its way to the Device. With one connection, and no
// time-out per request, it never gives a request up, however slow, but looks after resendAfter whether the connection has been replaced
// meanwhile. The price is a line "Possible stuck request" in the kernel's log for each request that takes longer.
//
// Every error is EIO for the application: the driver has no other word. The reason is in the log of this process.
//
// The process must never depend on its device, see package loop.
package knbd
