package overlay

import "github.com/hyper-nixos/hyper-nixos/block"

// directRegions is up to how many regions a range tombstone looks up one by one; beyond, walking the regions that exist is cheaper.
const directRegions = 16 * GroupRegions

// PublishWrite makes len(sums) consecutive blocks from block b on point at consecutive sectors of the log from pos on, where that is newer
// than what is there. sums holds the crc32c of each sector and is only borrowed.
func (l *Layer) PublishWrite(b, pos uint64, sums []uint32) { l.publishData(b, pos, sums, true) }

// PublishMoved is PublishWrite for blocks that the log repeats: the same bytes at a newer position. They do not count as written.
func (l *Layer) PublishMoved(b, pos uint64, sums []uint32) { l.publishData(b, pos, sums, false) }

func (l *Layer) publishData(b, pos uint64, sums []uint32, written bool) {
	for len(sums) > 0 {
		region, first := regionOf(b)
		n := min(uint(len(sums)), block.BlocksPerRegion-first)
		l.publish(region, first, run{n: n, pos: pos, step: block.Size, sums: sums[:n], written: written})
		b, pos, sums = b+uint64(n), pos+uint64(n)*block.Size, sums[n:]
	}
}

// PublishZero zeroes n blocks from block b on, where pos, the position of the record, is newer than what is there. Groups of regions and
// regions that are covered wholly become tombstones, 256 KiB pieces become leaf bases, the rest slots.
func (l *Layer) PublishZero(b, n, pos uint64) {
	for end := b + n; b < end; {
		region, first := regionOf(b)
		if whole := (end/block.BlocksPerRegion - region) / GroupRegions * GroupRegions; first == 0 && whole > 0 && region%GroupRegions == 0 {
			l.layRange(Tombstone{First: region, N: whole, Pos: pos})
			b += whole * block.BlocksPerRegion
			continue
		}
		part := min(end-b, block.BlocksPerRegion-uint64(first))
		if part == block.BlocksPerRegion {
			l.zeroRegion(region, pos)
		} else {
			l.publish(region, first, run{n: uint(part), pos: pos})
		}
		b += part
	}
}

// publish applies a run to blocks [first, first+p.n) of one region; here p counts from the region's start, in pieces of leaves below.
func (l *Layer) publish(region uint64, first uint, p run) {
	s := l.openShard(region)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.released {
		return
	}
	p.first = first
	r := s.touch(region, l.ranges.list.Load(), &p)
	if p.n == 0 {
		return
	}
	if r == nil {
		r = s.open(region)
	}
	oldest := r.oldest
	if p.written {
		r.writes += uint32(p.n)
	}
	for p.n > 0 {
		i, at := p.first/leafBlocks, p.first%leafBlocks
		n := min(p.n, leafBlocks-at)
		part := run{first: at, n: n, pos: p.pos, step: p.step}
		if p.sums != nil {
			part.sums, p.sums = p.sums[:n], p.sums[n:]
		}
		if part.sums == nil && n == leafBlocks {
			s.zeroLeaf(r, i, p.pos)
		} else {
			s.set(r, i, part)
		}
		p.first, p.n, p.pos = p.first+n, p.n-n, p.pos+uint64(n)*p.step
	}
	if r.oldest != oldest {
		s.order.up(&s.regions, r.heap)
	}
}

// touch prepares a region, if it exists, for a publish: what range tombstones hide is removed, and the part of p that tombstones hide is
// skipped. A region that is left with nothing is closed.
func (s *shard) touch(id uint64, ranges *rangeList, p *run) *region {
	floor := ranges.covering(id)
	_, r := s.table.find(&s.regions, id)
	if r != nil && r.oldest <= floor {
		s.purge(r, floor)
		if !s.settle(r) {
			r = nil
		}
	}
	if r != nil {
		floor = max(floor, r.zeroed)
	}
	*p = p.skip(floor)
	return r
}

// zeroRegion lays a tombstone over exactly one region.
func (l *Layer) zeroRegion(region, pos uint64) {
	s := l.openShard(region)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.released || l.ranges.list.Load().covering(region) >= pos {
		return
	}
	r := s.open(region)
	if r.zeroed < pos {
		s.purge(r, pos)
		r.zeroed = pos
		s.refresh(r)
	}
	s.settle(r)
}

// layRange adds a range tombstone and starts to free what it hides.
func (l *Layer) layRange(t Tombstone) {
	l.ranges.mu.Lock()
	defer l.ranges.mu.Unlock()
	if l.ranges.released {
		return
	}
	if t.N > directRegions {
		l.ranges.sweeps++
	}
	l.ranges.replace(laid(l.ranges.list.Load().all(), t))
	if t.N > directRegions {
		for s := range l.eachShard {
			s.mu.Lock()
			s.sweepSome(l.ranges.list.Load())
			s.mu.Unlock()
		}
		return
	}
	if l.regions.Load() > 0 {
		for region := t.First; region < t.end(); region++ {
			l.purgeRegion(region, t.Pos)
		}
	}
}

// purgeRegion removes everything that is not newer than floor from a region.
func (l *Layer) purgeRegion(region, floor uint64) {
	s := l.shardOf(region)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, r := s.table.find(&s.regions, region); r != nil {
		s.purge(r, floor)
		s.settle(r)
	}
}
