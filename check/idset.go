package check

import "math/bits"

// blockIDs is how many ids a block of an idSet or of counts holds. Ids are dense, so few blocks are thinly used.
const blockIDs = 1 << 15

// idSet is a set of ids: a bitmap in blocks of 4 KiB that are made when they are needed.
type idSet struct {
	blocks map[uint64]*[blockIDs / 64]uint64
}

// add puts an id into the set and reports whether it was not in it.
func (s *idSet) add(id uint64) bool {
	if s.blocks == nil {
		s.blocks = map[uint64]*[blockIDs / 64]uint64{}
	}
	b := s.blocks[id/blockIDs]
	if b == nil {
		b = new([blockIDs / 64]uint64)
		s.blocks[id/blockIDs] = b
	}
	word, bit := id%blockIDs/64, uint64(1)<<(id%64)
	was := b[word]&bit != 0
	b[word] |= bit
	return !was
}

func (s *idSet) has(id uint64) bool {
	b := s.blocks[id/blockIDs]
	return b != nil && b[id%blockIDs/64]&(1<<(id%64)) != 0
}

// remove takes an id out of the set.
func (s *idSet) remove(id uint64) {
	if b := s.blocks[id/blockIDs]; b != nil {
		b[id%blockIDs/64] &^= 1 << (id % 64)
	}
}

// set puts an id into the set or takes it out.
func (s *idSet) set(id uint64, in bool) {
	if in {
		s.add(id)
	} else {
		s.remove(id)
	}
}

// each calls f with every id, in no order.
func (s *idSet) each(f func(id uint64)) {
	for n, b := range s.blocks {
		for w, word := range b {
			for ; word != 0; word &= word - 1 {
				f(n*blockIDs + uint64(w*64+bits.TrailingZeros64(word)))
			}
		}
	}
}

// counts is a table of 32-bit counts by id. Counts beyond are kept in a map.
type counts struct {
	blocks map[uint64]*[blockIDs]uint32
	beyond map[uint64]uint64
}

func (c *counts) add(id uint64) {
	if c.blocks == nil {
		c.blocks, c.beyond = map[uint64]*[blockIDs]uint32{}, map[uint64]uint64{}
	}
	b := c.blocks[id/blockIDs]
	if b == nil {
		b = new([blockIDs]uint32)
		c.blocks[id/blockIDs] = b
	}
	n := &b[id%blockIDs]
	if *n == ^uint32(0) {
		c.beyond[id]++
		return
	}
	*n++
}

func (c *counts) get(id uint64) uint64 {
	if b := c.blocks[id/blockIDs]; b != nil {
		return uint64(b[id%blockIDs]) + c.beyond[id]
	}
	return 0
}
