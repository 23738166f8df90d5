package history

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Sizes of the format, in bytes. These constants are part of the format and must not be changed.
const (
	headerSize  = 512
	frameSize   = 64
	footerSize  = 128
	tableEntry  = 32
	sheetEntry  = 8
	orderEntry  = 4
	sectorSize  = block.Size
	boundHeader = 96 // bytes of the header that keys are derived from

	formatVersion = 1
	// thinnedVersion is that of a file that does not have every record: a program that knows only the other would make moments of it that never were. boundThinned is boundHeader of it.
	thinnedVersion = 2
	boundThinned   = 128
	// placedVersion is that of a thinned file whose payload lies by blocks, so that versions of a block are beside one another.
	placedVersion = 3

	headerMagic = "HNXHIST\n"
	footerMagic = "HNXHISE\n"
	frameMagic  = 0x46484e48 // "HNHF"
)

const (
	// FrameRaw is how much payload a frame takes, in bytes: what a read of one block has to decompress.
	FrameRaw = 128 << 10
	// maxFrameRaw and maxFrameMeta bound what a reader allocates for a frame, in bytes.
	maxFrameRaw  = FrameRaw
	maxFrameMeta = 128 << 10
	// MaxFileRaw bounds the raw payload of a file, in bytes, and with it its index.
	MaxFileRaw     = 256 << 20
	maxFileSectors = MaxFileRaw / sectorSize
	// maxFileStored is the length from which on a file is sealed, in bytes.
	maxFileStored = 64 << 20
	maxIndex      = 64 << 20
	// maxIndexFull is the length of an index from which on a file is sealed, in bytes: what a record in parts adds still fits.
	maxIndexFull = maxIndex - 4<<20
	// longestRecord is what a file takes beyond the mark at which it is full, in bytes: no record lies in two files.
	longestRecord = 40 << 20
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

// Header is the first 512 bytes of a file.
type Header struct {
	StoreID block.UUID
	Volume  block.VolumeID
	ID      uint32 // of the file; also its name
	KeyID   uint32 // of the master key that it is encrypted with; 0: it is not
	Salt    [32]byte
	After   uint64 // every record of the file has a higher sequence number
	Created int64  // ns since the epoch

	// Of a file that was thinned; zero in others.

	Placed  bool // version 3: an order says where the payload of records lies; else it lies in their order
	Level   Level
	Through uint32 // it stands for the files from ID to this one
	// FirstPoint and LastPoint bound the sequence numbers of the points that are left in it; zero: there is none.
	FirstPoint, LastPoint uint64
}

// version is that of the format of the file.
func (h *Header) version() uint32 {
	switch {
	case h.Level == Whole:
		return formatVersion
	case h.Placed:
		return placedVersion
	}
	return thinnedVersion
}

// bound is how many bytes of the header keys are derived from.
func (h *Header) bound() int {
	if h.Level == Whole {
		return boundHeader
	}
	return boundThinned
}

func (h *Header) encode() (b []byte, seed uint32) {
	b = make([]byte, headerSize)
	copy(b, headerMagic)
	le.PutUint32(b[8:], h.version())
	le.PutUint32(b[12:], headerSize)
	copy(b[16:], h.StoreID[:])
	le.PutUint64(b[32:], uint64(h.Volume))
	le.PutUint32(b[40:], h.ID)
	le.PutUint32(b[44:], h.KeyID)
	copy(b[48:], h.Salt[:])
	le.PutUint64(b[80:], h.After)
	le.PutUint64(b[88:], uint64(h.Created))
	le.PutUint32(b[96:], uint32(h.Level))
	le.PutUint32(b[100:], h.Through)
	le.PutUint64(b[104:], h.FirstPoint)
	le.PutUint64(b[112:], h.LastPoint)
	seed = crc32.Checksum(b[:headerSize-4], castagnoli)
	le.PutUint32(b[headerSize-4:], seed)
	return b, seed
}

// ParseHeader decodes the first bytes of a file and returns the seed of its chain. Errors wrap block.ErrCorrupt or block.ErrVersion and name no source.
func ParseHeader(b []byte) (h Header, seed uint32, err error) {
	if len(b) != headerSize || string(b[:8]) != headerMagic {
		return h, 0, damaged("header magic", 0)
	}
	seed = le.Uint32(b[headerSize-4:])
	if crc32.Checksum(b[:headerSize-4], castagnoli) != seed {
		return h, 0, damaged("header checksum", headerSize-4)
	}
	reserved := 96
	switch v := le.Uint32(b[8:]); v {
	case formatVersion:
	case thinnedVersion, placedVersion:
		reserved, h.Placed = 120, v == placedVersion
		h.Level, h.Through = Level(le.Uint32(b[96:])), le.Uint32(b[100:])
		h.FirstPoint, h.LastPoint = le.Uint64(b[104:]), le.Uint64(b[112:])
		if h.Level == Whole || h.Level > Hours || h.Through < le.Uint32(b[40:]) || h.Through > maxFileID || h.FirstPoint > h.LastPoint || h.FirstPoint == 0 && h.LastPoint > 0 {
			return h, 0, damaged("header in bounds", 96)
		}
	default:
		return h, 0, fmt.Errorf("history format %d: %w", v, block.ErrVersion)
	}
	if le.Uint32(b[12:]) != headerSize || !zeroes(b[reserved:headerSize-4]) {
		return h, 0, damaged("header in bounds", 12)
	}
	copy(h.StoreID[:], b[16:])
	h.Volume = block.VolumeID(le.Uint64(b[32:]))
	h.ID, h.KeyID = le.Uint32(b[40:]), le.Uint32(b[44:])
	copy(h.Salt[:], b[48:])
	h.After, h.Created = le.Uint64(b[80:]), int64(le.Uint64(b[88:]))
	if h.ID == 0 || h.ID > maxFileID || h.Volume == 0 || h.Created < 0 {
		return h, 0, damaged("header in bounds", 32)
	}
	return h, seed, nil
}

// frameHeader is the head of a frame.
type frameHeader struct {
	Ordinal       uint32 // in the file, from 0 on
	Codec         uint8
	Records       uint32
	MetaRaw       uint32 // bytes
	MetaStored    uint32
	PayloadRaw    uint32
	PayloadStored uint32
	LastSeq       uint64 // of the last record that is whole, here or before
	LastTime      int64  // of the last record
	MetaSum       uint32 // CRC32C of what is stored
	PayloadSum    uint32
	Chain         uint32 // CRC32C of the bytes before it, continued from the chain of the frame before
}

func (h *frameHeader) encode(b []byte, chain uint32) {
	clear(b[:frameSize])
	le.PutUint32(b, frameMagic)
	le.PutUint32(b[4:], h.Ordinal)
	b[8] = h.Codec
	le.PutUint32(b[12:], h.Records)
	le.PutUint32(b[16:], h.MetaRaw)
	le.PutUint32(b[20:], h.MetaStored)
	le.PutUint32(b[24:], h.PayloadRaw)
	le.PutUint32(b[28:], h.PayloadStored)
	le.PutUint64(b[32:], h.LastSeq)
	le.PutUint64(b[40:], uint64(h.LastTime))
	le.PutUint32(b[48:], h.MetaSum)
	le.PutUint32(b[52:], h.PayloadSum)
	h.Chain = crc32.Update(chain, castagnoli, b[:60])
	le.PutUint32(b[60:], h.Chain)
}

// parseFrame decodes the head of the frame of that ordinal, which follows the given chain.
func parseFrame(b []byte, ordinal, chain uint32) (h frameHeader, err error) {
	if len(b) < frameSize || le.Uint32(b) != frameMagic {
		return h, errNoFrame
	}
	h.Chain = le.Uint32(b[60:])
	if crc32.Update(chain, castagnoli, b[:60]) != h.Chain {
		return h, errNoFrame
	}
	h.Ordinal, h.Codec, h.Records = le.Uint32(b[4:]), b[8], le.Uint32(b[12:])
	h.MetaRaw, h.MetaStored = le.Uint32(b[16:]), le.Uint32(b[20:])
	h.PayloadRaw, h.PayloadStored = le.Uint32(b[24:]), le.Uint32(b[28:])
	h.LastSeq, h.LastTime = le.Uint64(b[32:]), int64(le.Uint64(b[40:]))
	h.MetaSum, h.PayloadSum = le.Uint32(b[48:]), le.Uint32(b[52:])
	if h.Ordinal != ordinal || h.Codec > codecS2 || !zeroes(b[9:12]) || !zeroes(b[56:60]) || h.LastTime < 0 ||
		h.MetaRaw > maxFrameMeta || h.MetaStored > maxFrameMeta+tagSize || h.MetaRaw > h.MetaStored ||
		h.PayloadRaw > maxFrameRaw || h.PayloadRaw%sectorSize != 0 || h.PayloadStored > maxFrameRaw+tagSize || h.Records > h.MetaRaw {
		return h, errBadFrame
	}
	return h, nil
}

// frameRef is what an index says of a frame.
type frameRef struct {
	off     int64 // in the file, of the head
	raw     uint32
	rawLen  uint32
	stored  uint32 // of the payload
	metaRaw uint32
	metaLen uint32 // stored
	sum     uint32 // of the stored payload
	codec   uint8
}

func (r *frameRef) encode(b []byte) {
	clear(b[:tableEntry])
	le.PutUint32(b, uint32(r.off))
	le.PutUint32(b[4:], r.raw)
	le.PutUint32(b[8:], r.rawLen)
	le.PutUint32(b[12:], r.stored)
	le.PutUint32(b[16:], r.metaRaw)
	le.PutUint32(b[20:], r.metaLen)
	le.PutUint32(b[24:], r.sum)
	b[28] = r.codec
}

func parseFrameRef(b []byte) frameRef {
	return frameRef{off: int64(le.Uint32(b)), raw: le.Uint32(b[4:]), rawLen: le.Uint32(b[8:]), stored: le.Uint32(b[12:]), metaRaw: le.Uint32(b[16:]), metaLen: le.Uint32(b[20:]), sum: le.Uint32(b[24:]), codec: b[28]}
}

// payloadAt is where the stored payload begins.
func (r *frameRef) payloadAt() int64 { return r.off + frameSize + int64(r.metaLen) }

// footer is the end of a sealed file.
type footer struct {
	ID       uint32
	Frames   uint32
	LastSeq  uint64
	LastTime int64
	IndexOff int64
	IndexLen int64 // stored
	IndexSum uint32
	Chain    uint32   // of the last frame
	Raw      uint32   // bytes of payload
	Nonce    [12]byte // of the index, random; zero where nothing is encrypted

	// Of version 3; zero in others.

	Sheets  uint32
	Sectors uint32 // that the records wrote
}

// written is how much the records of the file wrote, in bytes.
func (f *footer) written(h *Header) uint32 {
	if h.Placed {
		return f.Sectors * sectorSize
	}
	return f.Raw
}

// tables is what an index has before what the records did, in bytes.
func (f *footer) tables() int64 {
	return int64(f.Frames)*tableEntry + int64(f.Sheets)*sheetEntry + int64(f.Sectors)*orderEntry
}

func (f *footer) encode(seed, version uint32) []byte {
	b := make([]byte, footerSize)
	copy(b, footerMagic)
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], f.ID)
	le.PutUint32(b[16:], f.Frames)
	le.PutUint32(b[20:], f.Raw)
	le.PutUint64(b[24:], f.LastSeq)
	le.PutUint64(b[32:], uint64(f.LastTime))
	le.PutUint64(b[40:], uint64(f.IndexOff))
	le.PutUint64(b[48:], uint64(f.IndexLen))
	le.PutUint32(b[56:], f.IndexSum)
	le.PutUint32(b[60:], f.Chain)
	copy(b[64:], f.Nonce[:])
	le.PutUint32(b[76:], f.Sheets)
	le.PutUint32(b[80:], f.Sectors)
	le.PutUint32(b[footerSize-4:], crc32.Update(seed, castagnoli, b[:footerSize-4]))
	return b
}

// parseFooter decodes the last bytes of a file of that size. The error wraps block.ErrCorrupt or block.ErrVersion.
func parseFooter(b []byte, h *Header, seed uint32, size int64) (f footer, err error) {
	at := size - footerSize
	if len(b) != footerSize || string(b[:8]) != footerMagic {
		return f, damaged("footer magic", at)
	}
	if crc32.Update(seed, castagnoli, b[:footerSize-4]) != le.Uint32(b[footerSize-4:]) {
		return f, damaged("footer checksum", at+footerSize-4)
	}
	if v := le.Uint32(b[8:]); v != h.version() {
		return f, fmt.Errorf("history footer format %d: %w", v, block.ErrVersion)
	}
	f = footer{ID: le.Uint32(b[12:]), Frames: le.Uint32(b[16:]), Raw: le.Uint32(b[20:]), LastSeq: le.Uint64(b[24:]), LastTime: int64(le.Uint64(b[32:])),
		IndexOff: int64(le.Uint64(b[40:])), IndexLen: int64(le.Uint64(b[48:])), IndexSum: le.Uint32(b[56:]), Chain: le.Uint32(b[60:]), Nonce: [12]byte(b[64:])}
	reserved := 76
	if h.Placed {
		f.Sheets, f.Sectors, reserved = le.Uint32(b[76:]), le.Uint32(b[80:]), 84
	}
	if f.ID != h.ID || !zeroes(b[reserved:footerSize-4]) || h.KeyID == 0 && f.Nonce != [12]byte{} || f.IndexOff < headerSize || f.IndexLen < 0 || f.IndexLen > maxIndex || f.IndexOff+f.IndexLen != at ||
		f.tables() > f.IndexLen || f.Raw > MaxFileRaw || f.Sectors > maxFileSectors || f.LastTime < 0 {
		return f, damaged("footer in bounds", at+12)
	}
	return f, nil
}

func damaged(want string, off int64) error {
	return &block.CorruptError{Offset: off, Want: want, Got: "something else"}
}

var (
	errNoFrame  = &block.CorruptError{Want: "a frame", Got: "other bytes"}
	errBadFrame = &block.CorruptError{Want: "a frame in bounds", Got: "other values"}
)

func zeroes(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
