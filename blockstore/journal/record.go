package journal

import (
	"fmt"
	"hash/crc32"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Kind says what a record does. These values are part of the format and must not be changed.
type Kind uint8

// Data kinds. The values 5 to 15 are reserved.
const (
	Write Kind = 1 // payload replaces the range
	Trim  Kind = 2 // the range reads as zeroes; no payload
	Zero  Kind = 3 // the range reads as zeroes and stays allocated where that has a meaning; no payload
)

// alignedWrite is the kind on disk of a Write with FlagStream: its payload begins at the border of a page. A program that does not know it refuses the log.
const alignedWrite = 4

// isStream reports whether a record is part of a stream.
func isStream(kind Kind, flags uint16) bool { return kind == Write && flags&FlagStream != 0 }

// diskKind returns the kind as it is written.
func diskKind(kind Kind, flags uint16) byte {
	if isStream(kind, flags) {
		return alignedWrite
	}
	return byte(kind)
}

// kindOf is the reverse of diskKind. Kind and flag that do not fit each other give a kind that is none.
func kindOf(b byte, flags uint16) Kind {
	stream := flags&FlagStream != 0
	switch {
	case b == alignedWrite && stream:
		return Write
	case b == byte(Write) && stream:
		return 0
	}
	return Kind(b)
}

// FirstControl is the lowest kind of a control record, whose payload belongs to the engine and is opaque here.
const FirstControl Kind = 16

const (
	// MaxWrite is the longest payload of a Write, in bytes: the largest NBD request and the block that its unaligned ends add.
	MaxWrite = 32<<20 + block.Size
	// MaxControl is the longest payload of a control record, in bytes.
	MaxControl = 1 << 20
)

// Record is one entry of the log, as the engine hands it to Append.
type Record struct {
	Kind     Kind
	Flags    uint16 // the engine's
	Volume   block.VolumeID
	MapEpoch uint32
	// Off and Len are the range in the volume, in bytes; for a Write both are multiples of block.Size. Control records may use them freely.
	Off, Len uint64
	// Payload holds the bytes of a Write (Len in all) or of a control record (at most MaxControl), in any number of pieces. It is borrowed
	// until Append returns.
	Payload [][]byte

	// Append fills in the rest.

	Seq  uint64 // dense over the whole log
	Time int64  // nanoseconds since 1970; grows with Seq
	Pos  Pos    // of the first payload sector, or of the header when there is no payload
	// Sums holds the CRC32C of each 4 KiB sector of a Write. Its capacity is reused, so a caller that keeps Records allocates nothing.
	Sums []uint32
	// Summed says that the caller has set Sums, and has just found that the payload fits them: they are not computed again.
	Summed bool

	payloadLen int
	payloadSum uint32 // CRC32C of a control payload
}

// Replayed is one record as recovery found it. Sums and Payload are lent until the callback returns.
type Replayed struct {
	Kind     Kind
	Flags    uint16
	Volume   block.VolumeID
	MapEpoch uint32
	Off, Len uint64
	Seq      uint64
	Time     int64
	Pos      Pos
	Sums     []uint32 // of a Write: the CRC32C of each 4 KiB sector
	Payload  []byte   // of a control record; the payload of a Write is read with ReadAt
}

// prepare checks the record and computes its sums. It runs outside the append lock, where it may cost time.
func (r *Record) prepare() error {
	r.payloadLen = 0
	for _, p := range r.Payload {
		r.payloadLen += len(p)
	}
	r.payloadSum = 0
	if !r.Summed || r.Kind != Write {
		r.Sums = r.Sums[:0]
	}
	switch {
	case r.Kind == Write:
		if r.Off%block.Size != 0 || r.Len%block.Size != 0 || r.Len == 0 || r.Len > MaxWrite || uint64(r.payloadLen) != r.Len {
			return fmt.Errorf("append write of %d bytes at %d with %d bytes of payload: %w", r.Len, r.Off, r.payloadLen, block.ErrInvalid)
		}
		if !r.Summed {
			r.Sums = appendSums(r.Sums, r.Payload)
		}
		if uint64(len(r.Sums)) != r.Len/block.Size {
			return fmt.Errorf("append write of %d bytes at %d with %d sums: %w", r.Len, r.Off, len(r.Sums), block.ErrInvalid)
		}
	case r.Kind == Trim || r.Kind == Zero:
		if r.payloadLen != 0 {
			return fmt.Errorf("append record of kind %d with payload: %w", r.Kind, block.ErrInvalid)
		}
	case r.Kind >= FirstControl:
		if r.payloadLen > MaxControl {
			return fmt.Errorf("append control record of %d bytes: %w", r.payloadLen, block.ErrInvalid)
		}
		for _, p := range r.Payload {
			r.payloadSum = crc32.Update(r.payloadSum, castagnoli, p)
		}
	default:
		return fmt.Errorf("append record of reserved kind %d: %w", r.Kind, block.ErrInvalid)
	}
	return nil
}

// appendSums appends the CRC32C of each 4 KiB of the pieces, whatever their borders. Their total length is a multiple of 4 KiB.
func appendSums(sums []uint32, pieces [][]byte) []uint32 {
	sum, room := uint32(0), block.Size
	for _, p := range pieces {
		for len(p) > 0 {
			n := min(room, len(p))
			sum = crc32.Update(sum, castagnoli, p[:n])
			p, room = p[n:], room-n
			if room == 0 {
				sums = append(sums, sum)
				sum, room = 0, block.Size
			}
		}
	}
	return sums
}
