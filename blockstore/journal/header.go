package journal

import (
	"fmt"
	"hash/crc32"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// RecordHeader is the fixed part of a record on disk.
type RecordHeader struct {
	Kind       Kind
	Flags      uint16
	Seq        uint64
	Time       int64
	Volume     block.VolumeID
	Off, Len   uint64
	Durable    uint64 // highest sequence number known to be synced when the record was appended
	MapEpoch   uint32
	PayloadLen uint32        // bytes
	Sectors    uint32        // descriptors that follow: PayloadLen/4096 of a Write, else 0
	PayloadSum uint32        // CRC32C of a control payload; 0 of data, whose sums are in the descriptors
	Tag        [tagSize]byte // of an encrypted log: authenticates header, descriptors and the payload of a control record; else zeroes
	Sum        uint32        // CRC32C of the fields above, continued from the seed of the file
	Chain      uint32        // see chainOf
}

// stream reports whether the record is laid out for a device, as a writer of streams wants it.
func (h *RecordHeader) stream() bool { return isStream(h.Kind, h.Flags) }

// payloadAt returns where the payload of a record begins whose header lies at off: behind the descriptors, and, if it is a stream's, at the next border of a page.
func (h *RecordHeader) payloadAt(off int64) int64 { return payloadAt(off, int(h.Sectors), h.stream()) }

// end returns where a record ends whose header lies at off.
func (h *RecordHeader) end(off int64) int64 { return h.payloadAt(off) + int64(h.PayloadLen) }

// gap returns the bytes between descriptors and payload of a record whose header lies at off.
func (h *RecordHeader) gap(off int64) []byte {
	return zeroPage[:h.payloadAt(off)-off-recordSize-int64(h.Sectors)*descSize]
}

func payloadAt(off int64, sectors int, stream bool) int64 {
	off += recordSize + int64(sectors)*descSize
	if stream {
		return roundUp(off)
	}
	return off
}

// encode fills b, of recordSize bytes, with all but the chain value, which depends on what follows the header.
func (h *RecordHeader) encode(b []byte, seed uint32) {
	_ = b[recordSize-1]
	le.PutUint32(b, recordMagic)
	b[4], b[5] = diskKind(h.Kind, h.Flags), 0
	le.PutUint16(b[6:], h.Flags)
	le.PutUint64(b[8:], h.Seq)
	le.PutUint64(b[16:], uint64(h.Time))
	le.PutUint64(b[24:], uint64(h.Volume))
	le.PutUint64(b[32:], h.Off)
	le.PutUint64(b[40:], h.Len)
	le.PutUint64(b[48:], h.Durable)
	le.PutUint32(b[56:], h.MapEpoch)
	le.PutUint32(b[60:], h.PayloadLen)
	le.PutUint32(b[64:], h.Sectors)
	le.PutUint32(b[68:], h.PayloadSum)
	copy(b[72:88], h.Tag[:])
	h.Sum = crc32.Update(seed, castagnoli, b[:88])
	le.PutUint32(b[88:], h.Sum)
}

// chainOf returns the chain value of a record: the CRC32C, continued from the chain value before it (the seed of the file for its first
// record), of the header without its two checksums, the descriptors and the payload of a control record. The checksum of the header
// is left out because a CRC over data and its own CRC is a constant, which would break the chain.
func chainOf(prev uint32, header, descs []byte) uint32 {
	return crc32.Update(crc32.Update(prev, castagnoli, header[:88]), castagnoli, descs)
}

// ParseRecordHeader decodes the first recordSize bytes of b with every bound checked; it allocates nothing. The chain is not verified: that
// takes the bytes that follow. An unknown kind gives block.ErrVersion, since the checksum says that a writer meant it; everything else
// block.ErrCorrupt.
func ParseRecordHeader(b []byte, seed uint32) (h RecordHeader, err error) {
	if len(b) < recordSize || le.Uint32(b) != recordMagic {
		return h, errNoRecord
	}
	h.Sum = le.Uint32(b[88:])
	if crc32.Update(seed, castagnoli, b[:88]) != h.Sum {
		return h, errNoRecord
	}
	h.Flags = le.Uint16(b[6:])
	h.Kind = kindOf(b[4], h.Flags)
	h.Seq = le.Uint64(b[8:])
	h.Time = int64(le.Uint64(b[16:]))
	h.Volume = block.VolumeID(le.Uint64(b[24:]))
	h.Off = le.Uint64(b[32:])
	h.Len = le.Uint64(b[40:])
	h.Durable = le.Uint64(b[48:])
	h.MapEpoch = le.Uint32(b[56:])
	h.PayloadLen = le.Uint32(b[60:])
	h.Sectors = le.Uint32(b[64:])
	h.PayloadSum = le.Uint32(b[68:])
	h.Tag = [tagSize]byte(b[72:88])
	h.Chain = le.Uint32(b[92:])
	if b[5] != 0 || h.Time < 0 {
		return h, errBadRecord
	}
	return h, checkShape(h.Kind, h.Off, h.Len, h.PayloadLen, h.Sectors, h.PayloadSum)
}

// checkShape checks that the lengths of a record fit its kind and are bounded.
func checkShape(kind Kind, off, length uint64, payload, sectors, sum uint32) error {
	switch {
	case kind == Write:
		if length == 0 || length > MaxWrite || length%sectorSize != 0 || off%sectorSize != 0 || uint64(payload) != length ||
			sectors != payload/sectorSize || sum != 0 {
			return errBadRecord
		}
	case kind == Trim || kind == Zero:
		if payload != 0 || sectors != 0 || sum != 0 {
			return errBadRecord
		}
	case kind >= FirstControl:
		if payload > MaxControl || sectors != 0 {
			return errBadRecord
		}
	default:
		return fmt.Errorf("log record of kind %d: %w", kind, block.ErrVersion)
	}
	return nil
}

// Errors of the record decoders, made once because recovery meets them at the end of each unsealed file.
var (
	errNoRecord  = &block.CorruptError{Want: "a record header", Got: "other bytes"}
	errBadRecord = &block.CorruptError{Want: "a record header in bounds", Got: "other values"}
)
