package fuzz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

// refusal reports whether err is what a decoder may say about bytes it does not accept.
func refusal(err error) bool {
	return errors.Is(err, block.ErrCorrupt) || errors.Is(err, block.ErrVersion)
}

// FuzzFrame: no bytes make the frame decoder panic, return more than a frame may hold, or accept what it would not write.
func FuzzFrame(f *testing.F) {
	enc := segment.NewEncoder()
	for _, codec := range []segment.Codec{segment.None, segment.S2, segment.Zstd} {
		for _, raw := range [][]byte{[]byte("x"), bytes.Repeat([]byte("a frame of a segment "), 100)} {
			b, err := segment.EncodeFrame(nil, []segment.Chunk{{ID: 1, Raw: raw}, {ID: 2, Raw: raw}}, codec, enc)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// Checksums would keep the fuzzer in the first line of the decoder: it also gets frames whose checksums are right.
		decodeFrame(t, b)
		decodeFrame(t, withFrameChecksums(b))
	})
}

func decodeFrame(t *testing.T, b []byte) {
	fr, err := segment.ParseFrame(b)
	if err != nil {
		if !refusal(err) {
			t.Fatalf("parse: %v", err)
		}
		return
	}
	if int(fr.Size) > len(b) || fr.RawLen > segment.MaxFrameRaw || fr.NumChunks() == 0 {
		t.Fatalf("accepted %+v in %d B", fr, len(b))
	}
	raw, err := fr.Decode(nil, segment.NewDecoder())
	if err != nil {
		if !refusal(err) && !(fr.KeyID != 0 && errors.Is(err, keyring.ErrNoKey)) {
			t.Fatalf("decode: %v", err)
		}
		return
	}
	if len(raw) != int(fr.RawLen) {
		t.Fatalf("%d B decoded, %d promised", len(raw), fr.RawLen)
	}
	end := uint32(0)
	var again []segment.Chunk
	for _, c := range fr.Chunks(nil) {
		if c.RawOff != end || c.RawLen == 0 {
			t.Fatalf("chunk at %d, want %d", c.RawOff, end)
		}
		end += c.RawLen
		again = append(again, segment.Chunk{ID: c.ID, Hash: c.Hash, Raw: raw[c.RawOff:end]})
	}
	if end != fr.RawLen {
		t.Fatalf("chunks end at %d of %d", end, fr.RawLen)
	}
	if _, err := segment.EncodeFrame(nil, again, fr.Codec, segment.NewEncoder()); err != nil {
		t.Fatalf("what was decoded cannot be encoded: %v", err)
	}
}

// withFrameChecksums returns a copy of b whose checksums are those that a frame of these bytes would have.
func withFrameChecksums(b []byte) []byte {
	const headerSize, entrySize = 64, 48
	if len(b) < headerSize {
		return b
	}
	b = bytes.Clone(b)
	table := int(min(le32(b[8:]), 100)) * entrySize
	if headerSize+table <= len(b) {
		putCRC(b[24:], b[headerSize:headerSize+table])
		payload := b[headerSize+table:]
		putCRC(b[20:], payload[:min(len(payload), int(le32(b[16:])))])
	}
	putCRC(b[60:], b[:60])
	return b
}

// FuzzSegmentFooter: no bytes make the readers of a sealed segment panic, allocate what the file cannot hold, or accept a directory
// that leads outside the frames.
func FuzzSegmentFooter(f *testing.F) {
	// The input is what follows a valid header: 4 KiB that hardly vary would only slow the fuzzer down.
	header := sealedSegment(f, 0)[:segment.HeaderSize]
	f.Add(sealedSegment(f, 0)[segment.HeaderSize:])
	f.Add(sealedSegment(f, 3)[segment.HeaderSize:])
	f.Fuzz(func(t *testing.T, tail []byte) {
		b := append(bytes.Clone(header), tail...)
		readSegment(t, b)
		readSegment(t, withFooterChecksums(b))
	})
}

// sealedSegment returns a segment of n frames.
func sealedSegment(tb testing.TB, n int) []byte {
	tb.Helper()
	var sink segmentSink
	w, err := segment.NewWriter(&sink, segment.Meta{StoreID: block.UUID{1}, ID: 2, Generation: 3, Class: segment.Warm})
	if err != nil {
		tb.Fatal(err)
	}
	for i := range n {
		b, err := segment.EncodeFrame(nil, []segment.Chunk{{ID: block.ChunkID(i + 1), Raw: []byte("chunk")}}, segment.None, segment.NewEncoder())
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Append(b); err != nil {
			tb.Fatal(err)
		}
	}
	if _, err := w.Seal(4); err != nil {
		tb.Fatal(err)
	}
	return sink.Bytes()
}

type segmentSink struct{ bytes.Buffer }

func (*segmentSink) Sync() error { return nil }

func readSegment(t *testing.T, b []byte) {
	r, size := bytes.NewReader(b), int64(len(b))
	if _, err := segment.ReadHeader(r, size); err != nil && !refusal(err) {
		t.Fatalf("header: %v", err)
	}
	if _, err := segment.Check(r, size); err != nil && !refusal(err) {
		t.Fatalf("check: %v", err)
	}
	footer, err := segment.ReadFooter(r, size)
	if err != nil {
		if !refusal(err) {
			t.Fatalf("footer: %v", err)
		}
		return
	}
	frames, err := segment.ReadDirectory(r, &footer)
	if err != nil {
		if !refusal(err) {
			t.Fatalf("directory: %v", err)
		}
		return
	}
	end := uint32(segment.HeaderSize)
	for _, fr := range frames {
		if fr.Off != end || fr.Len == 0 || len(fr.Chunks) == 0 {
			t.Fatalf("frame at %d+%d with %d chunks, want one at %d", fr.Off, fr.Len, len(fr.Chunks), end)
		}
		end += fr.Len
	}
	if end != footer.DirOff || int64(end) > size {
		t.Fatalf("frames end at %d, the directory starts at %d of %d", end, footer.DirOff, size)
	}
}

// withFooterChecksums returns a copy of b whose footer and directory checksums are right.
func withFooterChecksums(b []byte) []byte {
	const footerSize = 256
	if len(b) < footerSize {
		return b
	}
	b = bytes.Clone(b)
	footer := b[len(b)-footerSize:]
	off, n := int64(le32(footer[52:])), int64(le32(footer[56:]))
	if off+n <= int64(len(b)) {
		putCRC(footer[60:], b[off:off+n])
	}
	putCRC(footer[252:], footer[:252])
	return b
}

func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }

// putCRC stores the CRC32C of p at dst.
func putCRC(dst, p []byte) {
	binary.LittleEndian.PutUint32(dst, crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
}
