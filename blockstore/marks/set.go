package marks

import "math/bits"

const (
	leafBits  = 1 << 15
	leafWords = leafBits / 64
	leafBytes = leafBits / 8
	// slotBytes is what an entry of the first level takes.
	slotBytes = 8
)

type leaf [leafWords]uint64

// Set is a set of ids from a first one on.
type Set struct {
	first, end uint64 // ids of [first, end) are covered
	leaves     []*leaf
	used, most int
}

// New returns an empty set that covers all ids from first on, until it needs more than so many bytes for its leaves; it takes one leaf, 4 KiB, whatever the bound.
func New(first uint64, mostBytes int64) *Set {
	return &Set{first: first, end: ^uint64(0), most: int(max(1, mostBytes/leafBytes))}
}

// Add puts an id in, if it is covered. That may be the end of covering higher ones.
func (s *Set) Add(id uint64) {
	if id < s.first || id >= s.end {
		return
	}
	i := int((id - s.first) / leafBits)
	if i >= len(s.leaves) || s.leaves[i] == nil {
		if !s.grow(i) {
			return
		}
	}
	at := (id - s.first) % leafBits
	s.leaves[i][at/64] |= 1 << (at % 64)
}

// grow makes leaf i, in the memory of the highest one if need be, and reports whether there is one now.
func (s *Set) grow(i int) bool {
	var l *leaf
	if s.used < s.most {
		l = new(leaf)
		s.used++
	} else {
		top := len(s.leaves) - 1 // there is a leaf: the last one is never nil
		if top <= i {
			s.end = s.first + uint64(i)*leafBits
			return false
		}
		l = s.leaves[top]
		*l = leaf{}
		s.end = s.first + uint64(top)*leafBits
		for s.leaves = s.leaves[:top]; len(s.leaves) > 0 && s.leaves[len(s.leaves)-1] == nil; {
			s.leaves = s.leaves[:len(s.leaves)-1]
		}
	}
	for len(s.leaves) <= i {
		s.leaves = append(s.leaves, nil)
	}
	s.leaves[i] = l
	return true
}

// Has reports whether a covered id is in the set.
func (s *Set) Has(id uint64) bool {
	if id < s.first || id >= s.end || (id-s.first)/leafBits >= uint64(len(s.leaves)) {
		return false
	}
	l, at := s.leaves[(id-s.first)/leafBits], (id-s.first)%leafBits
	return l != nil && l[at/64]&(1<<(at%64)) != 0
}

// Next returns the least covered id in the set that is not below id.
func (s *Set) Next(id uint64) (uint64, bool) {
	at := max(id, s.first) - s.first
	for i := at / leafBits; i < uint64(len(s.leaves)); i, at = i+1, (i+1)*leafBits {
		l := s.leaves[i]
		if l == nil {
			continue
		}
		w := at % leafBits / 64
		word := l[w] >> (at % 64) << (at % 64)
		for word == 0 && w+1 < leafWords {
			w++
			word = l[w]
		}
		if word != 0 {
			found := s.first + i*leafBits + w*64 + uint64(bits.TrailingZeros64(word))
			return found, found < s.end
		}
	}
	return 0, false
}

// End is the first id that is not covered any more: 2^64-1 while all are.
func (s *Set) End() uint64 { return s.end }

// Bytes is the memory that the set has taken.
func (s *Set) Bytes() int64 { return int64(s.used)*leafBytes + int64(cap(s.leaves))*slotBytes }
