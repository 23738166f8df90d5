package extentmap

import (
	"sync"
	"sync/atomic"
)

const (
	// cacheShardBytes is the least budget of a shard, so that it still holds pages of regions in pieces.
	cacheShardBytes = 1 << 20
	cacheMaxShards  = 16
	// cacheEntryOverhead is charged per entry for its slot, its index row and the allocator.
	cacheEntryOverhead = 96
)

// Cache keeps verified pages and nodes under a byte budget. Ids are never reused and values never change, so nothing is ever invalidated: what was freed just ages out.
// Eviction is the clock algorithm; an entry that was read once goes before one that was read again, so a scan does not empty the cache. All methods may be called
// concurrently, and on a nil *Cache, which holds nothing.
type Cache struct{ shards []cacheShard }

// CacheStats are counters of a Cache since its start, and its present size.
type CacheStats struct {
	Hits, Misses uint64
	Entries      int
	Bytes        int64 // with the overhead of entries
	Budget       int64 // bytes
}

type cacheShard struct {
	hits, misses atomic.Uint64

	mu struct {
		sync.RWMutex
		index map[uint64]int // id → slot
		slots []cacheSlot
		free  []int
		hand  int
		bytes int64
	}
	budget int64
}

type cacheSlot struct {
	id   uint64
	data []byte // nil if the slot is free
	used uint32 // set by readers under the read lock, so accessed atomically
}

// NewCache returns a cache that holds at most budget bytes.
func NewCache(budget int64) *Cache {
	n := int64(1)
	for n < cacheMaxShards && budget/(2*n) >= cacheShardBytes {
		n *= 2
	}
	c := &Cache{shards: make([]cacheShard, n)}
	for i := range c.shards {
		c.shards[i].budget = budget / n
		c.shards[i].mu.index = make(map[uint64]int)
	}
	return c
}

// Stats returns the cache's counters.
func (c *Cache) Stats() CacheStats {
	var s CacheStats
	if c == nil {
		return s
	}
	for i := range c.shards {
		h := &c.shards[i]
		s.Hits += h.hits.Load()
		s.Misses += h.misses.Load()
		s.Budget += h.budget
		h.mu.RLock()
		s.Entries += len(h.mu.index)
		s.Bytes += h.mu.bytes
		h.mu.RUnlock()
	}
	return s
}

func (c *Cache) shard(id uint64) *cacheShard { return &c.shards[id&uint64(len(c.shards)-1)] }

// get returns the bytes under id. The caller must not change them.
func (c *Cache) get(id uint64) ([]byte, bool) {
	if c == nil {
		return nil, false
	}
	h := c.shard(id)
	h.mu.RLock()
	i, ok := h.mu.index[id]
	if !ok {
		h.mu.RUnlock()
		h.misses.Add(1)
		return nil, false
	}
	slot := &h.mu.slots[i]
	if atomic.LoadUint32(&slot.used) == 0 {
		atomic.StoreUint32(&slot.used, 1)
	}
	data := slot.data
	h.mu.RUnlock()
	h.hits.Add(1)
	return data, true
}

// add keeps verified bytes, which nobody may change from now on.
func (c *Cache) add(id uint64, data []byte) {
	if c == nil {
		return
	}
	h, cost := c.shard(id), cacheCost(data)
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.mu.index[id]; ok || cost > h.budget {
		return
	}
	for h.mu.bytes+cost > h.budget {
		h.evictLocked()
	}
	i := len(h.mu.slots)
	if n := len(h.mu.free); n > 0 {
		i, h.mu.free = h.mu.free[n-1], h.mu.free[:n-1]
	} else {
		h.mu.slots = append(h.mu.slots, cacheSlot{})
	}
	h.mu.slots[i] = cacheSlot{id: id, data: data}
	h.mu.index[id] = i
	h.mu.bytes += cost
}

// evictLocked moves the hand to the first slot that was not used since it last passed, and frees it. The shard must not be empty.
func (h *cacheShard) evictLocked() {
	for {
		i := h.mu.hand
		h.mu.hand = (i + 1) % len(h.mu.slots)
		slot := &h.mu.slots[i]
		if slot.data == nil {
			continue
		}
		if slot.used != 0 {
			slot.used = 0
			continue
		}
		h.mu.bytes -= cacheCost(slot.data)
		delete(h.mu.index, slot.id)
		*slot = cacheSlot{}
		h.mu.free = append(h.mu.free, i)
		return
	}
}

func cacheCost(data []byte) int64 { return int64(cap(data)) + cacheEntryOverhead }
