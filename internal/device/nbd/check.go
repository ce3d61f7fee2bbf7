package nbd

import (
	"errors"
	"fmt"
	"math"

	"mars/internal/block"
)

// Reasons to refuse a request that the Device need not be asked about. They are static, so that refusing costs no memory.
var (
	errBadFlags    = errors.New("flags that do not belong to the command")
	errZeroLength  = errors.New("length is zero")
	errFlushRange  = errors.New("flush with an offset or a length")
	errTooLarge    = errors.New("request is larger than announced")
	errTooLargeDF  = errors.New("reply would have to be fragmented")
	errNoContext   = errors.New("no meta context was selected")
	errBeyondRead  = errors.New("range is beyond the end of the device")
	errBeyondWrite = fmt.Errorf("range is beyond the end of the device: %w", block.ErrNoSpace)
)

// check returns why a request must be refused; nil when it may be carried out.
func (c *conn) check(h *header) error {
	if int(h.cmd) >= len(commands) || !commands[h.cmd].known {
		return errUnknownCommand
	}
	if h.flags&^commands[h.cmd].flags != 0 {
		return errBadFlags
	}
	if h.cmd == cmdFlush {
		return checkFlush(h)
	}
	if c.srv.cfg.ReadOnly && commands[h.cmd].op != 0 {
		return block.ErrReadOnly
	}
	if h.cmd == cmdBlockStatus && c.agreed.allocation != c.srv {
		return errNoContext
	}
	return c.checkRange(h)
}

func checkFlush(h *header) error {
	if h.off != 0 || h.length != 0 {
		return errFlushRange
	}
	return nil
}

func (c *conn) checkRange(h *header) error {
	if h.length == 0 {
		return errZeroLength
	}
	if h.off%block.SectorSize != 0 || h.length%block.SectorSize != 0 {
		return block.ErrAlign
	}
	if (h.cmd == cmdRead || h.cmd == cmdWrite) && h.length > block.MaxRequest {
		if h.flags&cmdFlagDF != 0 {
			return errTooLargeDF
		}
		return errTooLarge
	}
	if c.fits(h) {
		return nil
	}
	if commands[h.cmd].op != 0 {
		return errBeyondWrite
	}
	return errBeyondRead
}

// fits asks the device for its size each time, because it may have grown.
func (c *conn) fits(h *header) bool {
	return h.off <= math.MaxInt64 && block.Check(int64(h.off), int64(h.length), c.srv.cfg.Dev.Size()) == nil
}
