package backup

import "math/bits"

// Changes are the parts of content that may differ from what it was: whole units of changeUnit bytes, kept as bits, 512 B for each region with any. Fill it first; then several goroutines may use it.
type Changes struct {
	regions map[uint64]*changedUnits
	units   uint64
}

const changeUnit = 4096 // bytes

// changedUnits has a bit for each unit of a region.
type changedUnits [RegionSize / changeUnit / 64]uint64

// NewChanges returns no changes.
func NewChanges() *Changes { return &Changes{regions: make(map[uint64]*changedUnits)} }

// Add adds a range, in bytes. What lies behind MaxContent is not content and left out.
func (c *Changes) Add(off, length uint64) {
	if off >= MaxContent || length == 0 {
		return
	}
	first, last := off/changeUnit, (off+min(length, MaxContent-off)-1)/changeUnit
	const perRegion = RegionSize / changeUnit
	for first <= last {
		n := first / perRegion
		u := c.regions[n]
		if u == nil {
			u = new(changedUnits)
			c.regions[n] = u
		}
		for end := min(last, (n+1)*perRegion-1); first <= end; first++ {
			in := first % perRegion
			if bit := uint64(1) << (in % 64); u[in/64]&bit == 0 {
				u[in/64] |= bit
				c.units++
			}
		}
	}
}

// Bytes is how much has changed, in whole units.
func (c *Changes) Bytes() uint64 { return c.units * changeUnit }

// in returns what changed of region n, nil for nothing.
func (c *Changes) in(n uint64) *changedUnits { return c.regions[n] }

// any reports whether anything of [begin, end) of the region changed.
func (u *changedUnits) any(begin, end int) bool {
	at := u.next(begin)
	return at < end
}

// end returns the first offset of the region from begin on that did not change, RegionSize if there is none.
func (u *changedUnits) end(begin int) int {
	unit := begin / changeUnit
	for word := unit / 64; word < len(u); word++ {
		left := ^u[word]
		if word == unit/64 {
			left &= ^uint64(0) << (unit % 64)
		}
		if left != 0 {
			return max(begin, (word*64+bits.TrailingZeros64(left))*changeUnit)
		}
	}
	return RegionSize
}

// next returns the first offset of the region from begin on that changed, RegionSize if there is none.
func (u *changedUnits) next(begin int) int {
	unit := begin / changeUnit
	for word := unit / 64; word < len(u); word++ {
		set := u[word]
		if word == unit/64 {
			set &= ^uint64(0) << (unit % 64)
		}
		if set != 0 {
			return max(begin, (word*64+bits.TrailingZeros64(set))*changeUnit)
		}
	}
	return RegionSize
}
