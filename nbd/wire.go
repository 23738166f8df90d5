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
	magicExtendedRequest uint32 = 0x21e41c71
	magicExtendedReply   uint32 = 0x6e8a278c
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
	optStartTLS        uint32 = 5
	optInfo            uint32 = 6
	optGo              uint32 = 7
	optStructuredReply uint32 = 8
	optListMetaContext uint32 = 9
	optSetMetaContext  uint32 = 10
	optExtendedHeaders uint32 = 11
)

// Replies to options. Errors have the top bit set.
const (
	repAck    uint32 = 1
	repServer uint32 = 2
	repInfo   uint32 = 3
	repMeta   uint32 = 4

	repErrUnsup       uint32 = 1<<31 + 1
	repErrPolicy      uint32 = 1<<31 + 2
	repErrInvalid     uint32 = 1<<31 + 3
	repErrTLSRequired uint32 = 1<<31 + 5
	repErrUnknown     uint32 = 1<<31 + 6
	repErrTooBig      uint32 = 1<<31 + 9
	repErrExtHeaders  uint32 = 1<<31 + 10
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
	flagStatusPayload   uint16 = 1 << 12
)

// Command flags.
const (
	cmdFlagFUA      uint16 = 1 << 0
	cmdFlagNoHole   uint16 = 1 << 1
	cmdFlagDF       uint16 = 1 << 2
	cmdFlagReqOne   uint16 = 1 << 3
	cmdFlagFastZero uint16 = 1 << 4
	cmdFlagPayload  uint16 = 1 << 5
)

// Flags and types of structured reply chunks.
const (
	replyFlagDone uint16 = 1 << 0

	replyTypeNone       uint16 = 0
	replyTypeOffsetData uint16 = 1
	replyTypeOffsetHole uint16 = 2
	replyTypeStatus     uint16 = 5
	replyTypeStatusExt  uint16 = 6
	replyTypeError      uint16 = 1<<15 + 1
)

// Sizes in bytes.
const (
	simpleReplySize   = 16
	maxRequestSize    = 32 // of a header, in any framing
	maxChunkHeader    = 32 // likewise
	offsetSize        = 8  // of the offset that begins OFFSET_DATA and OFFSET_HOLE
	holePayload       = offsetSize + 4
	maxNameSize       = 4096 // the protocol's bound on strings
	statusPayloadHead = 8    // of the payload of BLOCK_STATUS, before the context ids
)

// MaxPayload is the longest READ or WRITE that is served, in bytes. It is announced as the maximum block size.
const MaxPayload = 32 << 20

// framing is the look of requests and replies, as the handshake agreed on it ("Transmission phase").
type framing uint8

const (
	simpleReplies     framing = iota // compact requests, simple replies
	structuredReplies                // compact requests, structured replies where the client must or may as well get one
	extendedHeaders                  // extended requests, extended replies and nothing else (the document's branch extension-ext-header)
)

// requestSize returns the bytes of a request's header.
func (f framing) requestSize() int {
	if f == extendedHeaders {
		return 32
	}
	return 28
}

// chunkHeader returns the bytes that start a reply chunk. There are none among simple replies.
func (f framing) chunkHeader() int {
	if f == extendedHeaders {
		return 32
	}
	return 20
}

// dataHeader returns the bytes that go before the data of a reply to READ.
func (f framing) dataHeader() int {
	if f == simpleReplies {
		return simpleReplySize
	}
	return f.chunkHeader() + offsetSize
}

// putSimpleReply writes the 16 bytes of a simple reply to p.
func putSimpleReply(p []byte, cookie uint64, e errno) {
	be.PutUint32(p, magicSimpleReply)
	be.PutUint32(p[4:], uint32(e))
	be.PutUint64(p[8:], cookie)
}

// putChunk writes the header of a reply chunk with size bytes of payload. off is that of the request, which an extended reply repeats.
func (f framing) putChunk(p []byte, flags, kind uint16, cookie, off uint64, size int) {
	be.PutUint16(p[4:], flags)
	be.PutUint16(p[6:], kind)
	be.PutUint64(p[8:], cookie)
	if f == extendedHeaders {
		be.PutUint32(p, magicExtendedReply)
		be.PutUint64(p[16:], off)
		be.PutUint64(p[24:], uint64(size))
		return
	}
	be.PutUint32(p, magicStructuredReply)
	be.PutUint32(p[16:], uint32(size))
}
