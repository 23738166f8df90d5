package overlay

import (
	"math/bits"
	"unsafe"
)

// Slabs grow with their arena from minSlab to maxSlab bytes, so that a layer of a few writes stays small. Powers of two in this range are
// size classes of the Go runtime: nothing is lost to rounding.
const (
	minSlab = 256
	maxSlab = 4096
)

// classSizes are the capacities of packed arrays, in cells. Class 0 is no array. The steps between 16 and 64 halve what is lost
// where leaves are half full.
var classSizes = [...]uint8{0, 1, 2, 4, 8, 16, 24, 32, 48, 64}

// classes is the number of size classes.
const classes = len(classSizes)

// classFor is the smallest class that holds n cells.
var classFor = func() (table [65]uint8) {
	for n, class := 0, uint8(0); n < len(table); n++ {
		if n > int(classSizes[class]) {
			class++
		}
		table[n] = class
	}
	return table
}()

// arena hands out arrays of T in size classes, cut from slabs. T has no pointers and its size is a power of two, 16 to 64 bytes.
// The zero value plus an account is ready. It is not safe for concurrent use.
//
// A reference is slab<<8 | array. Arrays do not move, so a slice from cells stays valid until its reference is freed.
type arena[T any] struct {
	account *account
	slabs   [][]T
	meta    []slab
	room    [classes]uint32 // per class: 1 + first slab with room
	unused  uint32          // 1 + first entry of slabs that has no slab
	held    int64           // bytes booked for slabs' cells
	tables  int64           // bytes booked for slabs and meta
}

// slab is the state of one slab, kept apart from its cells so that only one pointer a slab is there to be scanned.
type slab struct {
	free       [4]uint64 // arrays that are free
	next, prev uint32    // 1 + neighbours in the list of slabs with room; next also links unused entries
	used       uint16    // arrays handed out
	class      uint8
}

// cells returns the array of ref, at its full capacity.
func (a *arena[T]) cells(ref uint32, class uint8) []T {
	size := uint32(classSizes[class])
	if size == 0 {
		return nil
	}
	at := (ref & 0xff) * size
	return a.slabs[ref>>8][at : at+size : at+size]
}

// alloc returns an array of a class. Its cells hold anything.
func (a *arena[T]) alloc(class uint8) uint32 {
	if a.room[class] == 0 {
		a.addSlab(class)
	}
	index := a.room[class] - 1
	m := &a.meta[index]
	word := 0
	for m.free[word] == 0 {
		word++
	}
	bit := bits.TrailingZeros64(m.free[word])
	m.free[word] &= m.free[word] - 1
	m.used++
	if int(m.used) == a.capacity(index) {
		a.unlink(index)
	}
	return index<<8 | uint32(word*64+bit)
}

// free gives an array back. A slab that gets empty goes back to the runtime if its class has another with room: that one spare keeps
// a publish and a drop at a slab's border from allocating each time.
func (a *arena[T]) free(ref uint32, class uint8) {
	if class == 0 {
		return
	}
	index := ref >> 8
	m := &a.meta[index]
	if int(m.used) == a.capacity(index) {
		a.link(index)
	}
	m.free[ref>>6&3] |= 1 << (ref & 63)
	m.used--
	if m.used == 0 && (m.next != 0 || m.prev != 0) {
		a.unlink(index)
		a.book(-a.slabBytes(a.slabs[index]))
		a.slabs[index] = nil
		m.next, m.class, a.unused = a.unused, 0, index+1
	}
}

// reset gives everything back.
func (a *arena[T]) reset() {
	a.account.add(-a.held - a.tables)
	*a = arena[T]{account: a.account}
}

// eachIn calls visit for every array in use of one slab of class 1, in which a reference is an element.
func (a *arena[T]) eachIn(index uint32, visit func(ref uint32)) {
	if a.slabs[index] == nil {
		return
	}
	for word, free := range a.meta[index].free {
		for used := ^free & capacityMask(a.capacity(index), word); used != 0; used &= used - 1 {
			visit(index<<8 | uint32(word*64+bits.TrailingZeros64(used)))
		}
	}
}

// capacity returns the number of arrays in a slab.
func (a *arena[T]) capacity(index uint32) int {
	return len(a.slabs[index]) / int(classSizes[a.meta[index].class])
}

// slabBytes returns the size of a slab.
func (a *arena[T]) slabBytes(cells []T) int64 {
	var cell T
	return int64(len(cells)) * int64(unsafe.Sizeof(cell))
}

// capacityMask returns the bits of one word of a slab's free map that stand for arrays.
func capacityMask(capacity, word int) uint64 {
	n := min(max(capacity-word*64, 0), 64)
	return span(0, uint(n))
}

func (a *arena[T]) addSlab(class uint8) {
	index := a.unused
	if index != 0 {
		index--
		a.unused = a.meta[index].next
	} else {
		index = uint32(len(a.slabs))
		a.slabs = append(a.slabs, nil)
		a.meta = append(a.meta, slab{})
		a.bookTables()
	}
	cells := make([]T, a.nextSlab(class))
	a.slabs[index] = cells
	a.book(a.slabBytes(cells))
	m := &a.meta[index]
	*m = slab{class: class}
	for word := range m.free {
		m.free[word] = capacityMask(a.capacity(index), word)
	}
	a.link(index)
}

// nextSlab returns the cells of a new slab: about an eighth of what the arena holds, within the bounds, and one array at least.
func (a *arena[T]) nextSlab(class uint8) int {
	size := minSlab
	for size < maxSlab && int64(size)*8 < a.held {
		size *= 2
	}
	var cell T
	bytes := int(unsafe.Sizeof(cell))
	for size < bytes*int(classSizes[class]) {
		size *= 2
	}
	return size / bytes
}

func (a *arena[T]) book(n int64) {
	a.held += n
	a.account.add(n)
}

func (a *arena[T]) bookTables() {
	var cells []T
	held := int64(cap(a.slabs))*int64(unsafe.Sizeof(cells)) + int64(cap(a.meta))*int64(unsafe.Sizeof(slab{}))
	a.account.add(held - a.tables)
	a.tables = held
}

// link puts a slab at the front of the slabs with room.
func (a *arena[T]) link(index uint32) {
	m := &a.meta[index]
	m.prev, m.next = 0, a.room[m.class]
	if m.next != 0 {
		a.meta[m.next-1].prev = index + 1
	}
	a.room[m.class] = index + 1
}

func (a *arena[T]) unlink(index uint32) {
	m := &a.meta[index]
	if m.prev != 0 {
		a.meta[m.prev-1].next = m.next
	} else {
		a.room[m.class] = m.next
	}
	if m.next != 0 {
		a.meta[m.next-1].prev = m.prev
	}
	m.next, m.prev = 0, 0
}
