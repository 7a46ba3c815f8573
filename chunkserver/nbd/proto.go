package nbd

// The protocol's numbers, by the names and in the order of its description:
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md

// Magic numbers.
const (
	magicServer     uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     uint64 = 0x49484156454f5054 // "IHAVEOPT"
	magicReply      uint64 = 0x0003e889045565a9 // a reply to an option
	magicRequest    uint32 = 0x25609513
	magicSimple     uint32 = 0x67446698
	magicStructured uint32 = 0x668e33ef
)

// Handshake flags; the client answers with the same bits.
const (
	handshakeFixedNewstyle = 1 << 0
	handshakeNoZeroes      = 1 << 1
)

// Transmission flags.
const (
	exportHasFlags        = 1 << 0
	exportReadOnly        = 1 << 1
	exportSendFlush       = 1 << 2
	exportSendFUA         = 1 << 3
	exportSendTrim        = 1 << 5
	exportSendWriteZeroes = 1 << 6
	exportSendDF          = 1 << 7
	exportCanMultiConn    = 1 << 8
	exportSendFastZero    = 1 << 11
)

// Options.
const (
	optExportName      uint32 = 1
	optAbort           uint32 = 2
	optList            uint32 = 3
	optInfo            uint32 = 6
	optGo              uint32 = 7
	optStructuredReply uint32 = 8
	optListMetaContext uint32 = 9
	optSetMetaContext  uint32 = 10
)

// Types of replies to options.
const (
	repAck         uint32 = 1
	repServer      uint32 = 2
	repInfo        uint32 = 3
	repMetaContext uint32 = 4
	repErrUnsup    uint32 = 1<<31 + 1
	repErrPolicy   uint32 = 1<<31 + 2
	repErrInvalid  uint32 = 1<<31 + 3
	repErrUnknown  uint32 = 1<<31 + 6
	repErrShutdown uint32 = 1<<31 + 7
	repErrTooBig   uint32 = 1<<31 + 9
)

// Types of information about an export.
const (
	infoExport      uint16 = 0
	infoName        uint16 = 1
	infoDescription uint16 = 2
	infoBlockSize   uint16 = 3
)

// Commands.
const (
	cmdRead        uint16 = 0
	cmdWrite       uint16 = 1
	cmdDisc        uint16 = 2
	cmdFlush       uint16 = 3
	cmdTrim        uint16 = 4
	cmdWriteZeroes uint16 = 6
	cmdBlockStatus uint16 = 7
)

// Command flags.
const (
	flagFUA      uint16 = 1 << 0
	flagNoHole   uint16 = 1 << 1
	flagDF       uint16 = 1 << 2
	flagReqOne   uint16 = 1 << 3
	flagFastZero uint16 = 1 << 4
)

// Types of chunks of structured replies, and the flag of the last.
const (
	chunkNone        uint16 = 0
	chunkOffsetData  uint16 = 1
	chunkBlockStatus uint16 = 5
	chunkError       uint16 = 1<<15 + 1
	chunkDone        uint16 = 1 << 0
)

// Error numbers of replies to requests.
const (
	errnoPermission uint32 = 1
	errnoIO         uint32 = 5
	errnoInvalid    uint32 = 22
	errnoNoSpace    uint32 = 28
	errnoShutdown   uint32 = 108
)

// The metadata context base:allocation: its name, the id that we give it, and
// its flags.
const (
	baseNamespace  = "base:"
	baseAllocation = "base:allocation"

	allocationID   uint32 = 1
	allocationHole uint32 = 1 << 0
	allocationZero uint32 = 1 << 1
)

// Sizes, in bytes.
const (
	requestSize = 28
	replySize   = 20 + 8 // the longest: a structured header and the offset of data

	maxString  = 4096 // of the protocol's strings
	maxMessage = 512  // of the texts of errors that we send

	minBlock       = 1
	preferredBlock = 4096
	maxPayload     = 32 << 20 // of a READ or WRITE; what every client may expect

	maxOption     = 64 << 10       // data of an option that is looked at
	maxDiscard    = 2 * maxPayload // data that is refused but read over; more ends the connection
	maxExtents    = 4096           // in a reply to BLOCK_STATUS, which may tell less than was asked
	readAheadSize = 64 << 10       // bytes that one system call may fetch
)
