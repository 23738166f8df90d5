package framecache

// queue is a list of entries, first in first out, linked through the entries themselves.
type queue struct {
	head, tail uint32 // entries; 0 is none
	pages      int
}

// push adds an entry at the end.
func (q *queue) push(entries []entry, i uint32) {
	e := &entries[i]
	e.next = 0
	if q.tail != 0 {
		entries[q.tail].next = i
	} else {
		q.head = i
	}
	q.tail = i
	q.pages += int(e.count)
}

// pop takes the entry that has been here longest. The queue must not be empty.
func (q *queue) pop(entries []entry) uint32 {
	i := q.head
	e := &entries[i]
	if q.head = e.next; q.head == 0 {
		q.tail = 0
	}
	e.next = 0
	q.pages -= int(e.count)
	return i
}

// ghosts remembers the frames that left the small queue lately, by a few bits of their hashes: a table in which a newer one takes the place of an older one.
type ghosts struct {
	slots []ghost
	clock uint32
}

type ghost struct{ print, at uint32 }

func (g *ghosts) init(n int) { g.slots = make([]ghost, max(64, n)) }

func (g *ghosts) slot(h uint64) (*ghost, uint32) {
	return &g.slots[(h>>8)%uint64(len(g.slots))], uint32(h>>32) | 1
}

func (g *ghosts) add(h uint64) {
	g.clock++
	s, print := g.slot(h)
	*s = ghost{print, g.clock}
}

// take reports whether a frame left lately, and forgets that.
func (g *ghosts) take(h uint64) bool {
	s, print := g.slot(h)
	if s.print != print || g.clock-s.at > uint32(len(g.slots)) {
		return false
	}
	*s = ghost{}
	return true
}
