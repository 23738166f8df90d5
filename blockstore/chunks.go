package blockstore

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/framecache"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/internal/crew"
)

// chunkReader turns chunk ids into bytes: chunk row, frame, checks, cache.
type chunkReader struct {
	s       *Store
	rows    *rowCache
	frames  *framecache.Cache
	flights flights
	helpers chan struct{} // one for each goroutine that may help with long reads
	crew    *crew.Crew[part]
	tools   sync.Pool // *frameTools
}

func newChunkReader(s *Store, rowBytes, frameBytes int64) *chunkReader {
	c := &chunkReader{s: s, rows: newRowCache(rowBytes), frames: framecache.New(frameBytes), helpers: make(chan struct{}, s.opts.Workers)}
	c.crew = crew.New(s.opts.Workers, part.fetch)
	c.tools.New = func() any {
		return &frameTools{keys: s.keys, dec: segment.NewDecoder(), hash: dedup.NewHasher(s.domain)}
	}
	return c
}

// close gives the memory of the frames back. Nobody may be reading.
func (c *chunkReader) close() error {
	c.crew.Close()
	return c.frames.Close()
}

// wanted is a part of a chunk that somebody waits for.
type wanted struct {
	id  block.ChunkID
	row chunkRow
	at  uint32 // bytes into the chunk
	p   []byte // where it goes
}

func (w *wanted) frame() framecache.Key {
	return framecache.Key{Segment: w.row.Segment, Off: w.row.FrameOff}
}

func (w *wanted) chunk() framecache.Chunk {
	return framecache.Chunk{Hash: w.row.Hash, Off: w.row.RawOff, Len: w.row.RawLen}
}

// row returns the row of a chunk, or ErrNotFound when the chunk was removed meanwhile.
func (c *chunkReader) row(id block.ChunkID) (chunkRow, error) {
	row, ok, gen := c.rows.get(id)
	if ok {
		return row, nil
	}
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
	if row, err = decodeChunkRow(id, v); err == nil {
		c.rows.put(id, row, gen)
	}
	return row, err
}

// want finds out where the part of a chunk lies that an extent names.
func (c *chunkReader) want(e extentmap.Extent, p []byte) (wanted, error) {
	row, err := c.row(e.Chunk)
	if err != nil {
		return wanted{}, err
	}
	if [8]byte(row.Hash[:8]) != e.Hash8 || uint64(e.ChunkOff)+uint64(len(p)) > uint64(row.RawLen) {
		return wanted{}, notOf(e, row)
	}
	return wanted{id: e.Chunk, row: row, at: e.ChunkOff, p: p}, nil
}

// notOf is the error of an extent whose chunk is another one. It is a function of its own because what it prints would make every read allocate.
func notOf(e extentmap.Extent, row chunkRow) error {
	return &block.CorruptError{Source: fmt.Sprintf("chunk %d for volume offset %d", e.Chunk, e.Off), Want: fmt.Sprintf("hash %x", e.Hash8), Got: fmt.Sprintf("%x, %d bytes", row.Hash[:8], row.RawLen)}
}

// cached answers what is wanted from the cache, and reports whether it could.
func (c *chunkReader) cached(w *wanted) (bool, error) {
	switch c.frames.Copy(w.frame(), w.chunk(), w.at, w.p) {
	case framecache.Hit:
		return true, nil
	case framecache.Unverified:
		return c.verifyCached(w)
	case framecache.Stranger:
		return false, w.stranger()
	}
	return false, nil
}

// verifyCached answers from a frame that is in the cache after the hash of the chunk was checked: its frame was read for another one's sake.
func (c *chunkReader) verifyCached(w *wanted) (bool, error) {
	t := c.tools.Get().(*frameTools)
	defer c.tools.Put(t)
	raw, want, ok := c.frames.Whole(w.frame(), w.chunk(), t.raw[:0])
	if !ok {
		return false, nil
	}
	t.raw = raw
	if err := t.check(raw, want, w.row.Segment, w.row.FrameOff); err != nil {
		c.s.damaged.noteIf(w.id, err)
		return false, err
	}
	c.frames.Verified(w.frame(), w.chunk())
	copy(w.p, raw[w.at:])
	return true, nil
}

// stranger is the error of a row that points to a frame without its chunk.
func (w *wanted) stranger() error {
	return &block.CorruptError{Source: fmt.Sprintf("segment %06x", w.row.Segment), Offset: int64(w.row.FrameOff), Want: fmt.Sprintf("a frame with chunk %d (%x)", w.id, w.row.Hash), Got: "a frame without it"}
}
