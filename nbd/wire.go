package nbd

import "encoding/binary"

// The names below are those of the protocol document (NBD_OPT_GO is optGo) and the values are part of the wire format. All integers on
// the wire are big-endian.

var be = binary.BigEndian

// Magic numbers.
const (
	magicInit            uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption          uint64 = 0x49484156454f5054 // "IHAVEOPT"
	magicOptionReply     uint64 = 0x0003e889045565a9
	magicRequest         uint32 = 0x25609513
	magicSimpleReply     uint32 = 0x67446698
	magicStructuredReply uint32 = 0x668e33ef
)

// Handshake flags; the client's have the same values.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options a client may send during the handshake.
const (
	optExportName      uint32 = 1
	optAbort           uint32 = 2
	optList            uint32 = 3
	optInfo            uint32 = 6
	optGo              uint32 = 7
	optStructuredReply uint32 = 8
)

// Replies to options. Errors have the top bit set.
const (
	repAck    uint32 = 1
	repServer uint32 = 2
	repInfo   uint32 = 3

	repErrUnsup   uint32 = 1<<31 + 1
	repErrPolicy  uint32 = 1<<31 + 2
	repErrInvalid uint32 = 1<<31 + 3
	repErrUnknown uint32 = 1<<31 + 6
	repErrTooBig  uint32 = 1<<31 + 9
)

// Kinds of NBD_REP_INFO.
const (
	infoExport      uint16 = 0
	infoName        uint16 = 1
	infoDescription uint16 = 2
	infoBlockSize   uint16 = 3
)

// Transmission flags.
const (
	flagHasFlags        uint16 = 1 << 0
	flagReadOnly        uint16 = 1 << 1
	flagSendFlush       uint16 = 1 << 2
	flagSendFUA         uint16 = 1 << 3
	flagSendTrim        uint16 = 1 << 5
	flagSendWriteZeroes uint16 = 1 << 6
	flagSendDF          uint16 = 1 << 7
	flagCanMultiConn    uint16 = 1 << 8
	flagSendCache       uint16 = 1 << 10
	flagSendFastZero    uint16 = 1 << 11
)

// Command flags.
const (
	cmdFlagFUA      uint16 = 1 << 0
	cmdFlagNoHole   uint16 = 1 << 1
	cmdFlagDF       uint16 = 1 << 2
	cmdFlagFastZero uint16 = 1 << 4
)

// Flags and types of structured reply chunks.
const (
	replyFlagDone uint16 = 1 << 0

	replyTypeNone       uint16 = 0
	replyTypeOffsetData uint16 = 1
	replyTypeOffsetHole uint16 = 2
	replyTypeError      uint16 = 1<<15 + 1
)

// Sizes in bytes.
const (
	requestSize     = 28
	simpleReplySize = 16
	chunkHeaderSize = 20
	dataHeaderSize  = chunkHeaderSize + 8     // OFFSET_DATA up to its data
	holeChunkSize   = chunkHeaderSize + 8 + 4 // OFFSET_HOLE, whole
	maxNameSize     = 4096                    // the protocol's bound on strings
)

// MaxPayload is the longest READ or WRITE that is served, in bytes. It is announced as the maximum block size.
const MaxPayload = 32 << 20

// putSimpleReply writes the 16 bytes of a simple reply to p.
func putSimpleReply(p []byte, cookie uint64, e errno) {
	be.PutUint32(p, magicSimpleReply)
	be.PutUint32(p[4:], uint32(e))
	be.PutUint64(p[8:], cookie)
}

// putChunkHeader writes the 20 bytes that start a structured reply chunk with size bytes of payload.
func putChunkHeader(p []byte, flags, kind uint16, cookie uint64, size int) {
	be.PutUint32(p, magicStructuredReply)
	be.PutUint16(p[4:], flags)
	be.PutUint16(p[6:], kind)
	be.PutUint64(p[8:], cookie)
	be.PutUint32(p[16:], uint32(size))
}
