package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// These constants are part of the disk format and should not be changed.
const (
	// SegmentSize is the most bytes of a segment file, directory and footer included.
	SegmentSize = 64 << 20
	// HeaderSize is the length of a segment's header in bytes; the first frame starts there.
	HeaderSize = 4 << 10

	headerMagic    = "HNSEGHDR"
	segmentVersion = 1
)

// Offsets in a segment header (docs/format/segment.md).
const (
	shVersion    = 8
	shClass      = 12 // u8, then 3 B zero
	shStore      = 16
	shID         = 32
	shGeneration = 40
	shKeyID      = 44
	shSalt       = 48
	shDomain     = 80
	shReserved   = 96 // zero up to the checksum
	shCRC        = HeaderSize - 4
)

// Class says what a segment holds, and so how it is packed and where it may live. The values are part of the disk format.
type Class uint8

const (
	RawLog     Class = 1 // log data that was written past the log
	Warm       Class = 2 // chunks in frames of about 16 KiB
	Cold       Class = 3 // chunks in larger, denser frames
	History    Class = 4 // retained records of a volume's past
	Metadata   Class = 5 // checkpoints of the maps
	Repository Class = 6 // packs of a backup repository
)

var classNames = [...]string{RawLog: "raw-log", Warm: "warm", Cold: "cold", History: "history", Metadata: "metadata", Repository: "repository"}

func (c Class) valid() bool { return c >= RawLog && c <= Repository }

// String returns the class's name.
func (c Class) String() string {
	if !c.valid() {
		return fmt.Sprintf("class %d", uint8(c))
	}
	return classNames[c]
}

// Meta is a segment's identity.
type Meta struct {
	StoreID    block.UUID
	ID         block.SegmentID
	Generation uint32 // of this copy's bytes; a rewrite under the same id gets the next one
	Class      Class
	SealEpoch  uint64         // log sequence number at which the segment was sealed; 0 while it is open
	KeyID      uint32         // of the master key that the frames are sealed under; 0: they are not
	Salt       [32]byte       // reserved: zeroes
	DomainID   dedup.DomainID // domain whose key made the chunk hashes
}

// String names the segment in messages.
func (m *Meta) String() string { return fmt.Sprintf("segment %016x.%08x", uint64(m.ID), m.Generation) }

func (m *Meta) corrupt(off int64, want, got string) error {
	return &block.CorruptError{Source: m.String(), Offset: off, Want: want, Got: got}
}

// appendHeader appends the 4 KiB header of m.
func appendHeader(dst []byte, m *Meta) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, HeaderSize)...)
	h, le := dst[at:], binary.LittleEndian
	copy(h, headerMagic)
	le.PutUint32(h[shVersion:], segmentVersion)
	h[shClass] = byte(m.Class)
	copy(h[shStore:], m.StoreID[:])
	le.PutUint64(h[shID:], uint64(m.ID))
	le.PutUint32(h[shGeneration:], m.Generation)
	le.PutUint32(h[shKeyID:], m.KeyID)
	copy(h[shSalt:], m.Salt[:])
	copy(h[shDomain:], m.DomainID[:])
	le.PutUint32(h[shCRC:], crc32.Checksum(h[:shCRC], castagnoli))
	return dst
}

// parseSegmentHeader decodes and checks the header that b starts with.
func parseSegmentHeader(b []byte) (Meta, error) {
	bad := func(off int64, want, got string) (Meta, error) {
		return Meta{}, &block.CorruptError{Source: "segment header", Offset: off, Want: want, Got: got}
	}
	if len(b) < HeaderSize {
		return bad(0, "4096 B", fmt.Sprintf("%d B", len(b)))
	}
	b = b[:HeaderSize]
	le := binary.LittleEndian
	if string(b[:8]) != headerMagic {
		return bad(0, headerMagic, fmt.Sprintf("%q", b[:8]))
	}
	if want, got := le.Uint32(b[shCRC:]), crc32.Checksum(b[:shCRC], castagnoli); got != want {
		return bad(shCRC, crcText(want), crcText(got))
	}
	if v := le.Uint32(b[shVersion:]); v != segmentVersion {
		return Meta{}, fmt.Errorf("segment version %d: %w", v, block.ErrVersion)
	}
	m := Meta{
		StoreID: block.UUID(b[shStore : shStore+16]), ID: block.SegmentID(le.Uint64(b[shID:])), Generation: le.Uint32(b[shGeneration:]),
		Class: Class(b[shClass]), KeyID: le.Uint32(b[shKeyID:]), Salt: [32]byte(b[shSalt : shSalt+32]), DomainID: dedup.DomainID(b[shDomain : shDomain+16]),
	}
	switch {
	case !m.Class.valid():
		return bad(shClass, "a known class", m.Class.String())
	case !isZero(b[shClass+1:shStore]) || !isZero(b[shReserved:shCRC]):
		return bad(shReserved, "zeroes in reserved bytes", "other bytes")
	}
	return m, nil
}

// ReadHeader reads and checks the header of a segment of size bytes. SealEpoch is only in the footer.
func ReadHeader(r io.ReaderAt, size int64) (Meta, error) {
	if size < HeaderSize {
		return Meta{}, &block.CorruptError{Source: "segment header", Want: "at least 4096 B", Got: fmt.Sprintf("%d B", size)}
	}
	b := make([]byte, HeaderSize)
	if err := readAt(r, b, 0); err != nil {
		return Meta{}, fmt.Errorf("read segment header: %w", err)
	}
	return parseSegmentHeader(b)
}

// CheckHeader reads the header of a segment and reports, as block.ErrCorrupt, a file of another store, id or generation: an old disk that
// came back, a doubled directory entry. It costs one read of 4 KiB.
func CheckHeader(r io.ReaderAt, size int64, store block.UUID, id block.SegmentID, generation uint32) (Meta, error) {
	want := Meta{StoreID: store, ID: id, Generation: generation}
	m, err := ReadHeader(r, size)
	if err != nil {
		return Meta{}, fmt.Errorf("%v: %w", &want, err)
	}
	switch {
	case m.StoreID != store:
		return Meta{}, want.corrupt(shStore, "store "+store.String(), m.StoreID.String())
	case m.ID != id:
		return Meta{}, want.corrupt(shID, want.String(), m.String())
	case m.Generation != generation:
		return Meta{}, want.corrupt(shGeneration, want.String(), m.String())
	}
	return m, nil
}

// readAt fills b; an end before that is damage.
func readAt(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return &block.CorruptError{Source: "segment", Offset: off, Want: fmt.Sprintf("%d B", len(b)), Got: fmt.Sprintf("%d B", n)}
	}
	return err
}
