package overlay

import "math/bits"

// leavesOf returns the number of leaves of a region.
func leavesOf(r *region) int { return bits.OnesCount64(r.leaves) }

// leaf returns leaf i of a region, or nil. The pointer is valid until a leaf of the region is added or removed.
func (s *shard) leaf(r *region, i uint) *leaf {
	if r.leaves>>i&1 == 0 {
		return nil
	}
	return &s.dirs.cells(r.dir, r.class)[rank(r.leaves, i)]
}

// openLeaf returns leaf i of a region, new and empty if need be.
func (s *shard) openLeaf(r *region, i uint) *leaf {
	if lf := s.leaf(r, i); lf != nil {
		return lf
	}
	n, at := leavesOf(r), rank(r.leaves, i)
	dir := s.dirs.cells(r.dir, r.class)
	if n < len(dir) {
		copy(dir[at+1:n+1], dir[at:n])
	} else {
		class := classFor[n+1]
		ref := s.dirs.alloc(class)
		wider := s.dirs.cells(ref, class)
		copy(wider, dir[:at])
		copy(wider[at+1:], dir[at:n])
		s.dirs.free(r.dir, r.class)
		r.dir, r.class, dir = ref, class, wider
	}
	r.leaves |= 1 << i
	dir[at] = leaf{}
	return &dir[at]
}

// closeLeaf removes leaf i, which has no slots, from a region.
func (s *shard) closeLeaf(r *region, i uint) {
	n, at := leavesOf(r), rank(r.leaves, i)
	dir := s.dirs.cells(r.dir, r.class)
	copy(dir[at:n-1], dir[at+1:n])
	r.leaves &^= 1 << i
	class := classFor[n-1]
	if class == r.class {
		return
	}
	var ref uint32
	if class != 0 {
		ref = s.dirs.alloc(class)
		copy(s.dirs.cells(ref, class), dir[:n-1])
	}
	s.dirs.free(r.dir, r.class)
	r.dir, r.class = ref, class
}

// run is a publish to consecutive blocks of one leaf: positions pos, pos+step, …; Data if it has sums, else Zero.
type run struct {
	first, n  uint // blocks of the leaf
	pos, step uint64
	sums      []uint32
	written   bool // counts as written
}

// skip drops the blocks of the run that are not newer than floor. Positions grow, so they come first.
func (p run) skip(floor uint64) run {
	for p.n > 0 && p.pos <= floor {
		p.first, p.n, p.pos = p.first+1, p.n-1, p.pos+p.step
		if p.sums != nil {
			p.sums = p.sums[1:]
		}
	}
	return p
}

// set points the blocks of a run at its positions, where they are newer than what is there. The run is newer than the region's tombstones.
func (s *shard) set(r *region, i uint, p run) {
	lf := s.openLeaf(r, i)
	if lf.based {
		if p = p.skip(s.slots.cells(lf.ref, lf.class)[0].pos); p.n == 0 {
			return
		}
	}
	s.widen(r, lf, span(p.first, p.n))
	at := lf.baseLen() + rank(lf.mask, p.first)
	cells := s.slots.cells(lf.ref, lf.class)[at : at+int(p.n)]
	for j := range cells {
		c := &cells[j]
		pos := p.pos + uint64(j)*p.step
		if c.pos >= pos {
			continue
		}
		s.uncount(r, c)
		r.loses(c.pos)
		if p.sums != nil {
			*c = slot{pos: pos, sum: p.sums[j], kind: Data}
			r.blocks++
			s.blocks++
		} else {
			*c = slot{pos: pos, kind: Zero}
			r.zeros++
		}
		r.sees(pos)
	}
}

// uncount takes a slot out of the counts.
func (s *shard) uncount(r *region, c *slot) {
	switch c.kind {
	case Data:
		r.blocks--
		s.blocks--
	case Zero:
		r.zeros--
	}
}

// widen makes room for the blocks of add: those without a slot get an empty one. A base that covers no block any more goes.
func (s *shard) widen(r *region, lf *leaf, add uint64) {
	mask := lf.mask | add
	if mask == lf.mask {
		return
	}
	r.zeros -= lf.baseZeros()
	n, dropBase := bits.OnesCount64(mask), lf.based && mask == ^uint64(0)
	old := s.slots.cells(lf.ref, lf.class)
	if base := lf.baseLen(); base+n <= len(old) && !dropBase {
		spread(old[base:], mask, old[base:], lf.mask)
		lf.mask = mask
		r.zeros += lf.baseZeros()
		return
	}
	from := old[lf.baseLen():]
	if dropBase {
		lf.based = false
		r.loses(old[0].pos)
	}
	base := lf.baseLen()
	class := classFor[base+n]
	ref := s.slots.alloc(class)
	to := s.slots.cells(ref, class)
	copy(to[:base], old)
	spread(to[base:], mask, from, lf.mask)
	s.slots.free(lf.ref, lf.class)
	lf.ref, lf.class, lf.mask = ref, class, mask
	r.zeros += lf.baseZeros()
}

// spread moves the packed slots of mask had to their places among those of mask want, a superset, and empties the others. It works from
// the top down, so that to and from may be the same.
func spread(to []slot, want uint64, from []slot, had uint64) {
	n, o := bits.OnesCount64(want), bits.OnesCount64(had)
	for want != 0 {
		if n == o && &to[0] == &from[0] {
			return // the rest is in place
		}
		top := uint64(1) << (63 - bits.LeadingZeros64(want))
		want &^= top
		n--
		if had&top != 0 {
			o--
			to[n] = from[o]
		} else {
			to[n] = slot{}
		}
	}
}

// rebuild keeps only the slots of keep in leaf i, over a base at that position if it is not 0. A leaf without both goes.
func (s *shard) rebuild(r *region, i uint, keep, base uint64) {
	lf := s.leaf(r, i)
	var kept [leafBlocks]slot
	n := 0
	if base != 0 {
		kept[0] = slot{pos: base, kind: Zero}
		n = 1
	}
	old := s.slots.cells(lf.ref, lf.class)[:lf.len()]
	r.zeros -= lf.baseZeros()
	if lf.based && old[0].pos != base {
		r.loses(old[0].pos)
	}
	old = old[lf.baseLen():]
	for mask := lf.mask; mask != 0; mask, old = mask&(mask-1), old[1:] {
		if keep&mask&-mask != 0 {
			kept[n] = old[0]
			n++
			continue
		}
		s.uncount(r, &old[0])
		r.loses(old[0].pos)
	}
	lf.mask, lf.based = lf.mask&keep, base != 0
	s.repack(lf, kept[:n])
	r.zeros += lf.baseZeros()
	if base != 0 {
		r.sees(base)
	}
	if n == 0 {
		s.closeLeaf(r, i)
	}
}

// repack replaces the packed slots of a leaf, in the class that fits.
func (s *shard) repack(lf *leaf, cells []slot) {
	if class := classFor[len(cells)]; class != lf.class {
		s.slots.free(lf.ref, lf.class)
		lf.class, lf.ref = class, 0
		if class != 0 {
			lf.ref = s.slots.alloc(class)
		}
	}
	copy(s.slots.cells(lf.ref, lf.class), cells)
}

// newerThan returns the blocks of a leaf whose slots are newer than pos.
func (s *shard) newerThan(lf *leaf, pos uint64) uint64 {
	cells := s.slots.cells(lf.ref, lf.class)[lf.baseLen():]
	var newer uint64
	for mask := lf.mask; mask != 0; mask, cells = mask&(mask-1), cells[1:] {
		if cells[0].pos > pos {
			newer |= mask & -mask
		}
	}
	return newer
}

// zeroLeaf zeroes all blocks of leaf i that are not newer than pos, by a base. pos is newer than the region's tombstones.
func (s *shard) zeroLeaf(r *region, i uint, pos uint64) {
	lf := s.openLeaf(r, i)
	if lf.based && s.slots.cells(lf.ref, lf.class)[0].pos >= pos {
		return
	}
	if keep := s.newerThan(lf, pos); keep != ^uint64(0) {
		s.rebuild(r, i, keep, pos)
	}
}
