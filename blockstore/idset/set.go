package idset

import "math/bits"

const (
	pageBits  = 15 // ids of a page, 4 KiB of bits
	pageIDs   = 1 << pageBits
	pageWords = pageIDs / 64
)

type page [pageWords]uint64

// Set is a set of ids below a bound. The zero Set holds nothing and takes nothing.
type Set struct {
	pages []*page
	used  []int // pages that are there, so that Clear costs what was added
	spare []*page
}

// New returns an empty set of ids below end. Ids at end or above are no members and cannot be added.
func New(end uint64) *Set { return &Set{pages: make([]*page, (end+pageIDs-1)>>pageBits)} }

// MostBytes is the memory that a set of ids below end takes at most.
func MostBytes(end uint64) uint64 {
	pages := (end + pageIDs - 1) >> pageBits
	return pages * (pageIDs/8 + 24)
}

// Has reports whether id is a member.
func (s *Set) Has(id uint64) bool {
	p := id >> pageBits
	return p < uint64(len(s.pages)) && s.pages[p] != nil && s.pages[p][id>>6%pageWords]&(1<<(id&63)) != 0
}

// Add makes id a member and reports whether it was none. An id beyond the set's bound stays out, and is reported as known.
func (s *Set) Add(id uint64) bool {
	p := id >> pageBits
	if p >= uint64(len(s.pages)) {
		return false
	}
	if s.pages[p] == nil {
		s.pages[p] = s.newPage()
		s.used = append(s.used, int(p))
	}
	word, bit := &s.pages[p][id>>6%pageWords], uint64(1)<<(id&63)
	fresh := *word&bit == 0
	*word |= bit
	return fresh
}

// Remove takes id out and reports whether it was a member.
func (s *Set) Remove(id uint64) bool {
	if !s.Has(id) {
		return false
	}
	s.pages[id>>pageBits][id>>6%pageWords] &^= 1 << (id & 63)
	return true
}

func (s *Set) newPage() *page {
	if n := len(s.spare); n > 0 {
		p := s.spare[n-1]
		s.spare = s.spare[:n-1]
		*p = page{}
		return p
	}
	return new(page)
}

// Clear takes all members out. It keeps the memory for the next ones, and costs what was added.
func (s *Set) Clear() {
	for _, p := range s.used {
		s.spare = append(s.spare, s.pages[p])
		s.pages[p] = nil
	}
	s.used = s.used[:0]
}

// Len counts the members.
func (s *Set) Len() (n uint64) {
	for _, p := range s.used {
		for _, w := range s.pages[p] {
			n += uint64(bits.OnesCount64(w))
		}
	}
	return n
}

// Bytes is the memory that the set takes now.
func (s *Set) Bytes() uint64 {
	return uint64(len(s.pages)+len(s.used))*8 + uint64(len(s.used)+len(s.spare))*(pageIDs/8)
}
