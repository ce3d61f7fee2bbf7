package ublk

import (
	"errors"
	"fmt"

	"mars/internal/iouring"

	"golang.org/x/sys/unix"
)

// channel is the kernel of a running device: its file, a ring for the commands, and an eventfd to be woken by. The thread that opens it must be
// the one that uses it: to the driver a queue is a thread.
type channel struct {
	file  int
	ring  *iouring.Ring
	descs []byte // written by the driver
	bell  int
	rung  []byte // what is read from bell
}

var _ kernel = (*channel)(nil)

// descsSize is what the descriptors of a queue take, in whole pages.
const descsSize = (depth*descSize + pageSize - 1) / pageSize * pageSize

// openChannel opens the ring of a queue. The file of the device stays the caller's.
func openChannel(file int) (*channel, error) {
	c := &channel{file: file, bell: -1, rung: make([]byte, 8)}
	if err := c.open(); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *channel) open() (err error) {
	if c.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	if c.descs, err = unix.Mmap(c.file, 0, descsSize, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return fmt.Errorf("map the requests: %w", err)
	}
	c.ring, err = iouring.Open(depth+1, iouring.Pinned)
	return err
}

func (c *channel) close() error {
	var errs []error
	if c.ring != nil {
		errs = append(errs, c.ring.Close())
	}
	if c.descs != nil {
		errs = append(errs, unix.Munmap(c.descs))
	}
	if c.bell >= 0 {
		errs = append(errs, unix.Close(c.bell))
	}
	return errors.Join(errs...)
}

// bellID is the id of the read from bell; commands have their tags.
const bellID = 1 << 32

func (c *channel) fetch(tag int) { c.command(ioFetch, tag, 0) }

func (c *channel) commit(tag int, result int32) { c.command(ioCommit, tag, result) }

// command takes an entry of the ring, which has one for each tag.
func (c *channel) command(op uint32, tag int, result int32) {
	encodeIO(c.ring.Next().Command(c.file, op, uint64(tag)), tag, result)
}

func (c *channel) listen() { c.ring.Next().Read(c.bell, c.rung, bellID) }

func (c *channel) wake() {
	var one [8]byte
	native.PutUint64(one[:], 1)
	_, _ = unix.Write(c.bell, one[:]) // fails only when the count overflows: then it rings anyway
}

func (c *channel) enter(wait bool) error {
	n := 0
	if wait {
		n = 1
	}
	return c.ring.Enter(n)
}

func (c *channel) next() (event, bool) {
	d, ok := c.ring.Completed()
	if d.ID == bellID {
		return event{tag: wakeUp}, ok
	}
	return event{tag: int(d.ID), result: d.Result}, ok
}

func (c *channel) desc(tag int) desc { return decodeDesc(c.descs[tag*descSize:]) }

func (c *channel) load(tag int, p []byte) error {
	n, err := unix.Pread(c.file, p, dataOf(tag))
	return whole("take the data of a write", n, len(p), err)
}

func (c *channel) store(tag int, p []byte) error {
	n, err := unix.Pwrite(c.file, p, dataOf(tag))
	return whole("hand over the data of a read", n, len(p), err)
}

func whole(what string, n, want int, err error) error {
	if err == nil && n != want {
		err = fmt.Errorf("%d bytes of %d", n, want)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
