package segment

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// These constants are part of the disk format and should not be changed.
const (
	footerSize  = 256
	footerMagic = "HNSEGFTR"
)

// Offsets in a footer (docs/format/segment.md).
const (
	sfVersion    = 8
	sfClass      = 12
	sfCodecs     = 13 // bit per codec, then 2 B zero
	sfStore      = 16
	sfID         = 32
	sfGeneration = 40
	sfFrames     = 44
	sfChunks     = 48
	sfDirOff     = 52
	sfDirLen     = 56
	sfDirCRC     = 60
	sfRaw        = 64
	sfStored     = 72
	sfSealEpoch  = 80
	sfDataCRC    = 88
	sfReserved   = 92 // root hash 32 B, parity k, m, shard, 0, shard size u32, shard hashes 64 B, zero up to the checksum
	sfCRC        = footerSize - 4
)

// Footer is the last 256 bytes of a sealed segment.
type Footer struct {
	Meta
	Codecs      uint8 // bit c is set when a frame has Codec c
	Frames      uint32
	Chunks      uint32
	DirOff      uint32 // bytes into the segment; the frames end there
	DirLen      uint32 // bytes
	DirCRC      uint32 // CRC32C of the directory
	RawBytes    uint64 // of all chunks
	StoredBytes uint64 // of all frames, as stored
	DataCRC     uint32 // CRC32C of header and frames: all bytes before the directory

	fileSize int64 // not stored: where the footer was found, or put
}

// FileSize returns the length of the segment in bytes: its footer ends there.
func (f *Footer) FileSize() uint64 { return uint64(f.fileSize) }

func appendFooter(dst []byte, f *Footer) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, footerSize)...)
	b, le := dst[at:], binary.LittleEndian
	copy(b, footerMagic)
	le.PutUint32(b[sfVersion:], segmentVersion)
	b[sfClass], b[sfCodecs] = byte(f.Class), f.Codecs
	copy(b[sfStore:], f.StoreID[:])
	le.PutUint64(b[sfID:], uint64(f.ID))
	le.PutUint32(b[sfGeneration:], f.Generation)
	le.PutUint32(b[sfFrames:], f.Frames)
	le.PutUint32(b[sfChunks:], f.Chunks)
	le.PutUint32(b[sfDirOff:], f.DirOff)
	le.PutUint32(b[sfDirLen:], f.DirLen)
	le.PutUint32(b[sfDirCRC:], f.DirCRC)
	le.PutUint64(b[sfRaw:], f.RawBytes)
	le.PutUint64(b[sfStored:], f.StoredBytes)
	le.PutUint64(b[sfSealEpoch:], f.SealEpoch)
	le.PutUint32(b[sfDataCRC:], f.DataCRC)
	le.PutUint32(b[sfCRC:], crc32.Checksum(b[:sfCRC], castagnoli))
	return dst
}

// parseFooter decodes and checks a footer that ends a segment of size bytes. Key id, salt and domain id are in the header only.
func parseFooter(b []byte, size int64) (Footer, error) {
	bad := func(off int64, want, got string) (Footer, error) {
		return Footer{}, &block.CorruptError{Source: "segment footer", Offset: size - footerSize + off, Want: want, Got: got}
	}
	le := binary.LittleEndian
	if string(b[:8]) != footerMagic {
		return bad(0, footerMagic, fmt.Sprintf("%q", b[:8]))
	}
	if want, got := le.Uint32(b[sfCRC:]), crc32.Checksum(b[:sfCRC], castagnoli); got != want {
		return bad(sfCRC, crcText(want), crcText(got))
	}
	if v := le.Uint32(b[sfVersion:]); v != segmentVersion {
		return Footer{}, fmt.Errorf("segment version %d: %w", v, block.ErrVersion)
	}
	f := Footer{
		Meta: Meta{StoreID: block.UUID(b[sfStore : sfStore+16]), ID: block.SegmentID(le.Uint64(b[sfID:])), Generation: le.Uint32(b[sfGeneration:]),
			Class: Class(b[sfClass]), SealEpoch: le.Uint64(b[sfSealEpoch:])},
		Codecs: b[sfCodecs], Frames: le.Uint32(b[sfFrames:]), Chunks: le.Uint32(b[sfChunks:]),
		DirOff: le.Uint32(b[sfDirOff:]), DirLen: le.Uint32(b[sfDirLen:]), DirCRC: le.Uint32(b[sfDirCRC:]),
		RawBytes: le.Uint64(b[sfRaw:]), StoredBytes: le.Uint64(b[sfStored:]), DataCRC: le.Uint32(b[sfDataCRC:]),
		fileSize: size,
	}
	switch {
	case !f.Class.valid() || f.Codecs >= 1<<(Zstd+1):
		return bad(sfClass, "a known class and codecs", fmt.Sprintf("%v, codecs %02x", f.Class, f.Codecs))
	case int64(f.DirOff) < HeaderSize || int64(f.DirOff)+int64(f.DirLen) > size-footerSize:
		return bad(sfDirOff, "a directory between frames and footer", fmt.Sprintf("%d+%d B", f.DirOff, f.DirLen))
	case uint64(f.DirLen) != uint64(f.Frames)*dirFrameSize+uint64(f.Chunks)*dirChunkSize || f.Chunks < f.Frames:
		return bad(sfFrames, fmt.Sprintf("counts that need a directory of %d B", f.DirLen), fmt.Sprintf("%d frames, %d chunks", f.Frames, f.Chunks))
	case f.StoredBytes != uint64(f.DirOff-HeaderSize):
		return bad(sfStored, fmt.Sprintf("%d B of frames", f.DirOff-HeaderSize), fmt.Sprint(f.StoredBytes))
	case f.RawBytes > uint64(f.Frames)*MaxFrameRaw:
		return bad(sfRaw, "at most 4 MiB raw a frame", fmt.Sprint(f.RawBytes))
	case !isZero(b[sfCodecs+1:sfStore]) || !isZero(b[sfReserved:sfCRC]):
		return bad(sfReserved, "zeroes in reserved bytes", "other bytes")
	}
	return f, nil
}

// ReadFooter reads and checks the footer of a sealed segment of size bytes. An open segment has none and gives block.ErrCorrupt.
func ReadFooter(r io.ReaderAt, size int64) (Footer, error) {
	if size < HeaderSize+footerSize || size > SegmentSize {
		return Footer{}, &block.CorruptError{Source: "segment footer", Want: "a segment of at most 64 MiB", Got: fmt.Sprintf("%d B", size)}
	}
	b := make([]byte, footerSize)
	if err := readAt(r, b, size-footerSize); err != nil {
		return Footer{}, fmt.Errorf("read segment footer: %w", err)
	}
	return parseFooter(b, size)
}
