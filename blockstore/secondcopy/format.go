package secondcopy

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

// These constants are part of the disk format (docs/format/copies.md) and must not be changed.
const (
	// FileName is the name of the file in its directory.
	FileName = "copies"

	magic       = "HNCOPIES"
	version     = 1
	trailerSize = 64
	entrySize   = 32

	// MaxFrames bounds the frames of a file, and MaxBytes what they take.
	MaxFrames = 1 << 16
	MaxBytes  = 1 << 40
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Place is where a frame was copied from.
type Place struct {
	Segment    block.SegmentID
	Generation uint32
	Off, Len   uint32 // bytes of the segment
}

// entry is a frame of the file.
type entry struct {
	Place
	crc uint32 // CRC32C of its bytes
	at  uint64 // where they begin in the file
}

// before orders frames: by segment, then by offset.
func (p Place) before(q Place) bool {
	return p.Segment < q.Segment || p.Segment == q.Segment && p.Off < q.Off
}

// encodeTable encodes table and trailer. Frames lie before them without gaps, in the same order.
func encodeTable(store block.UUID, entries []entry) []byte {
	b := make([]byte, 0, len(entries)*entrySize+trailerSize)
	le := binary.LittleEndian
	for i := range entries {
		e := &entries[i]
		b = le.AppendUint64(b, uint64(e.Segment))
		b = le.AppendUint32(b, e.Generation)
		b = le.AppendUint32(b, e.Off)
		b = le.AppendUint32(b, e.Len)
		b = le.AppendUint32(b, e.crc)
		b = le.AppendUint64(b, e.at)
	}
	t := make([]byte, trailerSize)
	copy(t, magic)
	le.PutUint32(t[8:], version)
	le.PutUint32(t[12:], uint32(len(entries)))
	copy(t[16:], store[:])
	le.PutUint32(t[56:], crc32.Checksum(b, castagnoli))
	le.PutUint32(t[60:], crc32.Checksum(t[:60], castagnoli))
	return append(b, t...)
}

// parseTrailer returns the number of entries and the checksum of the table.
func parseTrailer(b []byte, size uint64, store block.UUID) (n int, sum uint32, err error) {
	bad := func(off int64, want, got string) error {
		return &block.CorruptError{Source: FileName, Offset: int64(size) - trailerSize + off, Want: want, Got: got}
	}
	le := binary.LittleEndian
	switch {
	case len(b) != trailerSize || string(b[:8]) != magic:
		return 0, 0, bad(0, magic, fmt.Sprintf("%.8q", b))
	case le.Uint32(b[60:]) != crc32.Checksum(b[:60], castagnoli):
		return 0, 0, bad(60, "the checksum of the trailer", fmt.Sprintf("%08x", le.Uint32(b[60:])))
	case le.Uint32(b[8:]) != version:
		return 0, 0, fmt.Errorf("%s of version %d, known is %d: %w", FileName, le.Uint32(b[8:]), version, block.ErrVersion)
	case block.UUID(b[16:32]) != store:
		return 0, 0, bad(16, "store "+store.String(), block.UUID(b[16:32]).String())
	case le.Uint32(b[12:]) > MaxFrames:
		return 0, 0, bad(12, fmt.Sprintf("at most %d frames", MaxFrames), fmt.Sprint(le.Uint32(b[12:])))
	}
	if n := uint64(le.Uint32(b[12:])); n*entrySize > size-trailerSize {
		return 0, 0, bad(12, "a table inside the file", fmt.Sprintf("%d frames", n))
	}
	for i, x := range b[32:56] {
		if x != 0 {
			return 0, 0, bad(int64(32+i), "zero", fmt.Sprint(x))
		}
	}
	return int(le.Uint32(b[12:])), le.Uint32(b[56:]), nil
}

// parseTable decodes the table with every bound checked. end is where it begins in the file, and the last frame ends.
func parseTable(b []byte, sum uint32, end uint64) ([]entry, error) {
	bad := func(i int, want string) error {
		return &block.CorruptError{Source: FileName, Offset: int64(end) + int64(i*entrySize), Want: want, Got: "another one"}
	}
	if crc32.Checksum(b, castagnoli) != sum {
		return nil, bad(0, "the checksum of the table")
	}
	le := binary.LittleEndian
	entries := make([]entry, len(b)/entrySize)
	at := uint64(0)
	for i := range entries {
		b := b[i*entrySize:]
		e := entry{Place{block.SegmentID(le.Uint64(b)), le.Uint32(b[8:]), le.Uint32(b[12:]), le.Uint32(b[16:])}, le.Uint32(b[20:]), le.Uint64(b[24:])}
		switch {
		case i > 0 && !entries[i-1].before(e.Place):
			return nil, bad(i, "frames in order")
		case e.Len == 0 || uint64(e.Off)+uint64(e.Len) > segment.SegmentSize:
			return nil, bad(i, "a frame inside a segment")
		case e.at != at || at+uint64(e.Len) > end:
			return nil, bad(i, "frames without gaps, before the table")
		}
		entries[i] = e
		at += uint64(e.Len)
	}
	if at != end {
		return nil, bad(0, "the table right behind the last frame")
	}
	return entries, nil
}
