package overlay

import (
	"cmp"
	"slices"
)

// RegionInfo says what a region has in the layer, without looking at it slot by slot.
type RegionInfo struct {
	Region    uint64
	OldestPos uint64 // of the oldest live thing
	NewestPos uint64 // nothing is newer
	Blocks    int    // blocks with data
	Writes    uint32 // blocks written since the region was last empty or destaged, those still there included; modulo 2^32
	Zeros     int    // blocks zeroed one by one or by 256 KiB
	Zeroed    bool   // what has no slot reads as zero: a tombstone covers the region
}

// OldestPos returns a lower bound of the positions of all that is live in the layer, range tombstones included; NoPos if there is none.
// It sweeps first, so it advances with each drop and trim. Things published while it runs may be older than the result only if their
// records were appended before the call: see the rules in the package comment.
func (l *Layer) OldestPos() uint64 {
	if l.Empty() {
		return NoPos
	}
	l.sweepAll()
	oldest := NoPos
	for s := range l.eachShard {
		oldest = min(oldest, s.oldestPos())
	}
	// The list comes last: a tombstone that was laid meanwhile removed regions that were not looked at yet.
	for _, t := range l.ranges.list.Load().all() {
		oldest = min(oldest, t.Pos)
	}
	return oldest
}

func (s *shard) oldestPos() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.table.used == 0 {
		return NoPos
	}
	return s.exact(0).oldest
}

// exact returns the region at index i of the order after making the bounds of whatever comes to lie there exact.
func (s *shard) exact(i uint32) *region {
	for {
		r := s.order.at(&s.regions, i)
		if !r.stale {
			return r
		}
		s.refresh(r)
		s.order.down(&s.regions, i)
	}
}

// OldestRegions appends up to limit regions to dst, those with the oldest positions, oldest first. It visits about limit regions, whatever
// the layer holds.
func (l *Layer) OldestRegions(limit int, dst []RegionInfo) []RegionInfo {
	if limit <= 0 || l.Empty() {
		return dst
	}
	l.sweepAll()
	p := picker{limit: limit, picked: dst[len(dst):]}
	for s := range l.eachShard {
		s.mu.Lock()
		p.visit(s, l.ranges.list.Load(), 0)
		s.mu.Unlock()
	}
	slices.SortFunc(p.picked, func(a, b RegionInfo) int { return cmp.Compare(a.OldestPos, b.OldestPos) })
	return append(dst, p.picked...)
}

// picker collects the oldest regions of all shards in a heap whose first is the newest of them: the one to give way.
type picker struct {
	limit  int
	picked []RegionInfo
}

// visit offers the regions of a shard's order from index i down. What lies below a region that is too new is newer still.
func (p *picker) visit(s *shard, ranges *rangeList, i uint32) {
	if i >= uint32(len(s.order.heap)) {
		return
	}
	r := s.exact(i)
	if len(p.picked) == p.limit && r.oldest >= p.picked[0].OldestPos {
		return
	}
	p.add(RegionInfo{
		Region: r.id, OldestPos: r.oldest, NewestPos: r.newest, Blocks: int(r.blocks), Zeros: int(r.zeros), Writes: r.writes,
		Zeroed: r.zeroed != 0 || ranges.covering(r.id) != 0,
	})
	p.visit(s, ranges, 2*i+1)
	p.visit(s, ranges, 2*i+2)
}

func (p *picker) add(info RegionInfo) {
	if len(p.picked) == p.limit {
		p.picked[0] = info
		p.down()
		return
	}
	p.picked = append(p.picked, info)
	for i := len(p.picked) - 1; i > 0; {
		parent := (i - 1) / 2
		if p.picked[parent].OldestPos >= p.picked[i].OldestPos {
			return
		}
		p.picked[i], p.picked[parent] = p.picked[parent], p.picked[i]
		i = parent
	}
}

func (p *picker) down() {
	for i := 0; ; {
		child := 2*i + 1
		if child >= len(p.picked) {
			return
		}
		if child+1 < len(p.picked) && p.picked[child+1].OldestPos > p.picked[child].OldestPos {
			child++
		}
		if p.picked[i].OldestPos >= p.picked[child].OldestPos {
			return
		}
		p.picked[i], p.picked[child] = p.picked[child], p.picked[i]
		i = child
	}
}
