package overlay

// order is a binary heap of a shard's regions by region.oldest: the oldest is first. A region knows its index.
type order struct {
	account *account
	heap    []uint32 // references into the arena of regions
	booked  int64
}

func (o *order) at(regions *arena[region], i uint32) *region {
	ref := o.heap[i]
	return &regions.slabs[ref>>8][ref&0xff]
}

// push adds a region. A region that has seen nothing yet counts as the newest.
func (o *order) push(regions *arena[region], ref uint32) {
	o.heap = append(o.heap, ref)
	o.book()
	i := uint32(len(o.heap) - 1)
	o.at(regions, i).heap = i
	o.up(regions, i)
}

// remove takes out the region at index i.
func (o *order) remove(regions *arena[region], i uint32) {
	last := uint32(len(o.heap) - 1)
	o.heap[i] = o.heap[last]
	o.heap = o.heap[:last]
	if i < last {
		o.at(regions, i).heap = i
		o.fix(regions, i)
	}
}

// fix restores the order after the region at index i changed.
func (o *order) fix(regions *arena[region], i uint32) {
	if !o.down(regions, i) {
		o.up(regions, i)
	}
}

func (o *order) up(regions *arena[region], i uint32) {
	for i > 0 {
		parent := (i - 1) / 2
		if o.at(regions, parent).oldest <= o.at(regions, i).oldest {
			return
		}
		o.swap(regions, i, parent)
		i = parent
	}
}

// down sinks the region at index i and reports whether it moved.
func (o *order) down(regions *arena[region], i uint32) bool {
	moved := false
	for {
		child := 2*i + 1
		if child >= uint32(len(o.heap)) {
			return moved
		}
		if next := child + 1; next < uint32(len(o.heap)) && o.at(regions, next).oldest < o.at(regions, child).oldest {
			child = next
		}
		if o.at(regions, i).oldest <= o.at(regions, child).oldest {
			return moved
		}
		o.swap(regions, i, child)
		i, moved = child, true
	}
}

func (o *order) swap(regions *arena[region], i, j uint32) {
	o.heap[i], o.heap[j] = o.heap[j], o.heap[i]
	o.at(regions, i).heap, o.at(regions, j).heap = i, j
}

func (o *order) book() {
	if held := 4 * int64(cap(o.heap)); held != o.booked {
		o.account.add(held - o.booked)
		o.booked = held
	}
}

// reset gives everything back.
func (o *order) reset() {
	o.account.add(-o.booked)
	*o = order{account: o.account}
}
