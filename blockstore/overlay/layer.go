package overlay

import (
	"sync"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Layer is what one node of a volume has in the log. It is safe for concurrent use. It takes 400 bytes until something is published,
// then about 2 KiB for each shard that is touched; Release it when it is done with, or the budget goes on counting its shards.
type Layer struct {
	account account
	regions atomic.Int64 // in all shards
	ranges  ranges
	shard   [shards]atomic.Pointer[shard] // nil until something is published there

	grow struct { // guards the making of shards
		sync.Mutex
		released bool
	}
}

// NewLayer returns an empty layer that books its memory in b.
func NewLayer(b *Budget) *Layer {
	l := &Layer{}
	l.account.budget = b
	l.ranges.account = &l.account
	return l
}

// Empty reports whether the layer holds nothing. It takes no lock. A layer whose regions are hidden but not swept yet is not empty.
func (l *Layer) Empty() bool { return l.regions.Load() == 0 && l.ranges.list.Load() == nil }

// Bytes returns the memory that the layer holds beyond its fixed part.
func (l *Layer) Bytes() int64 { return l.account.bytes.Load() }

// Blocks returns the number of blocks that have data in this layer; blocks under a range tombstone count until they are swept.
func (l *Layer) Blocks() int64 {
	var n int64
	for s := range l.eachShard {
		s.mu.Lock()
		n += s.blocks
		s.mu.Unlock()
	}
	return n
}

// Release frees everything at once, as rollback and delete do. Later publishes are ignored and all blocks are absent, so nothing may
// read the layer as part of a volume any more.
func (l *Layer) Release() {
	l.ranges.mu.Lock()
	defer l.ranges.mu.Unlock()
	l.grow.Lock()
	defer l.grow.Unlock()
	if l.grow.released {
		return
	}
	l.grow.released = true
	for i := range l.shard {
		s := l.shard[i].Swap(nil)
		if s == nil {
			continue
		}
		s.mu.Lock()
		s.released = true // for a publish that found the shard before
		s.reset()
		s.mu.Unlock()
		l.account.add(-shardBytes)
	}
	l.ranges.released = true
	l.ranges.replace(nil)
}

// shardOf returns the shard of a region, or nil.
func (l *Layer) shardOf(region uint64) *shard { return l.shard[region%shards].Load() }

// openShard returns the shard of a region, new if need be; nil after Release.
func (l *Layer) openShard(region uint64) *shard {
	if s := l.shardOf(region); s != nil {
		return s
	}
	l.grow.Lock()
	defer l.grow.Unlock()
	if s := l.shardOf(region); s != nil || l.grow.released {
		return s
	}
	s := newShard(&l.account, &l.regions)
	l.account.add(shardBytes)
	l.shard[region%shards].Store(s)
	return s
}

// eachShard visits the shards that exist.
func (l *Layer) eachShard(visit func(*shard) bool) {
	for i := range l.shard {
		if s := l.shard[i].Load(); s != nil && !visit(s) {
			return
		}
	}
}

// regionOf splits a block index into its region and the block's index there.
func regionOf(b uint64) (region uint64, index uint) {
	return b / block.BlocksPerRegion, uint(b % block.BlocksPerRegion)
}
