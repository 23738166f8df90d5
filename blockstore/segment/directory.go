package segment

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Sizes of the directory's entries. They are part of the disk format.
const (
	dirFrameSize = 16 // offset u32, stored length u32, raw length u32, chunks u32
	dirChunkSize = 32 // id u64, hash 16 B, raw length u32, zero u32
)

// DirFrame is a frame in a segment's directory.
type DirFrame struct {
	Off, Len uint32 // bytes of the stored frame
	RawLen   uint32 // bytes decoded
	Chunks   []DirChunk
}

// DirChunk is a chunk in a segment's directory. Its bytes start where the chunk before it in the frame ends.
type DirChunk struct {
	ID     block.ChunkID
	Hash   [16]byte // the first half of the chunk's hash
	RawLen uint32   // bytes
}

// appendDirFrame appends the directory entry of a frame that was stored at off.
func appendDirFrame(dst []byte, off uint32, f *Frame) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, off)
	dst = le.AppendUint32(dst, f.Size)
	dst = le.AppendUint32(dst, f.RawLen)
	dst = le.AppendUint32(dst, uint32(f.NumChunks()))
	for at := 0; at < len(f.table); at += chunkEntrySize {
		e := f.table[at : at+chunkEntrySize]
		dst = append(dst, e[32:40]...)
		dst = append(dst, e[:16]...)
		dst = append(dst, e[40:44]...)
		dst = append(dst, 0, 0, 0, 0)
	}
	return dst
}

// ReadDirectory reads and checks the directory that f points to: its checksum, and that the frames follow one another from the header to
// the directory without a gap. It allocates about twice f.DirLen, which ReadFooter has bounded by the segment's size.
func ReadDirectory(r io.ReaderAt, f *Footer) ([]DirFrame, error) {
	b := make([]byte, f.DirLen)
	if err := readAt(r, b, int64(f.DirOff)); err != nil {
		return nil, fmt.Errorf("read directory of %v: %w", &f.Meta, err)
	}
	if got := crc32.Checksum(b, castagnoli); got != f.DirCRC {
		return nil, f.corrupt(int64(f.DirOff), crcText(f.DirCRC), crcText(got))
	}
	return parseDirectory(b, f)
}

func parseDirectory(b []byte, f *Footer) ([]DirFrame, error) {
	frames := make([]DirFrame, 0, f.Frames)
	chunks := make([]DirChunk, 0, f.Chunks)
	le := binary.LittleEndian
	next, raw := uint64(HeaderSize), uint64(0)
	for at := 0; at < len(b); {
		if len(b)-at < dirFrameSize {
			return nil, f.corrupt(int64(f.DirOff)+int64(at), "a whole entry", fmt.Sprintf("%d B", len(b)-at))
		}
		e := DirFrame{Off: le.Uint32(b[at:]), Len: le.Uint32(b[at+4:]), RawLen: le.Uint32(b[at+8:])}
		n := int64(le.Uint32(b[at+12:]))
		if uint64(e.Off) != next || n == 0 || n > MaxFrameChunks || n > int64(len(b)-at-dirFrameSize)/dirChunkSize {
			return nil, f.corrupt(int64(f.DirOff)+int64(at), fmt.Sprintf("a frame at %d", next), fmt.Sprintf("one at %d with %d chunks", e.Off, n))
		}
		first := len(chunks)
		var sum uint64
		chunks, sum = appendDirChunks(chunks, b[at+dirFrameSize:][:n*dirChunkSize])
		e.Chunks = chunks[first:len(chunks):len(chunks)]
		if sum != uint64(e.RawLen) || sum > MaxFrameRaw || e.Len <= frameHeaderSize+uint32(n)*chunkEntrySize || e.Len > maxFrameSize {
			return nil, f.corrupt(int64(f.DirOff)+int64(at)+8, fmt.Sprintf("chunks of %d B, reserved bytes zero", e.RawLen), fmt.Sprintf("%d B in %d B stored", sum, e.Len))
		}
		frames = append(frames, e)
		next, raw = next+uint64(e.Len), raw+sum
		at += dirFrameSize + int(n)*dirChunkSize
	}
	if len(frames) != int(f.Frames) || len(chunks) != int(f.Chunks) || next != uint64(f.DirOff) || raw != f.RawBytes {
		return nil, f.corrupt(int64(f.DirOff), fmt.Sprintf("%d frames, %d chunks, %d B raw up to %d", f.Frames, f.Chunks, f.RawBytes, f.DirOff),
			fmt.Sprintf("%d, %d, %d up to %d", len(frames), len(chunks), raw, next))
	}
	return frames, nil
}

// appendDirChunks decodes entries and adds up their lengths; an impossible entry gives an impossible sum.
func appendDirChunks(dst []DirChunk, b []byte) ([]DirChunk, uint64) {
	le := binary.LittleEndian
	sum := uint64(0)
	for ; len(b) > 0; b = b[dirChunkSize:] {
		c := DirChunk{ID: block.ChunkID(le.Uint64(b)), Hash: [16]byte(b[8:24]), RawLen: le.Uint32(b[24:])}
		if c.RawLen == 0 || le.Uint32(b[28:]) != 0 {
			sum = 1 << 40
		}
		sum += uint64(c.RawLen)
		dst = append(dst, c)
	}
	return dst, sum
}
