package blockstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/maypok86/otter/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// chunkReader turns chunk ids into bytes: chunk row, frame, checks, cache.
type chunkReader struct {
	s      *Store
	frames *otter.Cache[frameKey, *frame]
	tools  sync.Pool // *frameTools
}

type frameKey struct {
	segment block.SegmentID
	off     uint32
}

// frame is a decoded frame whose chunks' hashes were verified. It is immutable.
type frame struct {
	raw    []byte
	chunks []segment.FrameChunk
}

// frameTools are the scratch of one frame read.
type frameTools struct {
	stored []byte
	dec    *segment.Decoder
	hash   *dedup.Hasher
}

// frameOverhead is what a cached frame costs beside its bytes: the entry, the key, the chunk table.
const frameOverhead = 256

func newChunkReader(s *Store, cacheBytes int64) (*chunkReader, error) {
	cache, err := otter.New(&otter.Options[frameKey, *frame]{
		MaximumWeight: uint64(cacheBytes),
		Weigher: func(_ frameKey, f *frame) uint32 {
			return uint32(cap(f.raw) + len(f.chunks)*56 + frameOverhead)
		},
		StatsRecorder: s.frameStats,
	})
	if err != nil {
		return nil, fmt.Errorf("make frame cache: %w", err)
	}
	c := &chunkReader{s: s, frames: cache}
	c.tools.New = func() any { return &frameTools{dec: segment.NewDecoder(), hash: dedup.NewHasher(s.domain)} }
	return c, nil
}

// row returns the row of a chunk, or ErrNotFound when the chunk was removed meanwhile.
func (c *chunkReader) row(id block.ChunkID) (chunkRow, error) {
	var key [9]byte
	key[0] = keyChunk
	putBE64(key[1:], uint64(id))
	v, closer, err := c.s.db.Get(key[:])
	if errors.Is(err, pebble.ErrNotFound) {
		return chunkRow{}, fmt.Errorf("chunk %d: %w", id, block.ErrNotFound)
	}
	if err != nil {
		return chunkRow{}, fmt.Errorf("read row of chunk %d: %w", id, err)
	}
	defer closer.Close()
	return decodeChunkRow(id, v)
}

// read copies the part of a chunk that an extent names into p.
func (c *chunkReader) read(ctx context.Context, e extentmap.Extent, p []byte, try bool) error {
	row, err := c.row(e.Chunk)
	if err != nil {
		return err
	}
	if [8]byte(row.Hash[:8]) != e.Hash8 || uint64(e.ChunkOff)+uint64(len(p)) > uint64(row.RawLen) {
		return &block.CorruptError{Source: fmt.Sprintf("chunk %d for volume offset %d", e.Chunk, e.Off), Want: fmt.Sprintf("hash %x", e.Hash8), Got: fmt.Sprintf("%x, %d bytes", row.Hash[:8], row.RawLen)}
	}
	c.s.at(afterChunkRow)
	f, err := c.frame(ctx, e.Chunk, row, try)
	if err != nil {
		return err
	}
	at := row.RawOff + e.ChunkOff
	copy(p, f.raw[at:])
	return nil
}

// frame returns the decoded frame that a row points to, from the cache or from its segment. Concurrent readers of one frame share one read.
func (c *chunkReader) frame(ctx context.Context, id block.ChunkID, row chunkRow, try bool) (*frame, error) {
	key := frameKey{row.Segment, row.FrameOff}
	f, ok := c.frames.GetIfPresent(key)
	if !ok {
		var err error
		if try {
			f, err = c.load(ctx, row, true)
			if err == nil {
				c.frames.Set(key, f)
			}
		} else {
			f, err = c.frames.Get(ctx, key, otter.LoaderFunc[frameKey, *frame](func(ctx context.Context, _ frameKey) (*frame, error) {
				return c.load(ctx, row, false)
			}))
		}
		if err != nil {
			return nil, err
		}
	}
	// The frame was checked chunk by chunk against its own table; what remains is that the row and the frame mean the same chunk.
	for i := range f.chunks {
		t := &f.chunks[i]
		if t.RawOff == row.RawOff && t.RawLen == row.RawLen && [16]byte(t.Hash[:16]) == row.Hash {
			return f, nil
		}
	}
	return nil, &block.CorruptError{Source: fmt.Sprintf("segment %06x", row.Segment), Offset: int64(row.FrameOff), Want: fmt.Sprintf("a frame with chunk %d (%x)", id, row.Hash), Got: "a frame without it"}
}

// load reads a frame from its segment, checks it and decodes it.
func (c *chunkReader) load(ctx context.Context, row chunkRow, try bool) (*frame, error) {
	t := c.tools.Get().(*frameTools)
	defer c.tools.Put(t)
	if cap(t.stored) < int(row.FrameLen) {
		t.stored = make([]byte, row.FrameLen)
	}
	stored := t.stored[:row.FrameLen]
	if err := c.s.segments.readAt(ctx, row.Segment, stored, row.FrameOff, try); err != nil {
		return nil, err
	}
	return t.decode(stored, fmt.Sprintf("segment %06x", row.Segment), row.FrameOff)
}

// decode checks a stored frame and every chunk in it.
func (t *frameTools) decode(stored []byte, source string, off uint32) (*frame, error) {
	h, err := segment.ParseFrame(stored)
	if err != nil {
		return nil, fmt.Errorf("%s at %d: %w", source, off, err)
	}
	raw, err := h.Decode(nil, t.dec)
	if err != nil {
		return nil, fmt.Errorf("%s at %d: %w", source, off, err)
	}
	f := &frame{raw: raw, chunks: h.Chunks(nil)}
	for i := range f.chunks {
		ch := &f.chunks[i]
		if got := t.hash.Sum(raw[ch.RawOff : ch.RawOff+ch.RawLen]); got != ch.Hash {
			return nil, &block.CorruptError{Source: source, Offset: int64(off), Want: "chunk hash " + ch.Hash.String(), Got: got.String()}
		}
	}
	return f, nil
}
