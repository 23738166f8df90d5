package overlay

import (
	"math"
	"math/bits"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Kind says what a layer knows about a block.
type Kind uint8

const (
	// Absent blocks are not in this layer: look further down.
	Absent Kind = iota
	// Data blocks lie in the log.
	Data
	// Zero blocks were zeroed or trimmed.
	Zero
)

// NoPos is the oldest position of a layer that holds nothing: newer than any position of the log.
const NoPos uint64 = math.MaxUint64

const (
	leafBlocks   = 64
	regionLeaves = block.BlocksPerRegion / leafBlocks
)

// slot is what a layer knows of one block. Position 0 is no position.
type slot struct {
	pos  uint64 // of the payload sector, or of the record that zeroed the block
	sum  uint32 // crc32c of the sector; 0 for Zero
	kind Kind
}

// leaf heads the packed slots of 64 blocks. If based, the first packed slot is the base: it zeroes every block without a slot of its own.
// All slots of a based leaf are newer than the base, and at least one block has none, so 64 packed slots always suffice.
type leaf struct {
	mask  uint64 // blocks that have a slot
	ref   uint32 // packed slots, in shard.slots
	class uint8  // their size class
	based bool
}

// len returns the number of packed slots, the base included.
func (lf *leaf) len() int { return bits.OnesCount64(lf.mask) + lf.baseLen() }

func (lf *leaf) baseLen() int {
	if lf.based {
		return 1
	}
	return 0
}

// baseZeros returns the number of blocks that only the base zeroes.
func (lf *leaf) baseZeros() uint32 {
	if !lf.based {
		return 0
	}
	return uint32(leafBlocks - bits.OnesCount64(lf.mask))
}

// region heads the packed leaves of 16 MiB. It has 64 bytes, one cache line.
type region struct {
	id     uint64
	zeroed uint64 // position of the newest tombstone over exactly this region, 0 if none; everything in the leaves is newer
	oldest uint64 // no live position is lower; exact unless stale
	newest uint64 // no live position is higher
	leaves uint64 // leaves that exist
	dir    uint32 // their heads, packed, in shard.dirs
	heap   uint32 // index in shard.order
	blocks uint32 // Data slots
	zeros  uint32 // blocks zeroed by slots and leaf bases
	writes uint32 // Data slots that were set, again and again counted; modulo 2^32
	class  uint8  // size class of dir
	stale  bool   // the holder of oldest is gone
	_      [2]byte
}

// sees extends the bounds of the region by a new live position.
func (r *region) sees(pos uint64) {
	r.oldest = min(r.oldest, pos)
	r.newest = max(r.newest, pos)
}

// loses notes that a live position went away.
func (r *region) loses(pos uint64) {
	if pos == r.oldest {
		r.stale = true
	}
}

// rank returns the number of bits of mask below bit i: the place of i among packed things.
func rank(mask uint64, i uint) int { return bits.OnesCount64(mask & (1<<i - 1)) }

// span returns n bits from bit first on; first+n is at most 64.
func span(first, n uint) uint64 { return (1<<n - 1) << first }
