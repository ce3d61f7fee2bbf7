package ublk

import (
	"encoding/binary"
	"math/bits"
)

// This file is the driver's interface as bytes (include/uapi/linux/ublk_cmd.h): integers in the machine's order, structures without holes.

// Commands for the control device. They are encoded like ioctls: direction, size of the argument, letter, number.
const (
	ctlGetInfo       = dirRead | ctlBase | 0x02
	ctlAdd           = dirBoth | ctlBase | 0x04
	ctlDelete        = dirBoth | ctlBase | 0x05
	ctlStart         = dirBoth | ctlBase | 0x06
	ctlStop          = dirBoth | ctlBase | 0x07
	ctlSetParams     = dirBoth | ctlBase | 0x08
	ctlGetParams     = dirRead | ctlBase | 0x09
	ctlStartRecovery = dirBoth | ctlBase | 0x10
	ctlEndRecovery   = dirBoth | ctlBase | 0x11
	ctlGetFeatures   = dirRead | ctlBase | 0x13
	ctlDeleteAsync   = dirRead | ctlBase | 0x14
	ctlUpdateSize    = dirBoth | ctlBase | 0x15

	dirRead = 2 << 30
	dirBoth = 3 << 30
	ctlBase = ctlCmdSize<<16 | 'u'<<8
)

// Commands for the queues of a device.
const (
	ioFetch  = dirBoth | ioCmdSize<<16 | 'u'<<8 | 0x20
	ioCommit = dirBoth | ioCmdSize<<16 | 'u'<<8 | 0x21
)

// Features of a device.
const (
	featRecovery    = 1 << 3
	featReissue     = 1 << 4
	featIoctlEncode = 1 << 6
	featUserCopy    = 1 << 7
	featUpdateSize  = 1 << 10

	// features are what this front end cannot do without; the last of them came with Linux 6.5.
	features = featRecovery | featReissue | featIoctlEncode | featUserCopy
)

// States of a device.
const (
	stateDead     = 0 // not started, or stopped
	stateLive     = 1
	stateQuiesced = 2 // without a server; requests wait
)

// Operations of a request, in the low byte, and its flags.
const (
	opRead        = 0
	opWrite       = 1
	opFlush       = 2
	opDiscard     = 3
	opWriteZeroes = 5

	opMask      = 0xff
	flagFUA     = 1 << 13
	flagNoUnmap = 1 << 15
)

// Attributes and types of parameters.
const (
	attrVolatileCache = 1 << 2
	attrFUA           = 1 << 3

	paramBasic   = 1 << 0
	paramDiscard = 1 << 1
)

// Sizes of the structures in bytes, and places in the device's file.
const (
	ctlCmdSize = 32
	ioCmdSize  = 16
	infoSize   = 64
	paramsSize = 60 // up to and with the discard parameters
	descSize   = 24

	dataAt   = 0x80000000 // where the data of requests begin
	tagShift = 25

	noQueue  = 0xffff
	noDevice = 0xffffffff
)

var native = binary.NativeEndian

// ctlCmd is a command for the control device.
type ctlCmd struct {
	device uint32
	addr   uint64 // of a buffer that the kernel reads or fills
	len    uint16
	data   uint64
}

func (c *ctlCmd) encode(b []byte) {
	native.PutUint32(b[0:], c.device)
	native.PutUint16(b[4:], noQueue)
	native.PutUint16(b[6:], c.len)
	native.PutUint64(b[8:], c.addr)
	native.PutUint64(b[16:], c.data)
}

// encodeIO makes a fetch or a commit for the only queue.
func encodeIO(b []byte, tag int, result int32) {
	native.PutUint16(b[0:], 0)
	native.PutUint16(b[2:], uint16(tag))
	native.PutUint32(b[4:], uint32(result))
	native.PutUint64(b[8:], 0)
}

// info describes a device.
type info struct {
	queues, depth, state uint16
	maxRequest           uint32 // bytes
	device               uint32
	pid                  int32 // of the server
	features             uint64
	cookie               uint64 // the server's own; the driver only keeps it
}

func (i *info) encode() []byte {
	b := make([]byte, infoSize)
	native.PutUint16(b[0:], i.queues)
	native.PutUint16(b[2:], i.depth)
	native.PutUint16(b[4:], i.state)
	native.PutUint32(b[8:], i.maxRequest)
	native.PutUint32(b[12:], i.device)
	native.PutUint32(b[16:], uint32(i.pid))
	native.PutUint64(b[24:], i.features)
	native.PutUint64(b[32:], i.cookie)
	return b
}

func decodeInfo(b []byte) info {
	return info{
		queues: native.Uint16(b[0:]), depth: native.Uint16(b[2:]), state: native.Uint16(b[4:]),
		maxRequest: native.Uint32(b[8:]), device: native.Uint32(b[12:]), pid: int32(native.Uint32(b[16:])),
		features: native.Uint64(b[24:]), cookie: native.Uint64(b[32:]),
	}
}

// geometry is what applications see of a device.
type geometry struct {
	size      int64 // bytes
	blockSize int   // logical, bytes, a power of two
}

const (
	// pageSize is the physical block size, and the granularity of discards.
	pageSize = 4096
	// maxDiscard is the largest discard or zeroing in bytes that is one request.
	maxDiscard = 1 << 30
)

// encode makes the parameters. A volatile cache is always announced, also where every write is durable: a device may outlive the daemon, and
// with it the setting, but not its parameters.
func (g geometry) encode() []byte {
	shift := func(n int) byte { return byte(bits.TrailingZeros(uint(n))) }
	page := shift(max(pageSize, g.blockSize))
	b := make([]byte, paramsSize)
	native.PutUint32(b[0:], paramsSize)
	native.PutUint32(b[4:], paramBasic|paramDiscard)
	native.PutUint32(b[8:], attrVolatileCache|attrFUA)
	b[12], b[13], b[14], b[15] = shift(g.blockSize), page, page, page
	native.PutUint32(b[16:], maxRequest>>9)
	native.PutUint64(b[24:], uint64(g.size)>>9)
	native.PutUint32(b[44:], uint32(max(pageSize, g.blockSize)))
	native.PutUint32(b[48:], maxDiscard>>9)
	native.PutUint32(b[52:], maxDiscard>>9)
	native.PutUint16(b[56:], 1)
	return b
}

func decodeGeometry(b []byte) geometry {
	return geometry{size: int64(native.Uint64(b[24:]) << 9), blockSize: 1 << b[12]}
}

// desc describes a request.
type desc struct {
	op    uint32 // with flags
	off   int64  // bytes
	bytes int64
}

func decodeDesc(b []byte) desc {
	return desc{op: native.Uint32(b[0:]), off: int64(native.Uint64(b[8:]) << 9), bytes: int64(native.Uint32(b[4:])) << 9}
}

// dataOf is where in the device's file the data of a request are.
func dataOf(tag int) int64 { return dataAt + int64(tag)<<tagShift }
