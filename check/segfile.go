package check

import (
	"encoding/binary"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// docs/format/segment.md
const (
	segMaxSize    = 64 << 20
	segHeaderSize = 4096
	segFooterSize = 256
	dirFrameSize  = 16
	dirChunkSize  = 32
)

// segHeader is the first 4 KiB of a segment.
type segHeader struct {
	Class      uint8
	StoreID    block.UUID
	ID         uint64
	Generation uint32
	KeyID      uint32 // 0: not encrypted
	DomainID   [16]byte
}

func parseSegHeader(b []byte) (*segHeader, error) {
	f := &fields{b: b}
	f.rule(len(b) == segHeaderSize, 0, "a header of 4096 B", "%d B", len(b))
	f.magic("HNSEGHDR")
	if f.err == nil {
		f.err = checkSum(segHeaderSize-4, crc(b[:segHeaderSize-4]), binary.LittleEndian.Uint32(b[segHeaderSize-4:]))
	}
	f.version(4)
	h := &segHeader{Class: f.u8()}
	f.reserved(3)
	h.StoreID, h.ID, h.Generation = block.UUID(f.take(16)), f.u64(), f.u32()
	h.KeyID = f.u32()
	f.reserved(32) // salt
	h.DomainID = [16]byte(f.take(16))
	f.reserved(segHeaderSize - 4 - 96)
	f.take(4)
	f.rule(1 <= h.Class && h.Class <= 6, 12, "a known class", "%d", h.Class)
	return h, f.end()
}

// segFooter is the last 256 bytes of a sealed segment.
type segFooter struct {
	Class       uint8      `json:"class"`
	Codecs      uint8      `json:"codecs"` // a bit for each
	StoreID     block.UUID `json:"-"`
	ID          uint64     `json:"id"`
	Generation  uint32     `json:"generation"`
	Frames      uint32     `json:"frames"`
	Chunks      uint32     `json:"chunks"`
	DirOff      uint32     `json:"directoryOffset"`
	DirLen      uint32     `json:"directoryLength"`
	DirCRC      uint32     `json:"directoryCrc"`
	RawBytes    uint64     `json:"rawBytes"`
	StoredBytes uint64     `json:"storedBytes"`
	SealEpoch   uint64     `json:"sealEpoch"`
	DataCRC     uint32     `json:"dataCrc"`
}

// parseSegFooter parses the footer of a segment of size bytes. Offsets of faults are in the segment.
func parseSegFooter(b []byte, size int64) (*segFooter, error) {
	f := &fields{b: b}
	f.rule(len(b) == segFooterSize, 0, "a footer of 256 B", "%d B", len(b))
	f.magic("HNSEGFTR")
	if f.err == nil {
		f.err = checkSum(segFooterSize-4, crc(b[:segFooterSize-4]), binary.LittleEndian.Uint32(b[segFooterSize-4:]))
	}
	f.version(4)
	t := &segFooter{Class: f.u8(), Codecs: f.u8()}
	f.reserved(2)
	t.StoreID, t.ID, t.Generation = block.UUID(f.take(16)), f.u64(), f.u32()
	t.Frames, t.Chunks, t.DirOff, t.DirLen, t.DirCRC = f.u32(), f.u32(), f.u32(), f.u32(), f.u32()
	t.RawBytes, t.StoredBytes, t.SealEpoch, t.DataCRC = f.u64(), f.u64(), f.u64(), f.u32()
	f.reserved(segFooterSize - 4 - 92)
	f.take(4)
	f.rule(t.Codecs < 8, 13, "known codecs", "%02x", t.Codecs)
	dirEnd := int64(t.DirOff) + int64(t.DirLen)
	f.rule(t.DirOff >= segHeaderSize && dirEnd <= size-segFooterSize, 52, "a directory between header and footer", "%d+%d in %d B", t.DirOff, t.DirLen, size)
	f.rule(uint64(t.DirLen) == uint64(t.Frames)*dirFrameSize+uint64(t.Chunks)*dirChunkSize, 56, "a directory as long as its counts say", "%d B, %d frames, %d chunks", t.DirLen, t.Frames, t.Chunks)
	if err := f.end(); err != nil {
		e := asFault(err)
		e.off += size - segFooterSize
		return t, &e
	}
	return t, nil
}

// dirFrame is a frame as the directory has it.
type dirFrame struct {
	Off, Len, RawLen uint32
	Chunks           []dirChunk
}

type dirChunk struct {
	ID     uint64
	Hash   [16]byte
	RawLen uint32
}

// parseDirectory parses a directory that lies at base in its segment.
func parseDirectory(b []byte, base int64) ([]dirFrame, error) {
	f := &fields{b: b}
	var all []dirFrame
	for f.err == nil && f.at < len(b) {
		at := f.at
		e := dirFrame{Off: f.u32(), Len: f.u32(), RawLen: f.u32()}
		n := int(f.u32())
		f.rule(1 <= n && n <= frameMaxChunks, at+12, "1 to 8192 chunks", "%d", n)
		for i := 0; i < n && f.err == nil; i++ {
			e.Chunks = append(e.Chunks, dirChunk{ID: f.u64(), Hash: [16]byte(f.take(16)), RawLen: f.u32()})
			f.reserved(4)
		}
		all = append(all, e)
	}
	if f.err != nil {
		e := asFault(f.err)
		e.off += base
		return nil, &e
	}
	return all, nil
}

// compare says what of a directory entry is not as the frame at off is.
func (e *dirFrame) compare(off uint32, fr *frame) error {
	if e.Off != off || e.Len != fr.Size || e.RawLen != fr.RawLen || len(e.Chunks) != len(fr.Chunks) {
		return faultf(0, fmt.Sprintf("frame at %d, %d B, %d B raw, %d chunks", off, fr.Size, fr.RawLen, len(fr.Chunks)), "%d, %d, %d, %d", e.Off, e.Len, e.RawLen, len(e.Chunks))
	}
	for i, c := range fr.Chunks {
		if d := e.Chunks[i]; d.ID != c.ID || d.Hash != [16]byte(c.Hash[:16]) || d.RawLen != c.RawLen {
			return faultf(0, fmt.Sprintf("chunk %d, %d B, %x", c.ID, c.RawLen, c.Hash[:16]), "%d, %d, %x", d.ID, d.RawLen, d.Hash)
		}
	}
	return nil
}
