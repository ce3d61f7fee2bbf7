package nbd

import (
	"encoding/binary"
	"errors"
	"sync"

	"mars/internal/block"
	"mars/internal/device/buffer"
)

// header is a decoded request header.
type header struct {
	flags, cmd uint16
	length     uint32
	cookie     uint64
	off        uint64
}

// parseHeader decodes requestHeaderLen bytes; it returns false when they do not begin with the magic number.
func parseHeader(b []byte) (header, bool) {
	b = b[:requestHeaderLen]
	return header{
		flags:  binary.BigEndian.Uint16(b[4:]),
		cmd:    binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]),
		off:    binary.BigEndian.Uint64(b[16:]),
		length: binary.BigEndian.Uint32(b[24:]),
	}, binary.BigEndian.Uint32(b) == magicRequest
}

func (h *header) blockFlags() (f block.Flags) {
	if h.flags&cmdFlagFUA != 0 {
		f |= block.FUA
	}
	if h.flags&cmdFlagNoHole != 0 {
		f |= block.NoHole
	}
	if h.flags&cmdFlagFastZero != 0 {
		f |= block.FastZero
	}
	return f
}

// commands says for each command which flags it may carry (the protocol allows FUA everywhere) and what a modification is to the device.
var commands = [...]struct {
	known bool
	flags uint16
	op    block.Op // 0: not a modification
}{
	cmdRead:        {true, cmdFlagFUA | cmdFlagDF, 0},
	cmdWrite:       {true, cmdFlagFUA, block.OpWrite},
	cmdFlush:       {true, cmdFlagFUA, block.OpFlush},
	cmdTrim:        {true, cmdFlagFUA, block.OpDiscard},
	cmdWriteZeroes: {true, cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero, block.OpWriteZeroes},
	cmdBlockStatus: {true, cmdFlagFUA | cmdFlagReqOne, 0},
}

// request is one request from its header to its reply. Requests are pooled; whoever holds the pointer owns it: the reader goroutine, then
// the device or a worker, then the reply queue.
type request struct {
	block.Request // what the device is asked to do; Done is bound once for the life of the object

	conn    *conn
	cookie  uint64
	cmd     uint16
	reqOne  bool
	payload *buffer.Buffer // memory accounted for in the budget; nil when none is held
	err     error          // the outcome
}

var requests sync.Pool

func newRequest(c *conn, h *header) *request {
	r, ok := requests.Get().(*request)
	if !ok {
		r = new(request)
		r.Done = r.done
	}
	r.conn, r.cookie, r.cmd, r.err = c, h.cookie, h.cmd, nil
	r.reqOne = h.flags&cmdFlagReqOne != 0
	r.Op, r.Flags, r.Data = 0, h.blockFlags(), nil
	r.Off, r.Len = int64(h.off), int64(h.length)
	return r
}

// release ends the life of r.
func (r *request) release() {
	r.freePayload()
	r.conn, r.err, r.Data = nil, nil, nil
	requests.Put(r)
}

func (r *request) freePayload() {
	if r.payload == nil {
		return
	}
	cost := r.payload.Cost()
	r.payload.Free()
	r.payload, r.Data = nil, nil
	r.conn.srv.budget.give(&r.conn.share, cost)
}

// settle notes the outcome and frees what the reply does not need, so that a client that does not take replies holds as little as possible.
func (r *request) settle(err error) {
	r.err = err
	if err != nil || commands[r.cmd].op != 0 {
		r.freePayload()
	}
}

// done is the Done of the embedded Request. It never blocks.
func (r *request) done(err error) {
	r.settle(err)
	r.conn.replies.complete(r)
}

// run carries the request out, waiting for the device.
func (r *request) run() error {
	dev := r.conn.srv.cfg.Dev
	switch r.cmd {
	case cmdRead:
		return dev.ReadAt(r.payload.Data, r.Off)
	case cmdBlockStatus:
		return r.blockStatus()
	case cmdWrite:
		return dev.WriteAt(r.Data, r.Off, r.Flags)
	case cmdWriteZeroes:
		return dev.WriteZeroes(r.Off, r.Len, r.Flags)
	case cmdTrim:
		return dev.Discard(r.Off, r.Len, r.Flags)
	case cmdFlush:
		return dev.Flush()
	}
	return errUnknownCommand // not reached: such requests are refused before
}

var (
	errUnknownCommand = errors.New("unknown command")
	errNoExtents      = errors.New("device returned no extents")
)

// maxExtents is the largest number of extents of one reply; they take one payload of the smallest class.
const maxExtents = (buffer.MinSize - 4) / 8

// blockStatus fills the payload with the chunk for base:allocation.
func (r *request) blockStatus() error {
	limit := maxExtents
	if r.reqOne {
		limit = 1
	}
	extents, err := r.conn.srv.mapper.Extents(r.Off, r.Len, limit)
	if err != nil {
		return err
	}
	data := binary.BigEndian.AppendUint32(r.payload.Data[:0], allocationID)
	data = appendExtents(data, extents[:min(len(extents), limit)], r.Len)
	if len(data) == 4 {
		return errNoExtents
	}
	r.payload.Data = data
	return nil
}

// appendExtents appends the descriptors of extents as far as they concern the first rest bytes. The protocol wants neighbours of the same
// state told as one; devices need not care.
func appendExtents(b []byte, extents []block.Extent, rest int64) []byte {
	first := len(b)
	for _, e := range extents {
		n := uint32(max(min(e.Len, rest), 0))
		rest -= int64(n)
		last := len(b) - 8
		switch {
		case n == 0:
		case last >= first && binary.BigEndian.Uint32(b[last+4:]) == stateOf(e):
			binary.BigEndian.PutUint32(b[last:], binary.BigEndian.Uint32(b[last:])+n)
		default:
			b = binary.BigEndian.AppendUint32(b, n)
			b = binary.BigEndian.AppendUint32(b, stateOf(e))
		}
	}
	return b
}

func stateOf(e block.Extent) uint32 {
	if e.Hole {
		return stateHole | stateZero
	}
	return 0
}
