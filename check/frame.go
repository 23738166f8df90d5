package check

import (
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// docs/format/frame.md
const (
	frameMagic     = "HFRM"
	frameHeader    = 64
	frameChunkSize = 48
	frameMaxRaw    = 4 << 20
	frameMaxChunks = 8192
	codecNone      = 0
	codecS2        = 1
	codecZstd      = 2
)

// frameChunk is an entry of a frame's table. RawOff is in the decoded frame.
type frameChunk struct {
	ID     uint64
	Hash   [32]byte
	RawOff uint32
	RawLen uint32
}

// frame is a parsed frame.
type frame struct {
	Codec   uint8
	RawLen  uint32
	Size    uint32 // as stored
	KeyID   uint32 // of a sealed frame: its payload must be opened before it is decoded
	Chunks  []frameChunk
	head    []byte // header and chunk table, lent
	payload []byte
}

// parseFrame parses the frame that b begins with. Without an error about its header, Size is set even when another error is returned.
func parseFrame(b []byte) (*frame, error) {
	f := &fields{b: b[:min(len(b), frameHeader)]}
	f.magic(frameMagic)
	if f.err == nil && len(b) >= frameHeader {
		f.err = checkSum(60, crc(b[:60]), binary.LittleEndian.Uint32(b[60:]))
	}
	f.version(1)
	fr := &frame{Codec: f.u8()}
	f.reserved(2)
	chunks, raw, payload := f.u32(), f.u32(), f.u32()
	payloadSum, tableSum := f.u32(), f.u32()
	if fr.KeyID = f.u32(); fr.KeyID != 0 {
		f.take(28) // nonce, tag
	} else {
		f.reserved(28)
	}
	f.take(4)
	f.rule(fr.Codec <= codecZstd, 5, "a known codec", "%d", fr.Codec)
	f.rule(1 <= chunks && chunks <= frameMaxChunks, 8, "1 to 8192 chunks", "%d", chunks)
	f.rule(chunks <= raw && raw <= frameMaxRaw, 12, "at most 4 MiB raw", "%d", raw)
	f.rule(1 <= payload && payload <= raw && (fr.Codec != codecNone || payload == raw), 16, "a payload no longer than raw", "%d of %d", payload, raw)
	if f.err != nil {
		return fr, f.err
	}
	fr.RawLen = raw
	table := frameHeader + int(chunks)*frameChunkSize
	end := table + int(payload)
	if end > len(b) {
		return fr, faultf(16, fmt.Sprintf("a frame of %d B", end), "%d B", len(b))
	}
	fr.Size = uint32(end)
	if err := checkSum(24, crc(b[frameHeader:table]), tableSum); err != nil {
		return fr, err
	}
	if err := fr.parseTable(b[:table]); err != nil {
		return fr, err
	}
	fr.head, fr.payload = b[:table], b[table:end]
	return fr, checkSum(20, crc(fr.payload), payloadSum)
}

func (fr *frame) parseTable(b []byte) error {
	f := &fields{b: b, at: frameHeader}
	sum := uint64(0)
	for f.err == nil && f.at < len(b) {
		at := f.at
		c := frameChunk{Hash: [32]byte(f.take(32)), ID: f.u64(), RawOff: uint32(sum), RawLen: f.u32()}
		f.reserved(4)
		f.rule(c.ID > 0 && c.RawLen > 0, at+32, "an id and a length", "%d, %d", c.ID, c.RawLen)
		sum += uint64(c.RawLen)
		f.rule(sum <= uint64(fr.RawLen), at+40, fmt.Sprintf("chunks of %d B together", fr.RawLen), "%d", sum)
		fr.Chunks = append(fr.Chunks, c)
	}
	f.rule(sum == uint64(fr.RawLen), frameHeader, fmt.Sprintf("chunks of %d B together", fr.RawLen), "%d", sum)
	return f.err
}

// frameReader decodes frames and hashes chunks. It owns a buffer of one frame.
type frameReader struct {
	raw  []byte
	zstd *zstd.Decoder
	hash *blake3.Hasher // nil without a domain key
}

func newFrameReader(domain []byte) (*frameReader, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(frameMaxRaw), zstd.WithDecoderMaxWindow(frameMaxRaw), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	fr := &frameReader{raw: make([]byte, frameMaxRaw), zstd: z}
	if domain != nil {
		if fr.hash, err = blake3.NewKeyed(domain); err != nil {
			return nil, err
		}
	}
	return fr, nil
}

func (d *frameReader) close() { d.zstd.Close() }

// decode returns the raw bytes of a frame, lent until the next call.
func (d *frameReader) decode(fr *frame) ([]byte, error) {
	out := d.raw[:fr.RawLen]
	at := int64(frameHeader + len(fr.Chunks)*frameChunkSize)
	bad := func(got string) ([]byte, error) {
		return nil, faultf(at, fmt.Sprintf("a payload that decodes to %d B", fr.RawLen), "%s", got)
	}
	switch fr.Codec {
	case codecNone:
		copy(out, fr.payload)
	case codecS2:
		if n, err := s2.DecodedLen(fr.payload); err != nil || n != len(out) {
			return bad(fmt.Sprintf("%d B, %v", n, err))
		}
		if _, err := s2.Decode(out, fr.payload); err != nil {
			return bad(err.Error())
		}
	case codecZstd:
		got, err := d.zstd.DecodeAll(fr.payload, out[:0])
		if err != nil || len(got) != len(out) {
			return bad(fmt.Sprintf("%d B, %v", len(got), err))
		}
	}
	return out, nil
}

// sum is the identity of a chunk.
func (d *frameReader) sum(p []byte) (h [32]byte) {
	d.hash.Reset()
	d.hash.Write(p)
	d.hash.Sum(h[:0])
	return h
}
