package overlay

import (
	"math/bits"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// RegionSnapshot is a copy of what a region had at or below a position: the input of one destage and, afterwards, the list of what to
// drop. It is reused from region to region.
type RegionSnapshot struct {
	Region    uint64
	CoveredBy uint64 // position of the range tombstone over the region, 0 if none: the region's map content is void
	Zeroed    uint64 // position of the tombstone over exactly this region, 0 if none: likewise
	// Slots are the blocks with a slot of their own or zeroed by a leaf base, by ascending block. They are newer than both tombstones.
	Slots []Slot
	Data  int // slots of kind Data

	bases [regionLeaves]uint64 // positions of the leaf bases copied
}

// Slot is one block of a RegionSnapshot.
type Slot struct {
	Pos   uint64 // Data: of the payload sector; Zero: of the record that zeroed it
	Sum   uint32 // Data: crc32c of the sector
	Block uint16 // in the region
	Kind  Kind   // Data or Zero
}

// Empty reports whether there is nothing to destage. A region that only a range tombstone covers is empty: the range is applied on its own.
func (s *RegionSnapshot) Empty() bool { return s.Zeroed == 0 && len(s.Slots) == 0 }

// Void reports whether blocks without a slot are zero, whatever the map says.
func (s *RegionSnapshot) Void() bool { return s.Zeroed != 0 || s.CoveredBy != 0 }

// SnapshotRegion copies everything of region id with a position up to maxPos into dst. Every publish up to maxPos must have returned: see
// the rules in the package comment.
func (l *Layer) SnapshotRegion(id, maxPos uint64, dst *RegionSnapshot) {
	*dst = RegionSnapshot{Region: id, Slots: dst.Slots[:0]}
	var r *region
	s := l.shardOf(id)
	if s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		_, r = s.table.find(&s.regions, id)
	}
	floor := l.ranges.list.Load().covering(id)
	if floor <= maxPos {
		dst.CoveredBy = floor
	}
	if r == nil {
		return
	}
	if r.zeroed > floor && r.zeroed <= maxPos {
		dst.Zeroed = r.zeroed
	}
	for leaves := r.leaves; leaves != 0; leaves &= leaves - 1 {
		s.copyLeaf(dst, r, uint(bits.TrailingZeros64(leaves)), floor, maxPos)
	}
}

// copyLeaf appends the slots of leaf i with floor < position <= maxPos. Blocks that only the base zeroes become Zero slots.
func (s *shard) copyLeaf(dst *RegionSnapshot, r *region, i uint, floor, maxPos uint64) {
	lf := s.leaf(r, i)
	cells := s.slots.cells(lf.ref, lf.class)
	if lf.based {
		if base := cells[0].pos; base > floor && base <= maxPos {
			dst.bases[i] = base
		}
		cells = cells[1:]
	}
	walk := lf.mask
	if dst.bases[i] != 0 {
		walk = ^uint64(0)
	}
	for ; walk != 0; walk &= walk - 1 {
		at := bits.TrailingZeros64(walk)
		out := Slot{Pos: dst.bases[i], Block: uint16(int(i)*leafBlocks + at), Kind: Zero}
		if lf.mask>>at&1 != 0 {
			c := cells[0]
			cells = cells[1:]
			if c.pos <= floor || c.pos > maxPos {
				continue
			}
			out.Pos, out.Sum, out.Kind = c.pos, c.sum, c.kind
		}
		if out.Kind == Data {
			dst.Data++
		}
		dst.Slots = append(dst.Slots, out)
	}
}

// DropRegion removes exactly what the snapshot holds and what is unchanged since: a slot, base or tombstone with another position stays.
// The region's new page must be readable already. It reports false, and drops nothing, while the range tombstone that covered the snapshot
// is still there: DropTombstone comes first.
func (l *Layer) DropRegion(snap *RegionSnapshot) bool {
	s := l.shardOf(snap.Region)
	if s == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if snap.CoveredBy != 0 && l.ranges.list.Load().covering(snap.Region) == snap.CoveredBy {
		return false
	}
	_, r := s.table.find(&s.regions, snap.Region)
	if r == nil {
		return true
	}
	if snap.Zeroed != 0 && r.zeroed == snap.Zeroed {
		r.zeroed = 0
	}
	for slots := snap.Slots; len(slots) > 0; {
		i := uint(slots[0].Block) / leafBlocks
		n := 1
		for n < len(slots) && uint(slots[n].Block)/leafBlocks == i {
			n++
		}
		s.dropLeaf(r, i, slots[:n], snap.bases[i])
		slots = slots[n:]
	}
	r.writes = r.blocks // what was rewritten of what went down says nothing of the rest
	s.refresh(r)
	s.settle(r)
	return true
}

// dropLeaf removes the slots of leaf i that are still as the snapshot has them, and its base if it still is at that position.
func (s *shard) dropLeaf(r *region, i uint, slots []Slot, base uint64) {
	lf := s.leaf(r, i)
	if lf == nil {
		return
	}
	cells := s.slots.cells(lf.ref, lf.class)
	var still uint64
	if lf.based && cells[0].pos != base {
		still = cells[0].pos
	}
	keep := lf.mask
	for _, snap := range slots {
		at := uint(snap.Block) % leafBlocks
		if lf.mask>>at&1 != 0 && cells[lf.baseLen()+rank(lf.mask, at)].pos == snap.Pos {
			keep &^= 1 << at
		}
	}
	if keep != lf.mask || lf.based != (still != 0) {
		s.rebuild(r, i, keep, still)
	}
}

// Tombstones appends the range tombstones of the layer to dst, by ascending region. They are disjoint.
func (l *Layer) Tombstones(dst []Tombstone) []Tombstone {
	return append(dst, l.ranges.list.Load().all()...)
}

// DropTombstone removes what is left of t: parts that a newer tombstone has taken over stay. The range must be detached in the map already.
// Everything that t hides is removed before t is, so nothing of it comes to life.
func (l *Layer) DropTombstone(t Tombstone) {
	l.sweepAll() // most of the work, while others may lay tombstones
	l.ranges.mu.Lock()
	defer l.ranges.mu.Unlock()
	l.sweepAll()
	l.ranges.replace(lifted(l.ranges.list.Load().all(), t))
}

// blocksPerLeaf ties the shape of a region to the sizes in package block.
const _ = uint(block.BlocksPerRegion - regionLeaves*leafBlocks)
