// Package ublk shows a block.Device to applications as a block device of Linux's ublk driver, which hands requests to this process over an
// io_uring, and keeps the device, its users and their requests while there is no process. Sources: Documentation/block/ublk.rst,
// include/uapi/linux/ublk_cmd.h; Linux 6.5 or later is needed.
//
//	application -> /dev/mars/NAME -> /dev/ublkbN -> ublk_drv -> io_uring on /dev/ublkcN -> block.Device
//
// What it guarantees:
//
//   - A request that the block device completed has been completed by the Device. The device has a volatile write cache and FUA; flush, discard
//     and write-zeroes (which may deallocate, unless the request forbids it) are the Device's own.
//   - The device outlives the process: after kill -9, or Leave, requests wait in the kernel, and Open of the same resource goes on with the same
//     device, under the file systems that are mounted on it.
//   - Nobody goes on with content that is not what he has seen: Open takes a device over only if the content continues that of the device's
//     tenure, in the size and the block size that it had. Otherwise its users get errors, and Open makes a new device.
//   - Devices of others are never touched: ours are those whose cookie, a random number that the driver keeps, stands in a record in Dir. One
//     that a living process serves is left alone, too.
//   - Close never takes the device away from a user. It claims the device exclusively, makes it read-only, and then looks for users; who comes
//     after that could only read.
//   - The symlink never points to somebody else's device: it goes before the device's number does.
//   - Abort and Leave do not wait for the Device for longer than some seconds.
//
// Why acknowledged is kept (invariant I4) over a kill -9. A request that was answered had its records in the log file before; a file outlives
// the process that wrote it, so the next process finds them. A request that was not answered is issued again by the driver, which still owes
// the application an answer. It may have been logged before the death, and is logged a second time then. To write the same data to the same
// place, to zero or to flush twice is the same as to do it once, except to a request that came in between. In between can only be requests
// that were under way together with the one that is repeated: it was never answered, so nothing was issued because of it. Overlapping requests
// that are under way together have no order among themselves (package block); file systems and the page cache never issue such ones. A flush
// that is repeated covers everything that was answered before it was issued. In the log, hence on every replica, the repetition is a record
// like any other: each replica still is a prefix of the primary's log (I1).
//
// While there is no process, who waits for the device waits uninterruptibly, as for a disk that does not answer; kill takes effect when the next
// marsd has shown the device, or taken it away. `marsd drop-devices` does the latter without starting anything.
//
// One queue per device, since the log that all writes go through is one sequence: with several, writers would only queue up one step later, in
// smaller batches, and each completion would have to wake another thread. Reads that have to wait for the disk are spread over workers. While
// the Device slows writers down, reads of the same device wait too. Data are copied once, between the request's pages and a pooled buffer
// (UBLK_F_USER_COPY), so an idle device holds no buffers. Zero copy would need the log and the disk to be written by the same io_uring.
//
// What it does not do: change the size of a device on kernels before 6.16. And one window stays: a process that dies in the middle of a takeover,
// before it has offered all tags, leaves a device that the driver lets nobody take over again; its users get errors.
package ublk
