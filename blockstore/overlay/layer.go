package overlay

import (
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Layer is what one node of a volume has in the log. It is safe for concurrent use. A Layer that was written to a little takes some
// 20 KiB; one that is empty about 15 KiB.
type Layer struct {
	account account
	regions atomic.Int64 // in all shards
	ranges  ranges
	shard   [shards]shard
}

// NewLayer returns an empty layer that books its memory in b.
func NewLayer(b *Budget) *Layer {
	l := &Layer{}
	l.account.budget = b
	l.ranges.account = &l.account
	for i := range l.shard {
		l.shard[i].init(&l.account, &l.regions)
	}
	return l
}

// Empty reports whether the layer holds nothing. It takes no lock. A layer whose regions are hidden but not swept yet is not empty.
func (l *Layer) Empty() bool { return l.regions.Load() == 0 && l.ranges.list.Load() == nil }

// Bytes returns the memory that the layer holds beyond its fixed part.
func (l *Layer) Bytes() int64 { return l.account.bytes.Load() }

// Blocks returns the number of blocks that have data in this layer; blocks under a range tombstone count until they are swept.
func (l *Layer) Blocks() int64 {
	var n int64
	for i := range l.shard {
		s := &l.shard[i]
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
	for i := range l.shard {
		s := &l.shard[i]
		s.mu.Lock()
		s.released = true
		s.reset()
		s.mu.Unlock()
	}
	l.ranges.released = true
	l.ranges.replace(nil)
}

// shardOf returns the shard of a region.
func (l *Layer) shardOf(region uint64) *shard { return &l.shard[region%shards] }

// regionOf splits a block index into its region and the block's index there.
func regionOf(b uint64) (region uint64, index uint) {
	return b / block.BlocksPerRegion, uint(b % block.BlocksPerRegion)
}
