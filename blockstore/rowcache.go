package blockstore

import (
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// rowCache keeps chunk rows that were read lately: a lookup costs a tenth of one in the metadata. It is a table of small sets without pointers, so the collector has
// nothing to scan, and its size is fixed. It may be used concurrently.
type rowCache struct {
	shards [rowShards]rowShard
}

type rowShard struct {
	mu   sync.Mutex
	gen  uint64 // how often rows were changed
	sets []rowSet
}

// rowSet holds the rows of some ids that hash alike. The one that was looked for last stands first.
type rowSet [rowWays]rowEntry

type rowEntry struct {
	id  block.ChunkID // 0: empty
	row chunkRow
}

const (
	rowShards   = 64
	rowWays     = 4
	rowSetBytes = rowWays * 64
)

func newRowCache(bytes int64) *rowCache {
	c := &rowCache{}
	for i := range c.shards {
		c.shards[i].sets = make([]rowSet, max(1, bytes/rowShards/rowSetBytes))
	}
	return c
}

// place returns the shard and the set of an id. Neighbours lie in different shards.
func (c *rowCache) place(id block.ChunkID) (*rowShard, *rowSet) {
	s := &c.shards[id%rowShards]
	return s, &s.sets[uint64(id)/rowShards%uint64(len(s.sets))]
}

// get returns a row, or, when it is not there, what put wants to know.
func (c *rowCache) get(id block.ChunkID) (row chunkRow, ok bool, gen uint64) {
	s, set := c.place(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range set {
		if set[i].id != id {
			continue
		}
		if i > 0 {
			set[i], set[i-1] = set[i-1], set[i]
			i--
		}
		return set[i].row, true, 0
	}
	return chunkRow{}, false, s.gen
}

// put keeps a row that was read after get had returned gen, unless a row changed meanwhile: it might be the old one.
func (c *rowCache) put(id block.ChunkID, row chunkRow, gen uint64) {
	s, set := c.place(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gen == gen {
		set[rowWays-1] = rowEntry{id, row}
	}
}

// changed is told of a row that a committed batch set, or removed when row is nil.
func (c *rowCache) changed(id block.ChunkID, row *chunkRow) {
	s, set := c.place(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	known := false
	for i := range set {
		if set[i].id != id {
			continue
		}
		if row == nil {
			set[i] = rowEntry{}
		} else {
			set[i].row = *row
			known = true
		}
	}
	if row != nil && !known {
		set[rowWays-1] = rowEntry{id, *row}
	}
}
