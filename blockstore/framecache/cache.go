package framecache

import (
	"slices"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

// Key names a frame: where it lies. Segments are never written again under the same id, so a frame never changes.
type Key struct {
	Segment block.SegmentID
	Off     uint32 // bytes into the segment
}

// Chunk names a chunk of a frame.
type Chunk struct {
	Hash     [16]byte // first half of its hash
	Off, Len uint32   // bytes in the decoded frame
}

// Result says what became of a Copy.
type Result uint8

const (
	Miss       Result = iota // the frame is not here
	Hit                      // the bytes were copied
	Unverified               // the chunk is here, but its hash was never checked: see Whole
	Stranger                 // the frame is here and has no such chunk
)

const (
	// shardBytes is the least budget of a shard where there are several: keys fall on shards unevenly, and the more so the fewer frames a shard holds.
	shardBytes = 8 << 20
	maxShards  = 16
)

// Cache keeps frames. All methods may be called concurrently.
type Cache struct {
	shards []shard
	budget int64
}

// Stats are counters of a Cache since its start, and its present size.
type Stats struct {
	Hits, Misses uint64
	Frames       int
	Bytes        int64 // of whole pages
	Budget       int64
}

// New returns a cache that holds at most budget bytes.
func New(budget int64) *Cache {
	n := int64(1)
	for n < maxShards && budget/(2*n) >= shardBytes {
		n *= 2
	}
	c := &Cache{shards: make([]shard, n), budget: budget}
	for i := range c.shards {
		c.shards[i].init(budget / n)
	}
	return c
}

// Close gives the memory back. The cache is empty from then on.
func (c *Cache) Close() error {
	var err error
	for i := range c.shards {
		if e := c.shards[i].close(); e != nil {
			err = e
		}
	}
	return err
}

// Stats returns the cache's counters.
func (c *Cache) Stats() Stats {
	st := Stats{Budget: c.budget}
	for i := range c.shards {
		s := &c.shards[i]
		st.Hits += s.hits.Load()
		st.Misses += s.misses.Load()
		s.mu.Lock()
		st.Frames += len(s.index)
		st.Bytes += int64(s.small.pages+s.main.pages) * pageSize
		s.mu.Unlock()
	}
	return st
}

// hash spreads keys. Its low bits choose the shard, its high ones the place in the ghost table.
func (k Key) hash() uint64 {
	h := (uint64(k.Segment)<<32 ^ uint64(k.Off)) * 0x9e3779b97f4a7c15
	h ^= h >> 29
	h *= 0xbf58476d1ce4e5b9
	return h ^ h>>32
}

func (c *Cache) shard(h uint64) *shard { return &c.shards[h&uint64(len(c.shards)-1)] }

// Copy copies the bytes of a chunk from at on into p, as many as p takes. p is changed by a Hit only.
func (c *Cache) Copy(k Key, want Chunk, at uint32, p []byte) Result {
	s := c.shard(k.hash())
	s.mu.Lock()
	r := s.copy(k, want, at, p)
	s.mu.Unlock()
	if r == Miss {
		s.misses.Add(1)
	} else {
		s.hits.Add(1)
	}
	return r
}

// Whole appends all of a chunk to dst, verified or not, and returns its whole hash. It reports whether the chunk was here.
func (c *Cache) Whole(k Key, want Chunk, dst []byte) ([]byte, block.Hash, bool) {
	s := c.shard(k.hash())
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.index[k]
	if !ok {
		return dst, block.Hash{}, false
	}
	e := &s.entries[i]
	_, off, hash, ok := s.find(e, want)
	if !ok {
		return dst, block.Hash{}, false
	}
	at := len(dst)
	dst = slices.Grow(dst, int(want.Len))[:at+int(want.Len)]
	s.read(e.first, off, dst[at:])
	return dst, hash, true
}

// Verified notes that the hash of a chunk of a frame was checked.
func (c *Cache) Verified(k Key, want Chunk) {
	s := c.shard(k.hash())
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.index[k]; ok {
		if i, _, _, ok := s.find(&s.entries[e], want); ok && i < 64 {
			s.entries[e].verified |= 1 << i
		}
	}
}

// Has reports whether a frame is here, without counting as a use.
func (c *Cache) Has(k Key) bool {
	s := c.shard(k.hash())
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.index[k]
	return ok
}

// Frame is what Put takes: the raw bytes of a frame, its chunks in their order, and a bit for each of the first 64 whose hash was checked.
type Frame struct {
	Raw      []byte
	Chunks   []segment.FrameChunk
	Verified uint64
	// Passing says that all of the frame was used at once, as by a long read: it is kept only if it had been here lately. So it is neither copied nor in anybody's way.
	Passing bool
}

// Put keeps a copy of a frame, unless it is too large for the budget.
func (c *Cache) Put(k Key, f Frame) {
	h := k.hash()
	s := c.shard(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(k, h, f)
}

// counters of a shard, on a cache line of their own.
type counters struct {
	_            [64]byte
	hits, misses atomic.Uint64
}
