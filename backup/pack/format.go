package pack

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// These constants are part of the repository format and should not be changed.
const (
	headerSize  = 64
	trailerSize = 32
	version     = 1

	// TargetSize is where a pack is closed, bytes.
	TargetSize = 16 << 20
	// MaxSize bounds a pack, bytes.
	MaxSize = 64 << 20
	// FrameRaw is where a frame is closed, in bytes before compression. It is advice to whoever packs frames.
	FrameRaw = 2 << 20
	// MaxFrameRaw bounds a frame before compression.
	MaxFrameRaw = 1<<20 + MaxChunk
	// MaxChunk bounds a chunk, bytes.
	MaxChunk = 4 << 20

	maxChunks = MaxSize / 64 // of a pack; each costs 36 B of directory
	maxFrames = 1 << 16
)

var (
	headerMagic  = [8]byte{'H', 'V', 'P', 'A', 'C', 'K', '1', 0}
	trailerMagic = [8]byte{'H', 'V', 'P', 'A', 'C', 'K', 'E', 0}
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
)

// Chunk is one chunk as a directory lists it.
type Chunk struct {
	ID  block.Hash
	Raw uint32 // bytes
}

// Frame is one frame as a directory lists it.
type Frame struct {
	Off    uint32 // of its sealed bytes in the pack
	Len    uint32 // of its sealed bytes
	Raw    uint32 // bytes of all its chunks
	Chunks []Chunk
}

// Header is what a pack begins with.
type Header struct {
	Repository block.UUID
	Salt       seal.Salt
	Wrapped    []byte // the key of the session
}

// HeaderSize is how many bytes the header of a pack has at most, with the wrapped key.
const HeaderSize = headerSize + seal.MaxWrapped

func (h *Header) encode() []byte {
	b := make([]byte, headerSize, headerSize+len(h.Wrapped))
	copy(b, headerMagic[:])
	binary.LittleEndian.PutUint16(b[8:], version)
	binary.LittleEndian.PutUint16(b[10:], uint16(len(h.Wrapped)))
	copy(b[12:28], h.Repository[:])
	copy(b[28:60], h.Salt[:])
	b = append(b, h.Wrapped...)
	binary.LittleEndian.PutUint32(b[60:], headerSum(b))
	return b
}

// headerSum covers the header but its sum, and the wrapped key.
func headerSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:60], castagnoli), castagnoli, b[headerSize:])
}

func damaged(off int, want, got string) error {
	return &block.CorruptError{Source: "pack", Offset: int64(off), Want: want, Got: got}
}

// DecodeHeader reads the header of a pack from its first bytes, HeaderSize of them or all there are. Damage is block.ErrCorrupt, a newer format block.ErrVersion.
func DecodeHeader(b []byte, repository block.UUID) (*Header, error) {
	if len(b) < headerSize || [8]byte(b[:8]) != headerMagic {
		return nil, damaged(0, "the magic of a pack", "other bytes")
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != version {
		return nil, fmt.Errorf("pack of version %d: %w", v, block.ErrVersion)
	}
	n := int(binary.LittleEndian.Uint16(b[10:]))
	if n == 0 || n > seal.MaxWrapped || headerSize+n > len(b) {
		return nil, damaged(10, "the length of a wrapped key", fmt.Sprint(n))
	}
	h := &Header{Repository: block.UUID(b[12:28]), Salt: seal.Salt(b[28:60]), Wrapped: append([]byte(nil), b[headerSize:headerSize+n]...)}
	if sum := headerSum(b[:headerSize+n]); sum != binary.LittleEndian.Uint32(b[60:]) {
		return nil, damaged(60, "the sum of the header", fmt.Sprintf("%08x", sum))
	}
	if h.Repository != repository {
		return nil, damaged(12, "repository "+repository.String(), h.Repository.String())
	}
	return h, nil
}

// Size is how many bytes the header has with the wrapped key: where the first frame begins.
func (h *Header) Size() int { return headerSize + len(h.Wrapped) }

// Trailer is what a pack ends with.
type Trailer struct {
	DirectoryLen uint32 // sealed; it ends where the trailer begins
	Frames       uint32
	Size         uint64 // of the whole pack, bytes
}

// TrailerSize is how many bytes the trailer of a pack has.
const TrailerSize = trailerSize

func (t *Trailer) encode() []byte {
	b := make([]byte, trailerSize)
	copy(b, trailerMagic[:])
	binary.LittleEndian.PutUint32(b[8:], t.DirectoryLen)
	binary.LittleEndian.PutUint32(b[12:], t.Frames)
	binary.LittleEndian.PutUint64(b[16:], t.Size)
	binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
	return b
}

// DecodeTrailer reads the last TrailerSize bytes of a pack of that size.
func DecodeTrailer(b []byte, size int64) (*Trailer, error) {
	at := int(size) - trailerSize
	if len(b) != trailerSize || [8]byte(b[:8]) != trailerMagic {
		return nil, damaged(at, "the magic of a trailer", "other bytes")
	}
	if sum := crc32.Checksum(b[:28], castagnoli); sum != binary.LittleEndian.Uint32(b[28:]) || binary.LittleEndian.Uint32(b[24:]) != 0 {
		return nil, damaged(at+28, "the sum of the trailer", fmt.Sprintf("%08x", sum))
	}
	t := &Trailer{DirectoryLen: binary.LittleEndian.Uint32(b[8:]), Frames: binary.LittleEndian.Uint32(b[12:]), Size: binary.LittleEndian.Uint64(b[16:])}
	switch {
	case t.Size != uint64(size) || size > MaxSize:
		return nil, damaged(at+16, fmt.Sprintf("its size, %d B", size), fmt.Sprint(t.Size))
	case t.DirectoryLen < seal.Overhead || int64(t.DirectoryLen) > size-headerSize-trailerSize:
		return nil, damaged(at+8, "the length of a directory", fmt.Sprint(t.DirectoryLen))
	case t.Frames == 0 || t.Frames > maxFrames:
		return nil, damaged(at+12, "a number of frames", fmt.Sprint(t.Frames))
	}
	return t, nil
}

// chunkEntry and frameEntry are the bytes of one entry of a directory.
const (
	chunkEntry = 36
	frameEntry = 12
)

// AppendDirectory appends the encoded list of frames, which is also how index runs list them.
func AppendDirectory(b []byte, frames []Frame) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frames)))
	for i := range frames {
		f := &frames[i]
		b = binary.LittleEndian.AppendUint32(b, f.Len)
		b = binary.LittleEndian.AppendUint32(b, f.Raw)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Chunks)))
		for j := range f.Chunks {
			b = append(b, f.Chunks[j].ID[:]...)
			b = binary.LittleEndian.AppendUint32(b, f.Chunks[j].Raw)
		}
	}
	return b
}

// DecodeDirectory reads a list of frames of which the first lies at offset first of a pack, and returns what follows it. Every number is checked.
func DecodeDirectory(b []byte, first int) (frames []Frame, rest []byte, err error) {
	d := decoder{b: b}
	n := d.u32()
	if n == 0 || n > maxFrames || int(n) > len(b)/frameEntry {
		return nil, nil, damaged(0, "a number of frames", fmt.Sprint(n))
	}
	frames = make([]Frame, n)
	off := uint64(first)
	chunks := 0
	for i := range frames {
		f := &frames[i]
		f.Off, f.Len, f.Raw = uint32(off), d.u32(), d.u32()
		count := d.u32()
		if off += uint64(f.Len); f.Len <= seal.Overhead || off > MaxSize || f.Raw > MaxFrameRaw {
			return nil, nil, damaged(d.at, "the lengths of a frame", fmt.Sprintf("%d and %d B", f.Len, f.Raw))
		}
		if chunks += int(min(count, maxChunks+1)); count == 0 || chunks > maxChunks || int(count) > len(d.b)/chunkEntry {
			return nil, nil, damaged(d.at, "a number of chunks", fmt.Sprint(count))
		}
		f.Chunks = make([]Chunk, count)
		raw := uint64(0)
		for j := range f.Chunks {
			c := &f.Chunks[j]
			copy(c.ID[:], d.next(32))
			c.Raw = d.u32()
			if raw += uint64(c.Raw); c.Raw == 0 || c.Raw > MaxChunk || raw > uint64(f.Raw) {
				return nil, nil, damaged(d.at, "the length of a chunk", fmt.Sprint(c.Raw))
			}
		}
		if raw != uint64(f.Raw) {
			return nil, nil, damaged(d.at, fmt.Sprintf("chunks of %d B", f.Raw), fmt.Sprint(raw))
		}
	}
	if d.short {
		return nil, nil, damaged(d.at, "the rest of a directory", "its end")
	}
	return frames, d.b, nil
}

// decoder takes numbers off the front of b. At its end it returns zeroes and says so.
type decoder struct {
	b     []byte
	at    int
	short bool
}

func (d *decoder) next(n int) []byte {
	if len(d.b) < n {
		d.short, d.b = true, nil
		return make([]byte, n)
	}
	p := d.b[:n]
	d.b, d.at = d.b[n:], d.at+n
	return p
}

func (d *decoder) u32() uint32 { return binary.LittleEndian.Uint32(d.next(4)) }
