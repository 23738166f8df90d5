package overlay

// table finds regions by number: open addressing with linear probes over references into the arena of regions, 4 B an entry, at most
// three quarters full. Go's own map would cost three times as much.
type table struct {
	account *account
	entries []uint32 // 1 + reference; 0 is free
	used    int
}

// home is the first entry to probe for a region. The low bits of a region's number chose its shard, so they are no use here.
func (t *table) home(id uint64) uint32 {
	return uint32((id/shards)*0x9E3779B97F4A7C15>>32) & uint32(len(t.entries)-1)
}

// find returns the region of that number, or nil.
func (t *table) find(regions *arena[region], id uint64) (uint32, *region) {
	if t.used == 0 {
		return 0, nil
	}
	last := uint32(len(t.entries) - 1)
	for i := t.home(id); t.entries[i] != 0; i = (i + 1) & last {
		ref := t.entries[i] - 1
		if r := &regions.slabs[ref>>8][ref&0xff]; r.id == id {
			return ref, r
		}
	}
	return 0, nil
}

// insert adds a region that is not there yet.
func (t *table) insert(regions *arena[region], ref uint32, id uint64) {
	if (t.used+1)*4 > len(t.entries)*3 {
		t.resize(regions, max(16, len(t.entries)*2))
	}
	t.place(ref, id)
	t.used++
}

func (t *table) place(ref uint32, id uint64) {
	last := uint32(len(t.entries) - 1)
	i := t.home(id)
	for t.entries[i] != 0 {
		i = (i + 1) & last
	}
	t.entries[i] = ref + 1
}

func (t *table) resize(regions *arena[region], size int) {
	old := t.entries
	t.entries = make([]uint32, size)
	t.account.add(4 * int64(size-len(old)))
	for _, entry := range old {
		if entry != 0 {
			t.place(entry-1, regions.cells(entry-1, 1)[0].id)
		}
	}
}

// remove takes a region out. Entries behind it move up, so that no probe ever meets a grave.
func (t *table) remove(regions *arena[region], ref uint32, id uint64) {
	last := uint32(len(t.entries) - 1)
	hole := t.home(id)
	for t.entries[hole] != ref+1 {
		hole = (hole + 1) & last
	}
	for i := (hole + 1) & last; t.entries[i] != 0; i = (i + 1) & last {
		home := t.home(regions.cells(t.entries[i]-1, 1)[0].id)
		if (i-home)&last >= (i-hole)&last {
			t.entries[hole] = t.entries[i]
			hole = i
		}
	}
	t.entries[hole] = 0
	t.used--
	if size := len(t.entries); size > 16 && t.used*8 < size {
		t.resize(regions, size/2)
	}
}

// reset gives everything back.
func (t *table) reset() {
	t.account.add(-4 * int64(len(t.entries)))
	*t = table{account: t.account}
}
