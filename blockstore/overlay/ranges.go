package overlay

import (
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"unsafe"
)

// GroupRegions is the number of regions that a range tombstone covers, or a multiple of it: 4 GiB, one node of the extent map.
const GroupRegions = 256

// Tombstone zeroes whole groups of regions: everything in them that is not newer than Pos.
type Tombstone struct {
	First uint64 // region, a multiple of GroupRegions
	N     uint64 // regions, a multiple of GroupRegions
	Pos   uint64 // of the record
}

func (t Tombstone) end() uint64 { return t.First + t.N }

// ranges is a layer's range tombstones. Readers load the list without a lock; it is replaced, never changed.
type ranges struct {
	mu      sync.Mutex // one writer of the list
	account *account
	list    atomic.Pointer[rangeList] // nil if empty
	// sweeps outlives lists, so that a shard never takes a new count for one it has walked. released refuses new tombstones. Both need mu.
	sweeps   uint64
	released bool
}

// rangeList is sorted and disjoint. A newer tombstone has cut its range out of older ones.
type rangeList struct {
	tombs  []Tombstone
	sweeps uint64 // counts the additions whose regions are left to the sweep
}

// covering returns the position of the tombstone over a region, or 0.
func (l *rangeList) covering(region uint64) uint64 {
	if l == nil {
		return 0
	}
	i := sort.Search(len(l.tombs), func(i int) bool { return l.tombs[i].end() > region })
	if i < len(l.tombs) && l.tombs[i].First <= region {
		return l.tombs[i].Pos
	}
	return 0
}

// replace installs a new list. It needs mu.
func (rs *ranges) replace(tombs []Tombstone) {
	if len(tombs) == 0 {
		tombs = nil
	}
	held := cap(tombs) - cap(rs.list.Load().all())
	rs.account.add(int64(held) * int64(unsafe.Sizeof(Tombstone{})))
	if tombs == nil {
		rs.list.Store(nil)
		return
	}
	rs.list.Store(&rangeList{tombs: tombs, sweeps: rs.sweeps})
}

func (l *rangeList) all() []Tombstone {
	if l == nil {
		return nil
	}
	return l.tombs
}

// laid returns a new list with t laid over the tombstones that are older.
func laid(tombs []Tombstone, t Tombstone) []Tombstone {
	out := make([]Tombstone, 0, len(tombs)+2)
	add := func(first, end, pos uint64) {
		if first >= end {
			return
		}
		if n := len(out); n > 0 && out[n-1].Pos == pos && out[n-1].end() == first {
			out[n-1].N += end - first
			return
		}
		out = append(out, Tombstone{First: first, N: end - first, Pos: pos})
	}
	at := t.First // the part of t before at is laid
	for _, o := range tombs {
		add(at, min(t.end(), o.First), t.Pos)
		at = max(at, min(t.end(), o.First))
		if o.end() <= t.First || o.First >= t.end() {
			add(o.First, o.end(), o.Pos)
			continue
		}
		add(o.First, t.First, o.Pos)
		add(max(o.First, t.First), min(o.end(), t.end()), max(o.Pos, t.Pos))
		add(t.end(), o.end(), o.Pos)
		at = max(at, min(o.end(), t.end()))
	}
	add(at, t.end(), t.Pos)
	return out
}

// lifted returns a new list without what is left of t.
func lifted(tombs []Tombstone, t Tombstone) []Tombstone {
	out := slices.Clone(tombs)
	return slices.DeleteFunc(out, func(o Tombstone) bool {
		return o.Pos == t.Pos && o.First >= t.First && o.end() <= t.end()
	})
}
