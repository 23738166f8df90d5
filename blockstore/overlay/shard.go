package overlay

import (
	"sync"
	"sync/atomic"
	"unsafe"
)

// shards is the number of shards of a layer, a power of two. A region's shard is the low bits of its number, so a stream walks over all.
const shards = 32

// shard owns the regions of one residue class, and their memory. All its methods need mu held.
type shard struct {
	mu       sync.Mutex
	released bool
	live     *atomic.Int64 // regions of the whole layer
	regions  arena[region]
	dirs     arena[leaf]
	slots    arena[slot]
	table    table
	order    order
	blocks   int64 // Data slots
	sweep    sweep
}

// shardBytes is the fixed part of a shard.
const shardBytes = int64(unsafe.Sizeof(shard{}))

func newShard(a *account, live *atomic.Int64) *shard {
	s := &shard{live: live}
	s.regions.account, s.dirs.account, s.slots.account = a, a, a
	s.table.account, s.order.account = a, a
	return s
}

// open returns the region of that number, new if need be. The caller must put something into a new one before it unlocks.
func (s *shard) open(id uint64) *region {
	if _, r := s.table.find(&s.regions, id); r != nil {
		return r
	}
	ref := s.regions.alloc(1)
	r := &s.regions.cells(ref, 1)[0]
	*r = region{id: id, oldest: NoPos}
	s.table.insert(&s.regions, ref, id)
	s.order.push(&s.regions, ref)
	s.live.Add(1)
	return r
}

// close removes a region that holds nothing any more. The last one takes the shard's memory along.
func (s *shard) close(r *region) {
	ref := s.order.heap[r.heap]
	s.order.remove(&s.regions, r.heap)
	s.table.remove(&s.regions, ref, r.id)
	s.regions.free(ref, 1)
	s.live.Add(-1)
	if s.table.used == 0 {
		s.reset()
	}
}

// reset forgets every region.
func (s *shard) reset() {
	s.live.Add(-int64(s.table.used))
	s.regions.reset()
	s.dirs.reset()
	s.slots.reset()
	s.table.reset()
	s.order.reset()
	s.blocks = 0
	s.sweep.left = 0
}

// settle restores what depends on a region after things were removed: its place in the order, or its existence, which it reports.
func (s *shard) settle(r *region) bool {
	if r.leaves == 0 && r.zeroed == 0 {
		s.close(r)
		return false
	}
	s.order.fix(&s.regions, r.heap)
	return true
}

// refresh makes a region's bounds exact.
func (s *shard) refresh(r *region) {
	r.oldest, r.newest, r.stale = NoPos, 0, false
	if r.zeroed != 0 {
		r.sees(r.zeroed)
	}
	for _, lf := range s.dirs.cells(r.dir, r.class)[:leavesOf(r)] {
		for _, c := range s.slots.cells(lf.ref, lf.class)[:lf.len()] {
			r.sees(c.pos)
		}
	}
}
