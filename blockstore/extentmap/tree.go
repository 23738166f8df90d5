package extentmap

import (
	"math/bits"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const (
	// Fanout is the number of children of a node.
	Fanout = 256
	// MaxLevel is the highest level of a root: 256^5 regions hold more than block.MaxVolumeSize.
	MaxLevel = 5

	fanoutBits  = 8
	regionBits  = 24
	regionCount = (block.MaxVolumeSize + 1) >> regionBits
)

// Root names the top of a volume's map. The zero Root is a volume that is one hole. At level 0 the root is the page of region 0 itself; a root of level k covers
// 256^k regions. A tree grows in height when a higher region is written.
type Root struct {
	ID    uint64
	Level uint8
	Birth block.Epoch
}

// Subtree returns the root as the subtree that it is.
func (r Root) Subtree() Subtree { return Subtree{ID: r.ID, Level: r.Level, Birth: r.Birth} }

// Subtree names a page (level 0) or a node with all that is under it, and where in the volume it lies.
type Subtree struct {
	ID     uint64 // of the page or node; 0 is a hole
	Level  uint8
	Region uint64 // the first region that it covers
	Birth  block.Epoch
}

// Span returns how many regions a subtree of this level covers.
func (s Subtree) Span() uint64 { return span(s.Level) }

func span(level uint8) uint64 { return 1 << (fanoutBits * uint(level)) }

// ref is a child as a node stores it.
type ref struct {
	id    uint64
	birth block.Epoch
}

// childAt returns the subtree of child i of a node of the given level that starts at region.
func childAt(level uint8, region uint64, i int, r ref) Subtree {
	return Subtree{ID: r.id, Level: level - 1, Region: region + uint64(i)*span(level-1), Birth: r.birth}
}

// childIndex returns which child of a node of the given level covers a region.
func childIndex(level uint8, region uint64) int {
	return int(region >> (fanoutBits * uint(level-1)) & (Fanout - 1))
}

// levelFor returns the least level of a root that covers a region.
func levelFor(region uint64) uint8 { return uint8((bits.Len64(region) + fanoutBits - 1) / fanoutBits) }

func regionOf(off uint64) uint64 { return off >> regionBits }
