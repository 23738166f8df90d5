package overlay

// sweepStep is how many regions are swept under one hold of a shard's mutex.
const sweepStep = 64

// sweep is a shard's walk over its regions, one slab (at most 64 regions) a step, to remove what range tombstones hide. New regions need no visit: a publish
// to them heeds the tombstones. The walk is circular, so that tombstones that keep coming cannot keep it from any region.
type sweep struct {
	seen   uint64 // rangeList.sweeps that the walk covers
	cursor uint32 // slab
	left   uint32 // slabs to go
	slabs  uint32 // slabs that were there at the last step
}

// purge removes everything that is not newer than floor from a region, perhaps all. The caller settles the region.
func (s *shard) purge(r *region, floor uint64) {
	if r.oldest > floor {
		return
	}
	if r.newest <= floor {
		s.clear(r)
		r.zeroed = 0
		return
	}
	if r.zeroed <= floor {
		r.zeroed = 0
	}
	for i := uint(0); i < regionLeaves; i++ {
		lf := s.leaf(r, i)
		if lf == nil {
			continue
		}
		var base uint64
		if lf.based {
			if base = s.slots.cells(lf.ref, lf.class)[0].pos; base <= floor {
				base = 0
			}
		}
		if keep := s.newerThan(lf, floor); keep != lf.mask || lf.based != (base != 0) {
			s.rebuild(r, i, keep, base)
		}
	}
	s.refresh(r)
}

// clear removes all leaves of a region.
func (s *shard) clear(r *region) {
	for _, lf := range s.dirs.cells(r.dir, r.class)[:leavesOf(r)] {
		s.slots.free(lf.ref, lf.class)
	}
	s.dirs.free(r.dir, r.class)
	s.blocks -= int64(r.blocks)
	r.leaves, r.dir, r.class, r.blocks, r.zeros = 0, 0, 0, 0, 0
}

// sweepSome visits the next regions of the walk and reports whether it is at its end.
func (s *shard) sweepSome(l *rangeList) bool {
	if l == nil {
		return true // whoever dropped the last tombstone swept first
	}
	slabs := uint32(len(s.regions.slabs))
	if s.sweep.seen != l.sweeps {
		s.sweep.seen, s.sweep.left, s.sweep.slabs = l.sweeps, slabs, slabs
	}
	if s.sweep.left == 0 {
		return true
	}
	s.sweep.left += slabs - s.sweep.slabs - 1 // the circle may have grown under way
	s.sweep.slabs = slabs
	s.sweep.cursor = (s.sweep.cursor + 1) % slabs
	var doomed [sweepStep]uint32
	n := 0
	s.regions.eachIn(s.sweep.cursor, func(ref uint32) {
		doomed[n] = ref
		n++
	})
	for _, ref := range doomed[:n] {
		r := &s.regions.cells(ref, 1)[0]
		if floor := l.covering(r.id); r.oldest <= floor {
			s.purge(r, floor)
			s.settle(r)
		}
	}
	return s.sweep.left == 0
}

// sweepShard finishes the walk of one shard, giving way to others between steps.
func (l *Layer) sweepShard(s *shard) {
	for done := false; !done; {
		s.mu.Lock()
		done = s.sweepSome(l.ranges.list.Load())
		s.mu.Unlock()
	}
}

// sweepAll removes all that range tombstones hide.
func (l *Layer) sweepAll() {
	for s := range l.eachShard {
		l.sweepShard(s)
	}
}
