package overlay

import (
	"math/bits"
	"testing"
)

// audit recounts a layer from its leaves and compares all that is derived: counts, bounds, order, table, arenas and booked bytes.
func audit(t *testing.T, l *Layer) {
	t.Helper()
	regions, booked := int64(0), int64(0)
	for i := range l.shard {
		s := l.shard[i].Load()
		if s == nil {
			continue
		}
		s.mu.Lock()
		booked += auditShard(t, s)
		regions += int64(s.table.used)
		s.mu.Unlock()
	}
	if regions != l.regions.Load() {
		t.Fatalf("%d regions, counter says %d", regions, l.regions.Load())
	}
	tombs := l.ranges.list.Load().all()
	booked += int64(cap(tombs)) * 24
	for i, tomb := range tombs {
		if tomb.N == 0 || tomb.First%GroupRegions != 0 || tomb.N%GroupRegions != 0 || i > 0 && tombs[i-1].end() > tomb.First {
			t.Fatalf("tombstones %v", tombs)
		}
	}
	if booked != l.Bytes() {
		t.Fatalf("%d bytes held, %d booked", booked, l.Bytes())
	}
}

func auditShard(t *testing.T, s *shard) (booked int64) {
	t.Helper()
	var blocks int64
	dirCells, slotCells := 0, 0
	for i, ref := range s.order.heap {
		r := &s.regions.cells(ref, 1)[0]
		if found, _ := s.table.find(&s.regions, r.id); found != ref || r.heap != uint32(i) {
			t.Fatalf("region %d: reference %d, table has %d; heap index %d, region has %d", r.id, ref, found, i, r.heap)
		}
		if i > 0 && s.order.at(&s.regions, uint32(i-1)/2).oldest > r.oldest {
			t.Fatalf("region %d is older than its parent in the order", r.id)
		}
		auditRegion(t, s, r)
		blocks += int64(r.blocks)
		dirCells += int(classSizes[r.class])
		for _, lf := range s.dirs.cells(r.dir, r.class)[:leavesOf(r)] {
			slotCells += int(classSizes[lf.class])
		}
	}
	if len(s.order.heap) != s.table.used || blocks != s.blocks {
		t.Fatalf("%d regions in order, %d in table; %d blocks, counter says %d", len(s.order.heap), s.table.used, blocks, s.blocks)
	}
	booked = shardBytes + int64(4*len(s.table.entries)+4*cap(s.order.heap))
	booked += auditArena(t, &s.regions, s.table.used) + auditArena(t, &s.dirs, dirCells) + auditArena(t, &s.slots, slotCells)
	return booked
}

func auditRegion(t *testing.T, s *shard, r *region) {
	t.Helper()
	if r.leaves == 0 && r.zeroed == 0 {
		t.Fatalf("region %d holds nothing", r.id)
	}
	exact := *r
	s.refresh(&exact)
	if r.oldest > exact.oldest || !r.stale && r.oldest != exact.oldest || r.newest < exact.newest {
		t.Fatalf("region %d: bounds %d to %d, stale %v, exact %d to %d", r.id, r.oldest, r.newest, r.stale, exact.oldest, exact.newest)
	}
	var blocks, zeros uint32
	for leaves := r.leaves; leaves != 0; leaves &= leaves - 1 {
		lf := s.leaf(r, uint(bits.TrailingZeros64(leaves)))
		cells := s.slots.cells(lf.ref, lf.class)[:lf.len()]
		floor := r.zeroed
		if lf.based {
			if cells[0].kind != Zero || cells[0].pos <= floor || lf.mask == ^uint64(0) {
				t.Fatalf("region %d: base %+v over mask %x", r.id, cells[0], lf.mask)
			}
			floor, cells = cells[0].pos, cells[1:]
			zeros += lf.baseZeros()
		}
		for _, c := range cells {
			if c.pos <= floor || c.kind == Absent {
				t.Fatalf("region %d: slot %+v under a tombstone at %d", r.id, c, floor)
			}
			if c.kind == Data {
				blocks++
			} else {
				zeros++
			}
		}
		if lf.len() == 0 {
			t.Fatalf("region %d has an empty leaf", r.id)
		}
	}
	if blocks != r.blocks || zeros != r.zeros {
		t.Fatalf("region %d: %d data and %d zero blocks, counters say %d and %d", r.id, blocks, zeros, r.blocks, r.zeros)
	}
}

// auditArena checks that exactly the given number of cells is handed out, and returns the bytes held.
func auditArena[T any](t *testing.T, a *arena[T], cells int) int64 {
	t.Helper()
	held := a.tables
	for i, slab := range a.slabs {
		held += a.slabBytes(slab)
		if slab == nil {
			continue
		}
		m := &a.meta[i]
		free := 0
		for _, word := range m.free {
			free += bits.OnesCount64(word)
		}
		if free+int(m.used) != a.capacity(uint32(i)) {
			t.Fatalf("slab %d: %d free and %d used of %d", i, free, m.used, a.capacity(uint32(i)))
		}
		cells -= int(m.used) * int(classSizes[m.class])
	}
	if cells != 0 {
		t.Fatalf("%d cells more are referenced than handed out", cells)
	}
	return held
}
