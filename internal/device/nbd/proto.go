package nbd

// The numbers of the protocol, named after doc/proto.md. All integers on the wire are big-endian.

// Magic numbers.
const (
	magicInit       uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     uint64 = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   uint64 = 0x0003e889045565a9
	magicRequest    uint32 = 0x25609513
	magicSimple     uint32 = 0x67446698
	magicStructured uint32 = 0x668e33ef
)

// Handshake flags; the client's have the same values.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Transmission flags: what the export can do.
const (
	flagHasFlags     uint16 = 1 << 0
	flagReadOnly     uint16 = 1 << 1
	flagFlush        uint16 = 1 << 2
	flagFUA          uint16 = 1 << 3
	flagTrim         uint16 = 1 << 5
	flagWriteZeroes  uint16 = 1 << 6
	flagDF           uint16 = 1 << 7
	flagCanMultiConn uint16 = 1 << 8
	flagFastZero     uint16 = 1 << 11
)

// Options of the handshake.
const (
	optExportName      uint32 = 1
	optAbort           uint32 = 2
	optList            uint32 = 3
	optStartTLS        uint32 = 5
	optInfo            uint32 = 6
	optGo              uint32 = 7
	optStructuredReply uint32 = 8
	optListMetaContext uint32 = 9
	optSetMetaContext  uint32 = 10
)

// Replies to options.
const (
	repAck         uint32 = 1
	repServer      uint32 = 2
	repInfo        uint32 = 3
	repMetaContext uint32 = 4

	repErrUnsup    uint32 = 1<<31 + 1
	repErrPolicy   uint32 = 1<<31 + 2
	repErrInvalid  uint32 = 1<<31 + 3
	repErrTLSReqd  uint32 = 1<<31 + 5
	repErrUnknown  uint32 = 1<<31 + 6
	repErrShutdown uint32 = 1<<31 + 7
)

// Kinds of information in a repInfo.
const (
	infoExport    uint16 = 0
	infoName      uint16 = 1
	infoBlockSize uint16 = 3
)

// Commands of the transmission phase.
const (
	cmdRead        uint16 = 0
	cmdWrite       uint16 = 1
	cmdDisc        uint16 = 2
	cmdFlush       uint16 = 3
	cmdTrim        uint16 = 4
	cmdWriteZeroes uint16 = 6
	cmdBlockStatus uint16 = 7
)

// Flags of commands.
const (
	cmdFlagFUA      uint16 = 1 << 0
	cmdFlagNoHole   uint16 = 1 << 1
	cmdFlagDF       uint16 = 1 << 2
	cmdFlagReqOne   uint16 = 1 << 3
	cmdFlagFastZero uint16 = 1 << 4
)

// Chunks of structured replies.
const (
	chunkDone uint16 = 1 << 0 // flag: the last chunk of this reply

	chunkOffsetData  uint16 = 1
	chunkBlockStatus uint16 = 5
	chunkError       uint16 = 1<<15 + 1
)

// States of a block in the meta context base:allocation.
const (
	stateHole uint32 = 1 << 0
	stateZero uint32 = 1 << 1
)

const (
	allocationContext = "base:allocation"
	allocationID      = 1 // our number for it
)

// Lengths in bytes on the wire.
const (
	optionHeaderLen     = 16 // magic, option, length
	requestHeaderLen    = 28 // magic, flags, command, cookie, offset, length
	simpleHeaderLen     = 16 // magic, error, cookie
	structuredHeaderLen = 20 // magic, flags, type, cookie, length
)
