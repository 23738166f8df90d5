package segment

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
)

// These constants are part of the disk format and should not be changed.
const (
	// FrameRawTarget is the raw size at which a frame of the warm class is closed, in bytes. It is advice to whoever packs frames.
	FrameRawTarget = 16 << 10
	// ColdFrameRawTarget is the same of the cold class.
	ColdFrameRawTarget = 1 << 20
	// DenseFrameRawTarget is the same where small counts more than what a read of cold data costs: all that a frame may hold, but for a chunk.
	DenseFrameRawTarget = MaxFrameRaw - 64<<10
	// MaxFrameRaw bounds the raw bytes of a frame.
	MaxFrameRaw = 4 << 20
	// MaxFrameChunks bounds the chunks of a frame.
	MaxFrameChunks = 8192

	frameMagic      = 0x4d524648 // "HFRM"
	frameVersion    = 1
	frameHeaderSize = 64
	chunkEntrySize  = 48
	// maxFrameSize bounds a stored frame: a payload is never longer than the raw bytes.
	maxFrameSize = frameHeaderSize + MaxFrameChunks*chunkEntrySize + MaxFrameRaw
)

// Offsets in a frame header (docs/format/frame.md).
const (
	fhMagic      = 0
	fhVersion    = 4
	fhCodec      = 5
	fhFlags      = 6 // u16, zero
	fhChunks     = 8
	fhRaw        = 12
	fhPayload    = 16
	fhPayloadCRC = 20
	fhTableCRC   = 24
	fhKeyID      = 28 // 0, and zeroes up to the checksum, of a frame that is not encrypted
	fhNonce      = 32
	fhTag        = 44
	fhCRC        = 60
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Chunk is one chunk that goes into a frame.
type Chunk struct {
	ID   block.ChunkID
	Hash block.Hash
	Raw  []byte // borrowed until EncodeFrame returns; 1 B to MaxFrameRaw
}

// FrameChunk is one chunk that a frame holds.
type FrameChunk struct {
	ID             block.ChunkID
	Hash           block.Hash
	RawOff, RawLen uint32 // bytes in the decoded frame
}

// FrameTakes reports whether a frame of a class with this target that holds raw bytes should take one more chunk of next bytes, or be closed before it: at
// most half the target more than the target, and never more than a frame holds, unless a single chunk is larger. A 4 KiB read pays for the whole frame, so that a small chunk in front of
// a large one is better off alone.
func FrameTakes(target, raw, next int) bool {
	return raw == 0 || raw < target && raw+next <= min(target*3/2, MaxFrameRaw)
}

// EncodeFrame appends one frame with the given chunks to dst and returns it. The payload is stored raw when compression would save less than
// 5 % or a probe says that it is not worth trying. No chunks, an empty chunk, or more than fits a frame is block.ErrInvalid. With dst and enc
// at their working size it does not allocate.
func EncodeFrame(dst []byte, chunks []Chunk, codec Codec, enc *Encoder) ([]byte, error) {
	total := 0
	for i := range chunks {
		n := len(chunks[i].Raw)
		if n == 0 || n > MaxFrameRaw-total {
			return nil, fmt.Errorf("frame with a chunk of %d B after %d B: %w", n, total, block.ErrInvalid)
		}
		total += n
	}
	if len(chunks) == 0 || len(chunks) > MaxFrameChunks {
		return nil, fmt.Errorf("frame of %d chunks: %w", len(chunks), block.ErrInvalid)
	}
	at, tableLen := len(dst), len(chunks)*chunkEntrySize
	dst = grow(dst, frameHeaderSize+tableLen+total+total/8+64)
	dst = dst[:at+frameHeaderSize+tableLen]
	putChunks(dst[at+frameHeaderSize:], chunks)

	payloadAt := len(dst)
	dst, codec, err := enc.compress(dst, enc.join(chunks), codec)
	if err != nil {
		return nil, err
	}
	h, table, payload := dst[at:at+frameHeaderSize], dst[at+frameHeaderSize:payloadAt], dst[payloadAt:]
	le := binary.LittleEndian
	clear(h)
	le.PutUint32(h[fhMagic:], frameMagic)
	h[fhVersion], h[fhCodec] = frameVersion, byte(codec)
	le.PutUint32(h[fhChunks:], uint32(len(chunks)))
	le.PutUint32(h[fhRaw:], uint32(total))
	le.PutUint32(h[fhPayload:], uint32(len(payload)))
	le.PutUint32(h[fhPayloadCRC:], crc32.Checksum(payload, castagnoli))
	le.PutUint32(h[fhTableCRC:], crc32.Checksum(table, castagnoli))
	le.PutUint32(h[fhCRC:], crc32.Checksum(h[:fhCRC], castagnoli))
	return dst, nil
}

func putChunks(table []byte, chunks []Chunk) {
	le := binary.LittleEndian
	for i := range chunks {
		e := table[i*chunkEntrySize:][:chunkEntrySize]
		copy(e, chunks[i].Hash[:])
		le.PutUint64(e[32:], uint64(chunks[i].ID))
		le.PutUint32(e[40:], uint32(len(chunks[i].Raw)))
		le.PutUint32(e[44:], 0)
	}
}

// join returns the raw bytes of a frame in one piece.
func (e *Encoder) join(chunks []Chunk) []byte {
	if len(chunks) == 1 {
		return chunks[0].Raw
	}
	e.raw = e.raw[:0]
	for i := range chunks {
		e.raw = append(e.raw, chunks[i].Raw...)
	}
	return e.raw
}

// Frame is a parsed frame. It borrows the bytes that it was parsed from.
type Frame struct {
	Codec  Codec
	RawLen uint32 // bytes after Decode
	Size   uint32 // bytes of the whole frame as stored
	KeyID  uint32 // of the master key that its payload is sealed under until it is opened; 0 if it is not

	head    []byte // header and table
	table   []byte
	payload []byte
}

// FrameSize returns the stored size of the frame whose first 64 bytes are in b, from its header alone, which is checked.
func FrameSize(b []byte) (uint32, error) {
	f, err := parseHeader(b)
	return f.Size, err
}

// ParseFrame checks the frame that b starts with: header, bounds, chunk table and the three checksums. Bytes behind the frame are ignored.
// Every failure matches block.ErrCorrupt, but an unknown version, which is block.ErrVersion. It does not allocate on success.
func ParseFrame(b []byte) (Frame, error) {
	f, err := parseHeader(b)
	if err != nil {
		return Frame{}, err
	}
	if uint64(f.Size) > uint64(len(b)) {
		return Frame{}, corruptFrame(fhPayload, fmt.Sprintf("%d B", f.Size), fmt.Sprintf("%d B", len(b)))
	}
	le := binary.LittleEndian
	tableEnd := frameHeaderSize + int(le.Uint32(b[fhChunks:]))*chunkEntrySize
	f.head = b[:tableEnd:tableEnd]
	f.table, f.payload = b[frameHeaderSize:tableEnd:tableEnd], b[tableEnd:f.Size:f.Size]
	if want, got := le.Uint32(b[fhTableCRC:]), crc32.Checksum(f.table, castagnoli); got != want {
		return Frame{}, corruptFrame(frameHeaderSize, crcText(want), crcText(got))
	}
	if want, got := le.Uint32(b[fhPayloadCRC:]), crc32.Checksum(f.payload, castagnoli); got != want {
		return Frame{}, corruptFrame(int64(tableEnd), crcText(want), crcText(got))
	}
	return f, f.checkTable()
}

// parseHeader checks a header and fills in all but table and payload.
func parseHeader(b []byte) (f Frame, err error) {
	if len(b) < frameHeaderSize {
		return f, corruptFrame(0, "a frame header", fmt.Sprintf("%d B", len(b)))
	}
	le := binary.LittleEndian
	if got := le.Uint32(b); got != frameMagic {
		return f, corruptFrame(fhMagic, "frame magic", fmt.Sprintf("%08x", got))
	}
	if want, got := le.Uint32(b[fhCRC:]), crc32.Checksum(b[:fhCRC], castagnoli); got != want {
		return f, corruptFrame(fhCRC, crcText(want), crcText(got))
	}
	if b[fhVersion] != frameVersion {
		return f, fmt.Errorf("frame version %d: %w", b[fhVersion], block.ErrVersion)
	}
	chunks, raw, payload := le.Uint32(b[fhChunks:]), le.Uint32(b[fhRaw:]), le.Uint32(b[fhPayload:])
	f.Codec, f.RawLen, f.KeyID = Codec(b[fhCodec]), raw, le.Uint32(b[fhKeyID:])
	switch {
	case f.Codec > Zstd:
		return f, corruptFrame(fhCodec, "a known codec", f.Codec.String())
	case le.Uint16(b[fhFlags:]) != 0:
		return f, corruptFrame(fhFlags, "no flags", fmt.Sprintf("%04x", le.Uint16(b[fhFlags:])))
	case chunks == 0 || chunks > MaxFrameChunks:
		return f, corruptFrame(fhChunks, "1 to 8192 chunks", fmt.Sprint(chunks))
	case raw < chunks || raw > MaxFrameRaw:
		return f, corruptFrame(fhRaw, "at most 4 MiB raw", fmt.Sprint(raw))
	case payload == 0 || payload > raw || f.Codec == None && payload != raw:
		return f, corruptFrame(fhPayload, "a payload no longer than its raw bytes", fmt.Sprint(payload))
	case f.KeyID == 0 && !isZero(b[fhNonce:fhCRC]):
		return f, corruptFrame(fhNonce, "zeroes in reserved bytes", fmt.Sprintf("%x", b[fhNonce:fhCRC]))
	}
	f.Size = frameHeaderSize + chunks*chunkEntrySize + payload
	return f, nil
}

// checkTable checks that the chunks' lengths add up to the raw length and that their reserved bytes are zero.
func (f *Frame) checkTable() error {
	le := binary.LittleEndian
	sum := uint64(0)
	for at := 0; at < len(f.table); at += chunkEntrySize {
		n, reserved := le.Uint32(f.table[at+40:]), le.Uint32(f.table[at+44:])
		if n == 0 || reserved != 0 {
			return corruptFrame(int64(frameHeaderSize+at+40), "a length and zeroes", fmt.Sprintf("%d, %08x", n, reserved))
		}
		sum += uint64(n)
	}
	if sum != uint64(f.RawLen) {
		return corruptFrame(frameHeaderSize, fmt.Sprintf("chunks of %d B together", f.RawLen), fmt.Sprint(sum))
	}
	return nil
}

// NumChunks returns how many chunks the frame holds.
func (f *Frame) NumChunks() int { return len(f.table) / chunkEntrySize }

// Chunks appends the frame's chunk table to dst and returns it.
func (f *Frame) Chunks(dst []FrameChunk) []FrameChunk {
	le := binary.LittleEndian
	off := uint32(0)
	for at := 0; at < len(f.table); at += chunkEntrySize {
		e := f.table[at : at+chunkEntrySize]
		c := FrameChunk{ID: block.ChunkID(le.Uint64(e[32:])), Hash: block.Hash(e[:32]), RawOff: off, RawLen: le.Uint32(e[40:])}
		off += c.RawLen
		dst = append(dst, c)
	}
	return dst
}

// Decode returns the raw bytes of all chunks, one after the other, in dst's memory if that is large enough and never in the frame's. It
// allocates at most RawLen bytes. A payload that does not decode to RawLen bytes is block.ErrCorrupt. A sealed frame must be opened first: keyring.ErrNoKey.
func (f *Frame) Decode(dst []byte, dec *Decoder) ([]byte, error) {
	if uint64(cap(dst)) < uint64(f.RawLen) {
		dst = make([]byte, f.RawLen)
	}
	dst = dst[:f.RawLen]
	if f.KeyID != 0 {
		return nil, fmt.Errorf("decode a frame that is sealed under key %d: %w", f.KeyID, keyring.ErrNoKey)
	}
	if err := dec.decompress(dst, f.payload, f.Codec); err != nil {
		return nil, corruptFrame(int64(frameHeaderSize+len(f.table)), fmt.Sprintf("%d B of %v", f.RawLen, f.Codec), err.Error())
	}
	return dst, nil
}

func corruptFrame(off int64, want, got string) error {
	return &block.CorruptError{Source: "frame", Offset: off, Want: want, Got: got}
}

func crcText(crc uint32) string { return fmt.Sprintf("crc %08x", crc) }

func isZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}
