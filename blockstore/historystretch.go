package blockstore

import (
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// When a root is due by amount. A root costs: the head is closed, and every block that was written since the root before has to go down, though the log would have kept those that are rewritten all the time (hotset.go). So where the same blocks are
// written again and again, roots are far apart; what bounds them is how long a moment takes to open, and how much of a history goes at once when it is over its budget (docs/rfc/0034-roots-and-rewrites.md).
const (
	// historyRootWrites is how much may be written behind a root, in bytes, to however few blocks: two million records of a block, which a moment has to look through.
	historyRootWrites = 8 << 30
	// historyRootPart is the part of the budget that what is stored behind one root may be, as history goes from root to root; historyRootMost that of what is written within historyRootRest of the last one.
	historyRootPart = 8
	historyRootMost = 2
	historyRootRest = time.Minute
	// historyRootMoments is the part of the memory for moments that the layer of one may take.
	historyRootMoments = 2
	// stretchRegions bounds the regions of all volumes of which it is known which blocks were written, each 512 B; of others every block counts as another one.
	stretchRegions = 1 << 15
	// layerSlot and layerLeaf are what a block, and the first of 64 that lie together, take in the layer of a moment, in bytes.
	layerSlot = 23
	layerLeaf = 28
)

// stretch is what was copied of a volume behind a root. It belongs to historian.work.
type stretch struct {
	root    uint64 // sequence number
	copied  int64  // bytes of writes
	layer   int64  // what the layer of a moment at the end of it takes, bytes
	touched map[uint64]*regionBits
}

// regionBits has a bit for each block of a region, 64 for each leaf of a layer.
type regionBits [block.BlocksPerRegion / 64]uint64

// touch counts a write that was copied.
func (h *historian) touch(t *stretch, off, length uint64) {
	t.copied += int64(length)
	for b, end := off/block.Size, (off+length)/block.Size; b < end; {
		region := b / block.BlocksPerRegion
		next := min(end, (region+1)*block.BlocksPerRegion)
		bits := t.touched[region]
		if bits == nil && h.touched < stretchRegions {
			if t.touched == nil {
				t.touched = map[uint64]*regionBits{}
			}
			bits = new(regionBits)
			t.touched[region] = bits
			h.touched++
		}
		if bits == nil {
			t.layer += int64(next-b) * slotMemory
			b = next
			continue
		}
		for ; b < next; b++ {
			t.layer += bits.add(b % block.BlocksPerRegion)
		}
	}
}

// add notes a block of the region, and returns what it adds to a layer.
func (r *regionBits) add(b uint64) int64 {
	leaf, bit := &r[b/64], uint64(1)<<(b%64)
	was := *leaf
	*leaf |= bit
	switch {
	case was == 0:
		return layerSlot + layerLeaf
	case was&bit == 0:
		return layerSlot
	}
	return 0
}

// restart counts anew, behind a root.
func (h *historian) restart(t *stretch, root uint64) {
	h.touched -= len(t.touched)
	*t = stretch{root: root}
}

// rootDue reports whether enough was written since the last root, of which fresh is how much that is, in bytes. h.work is held.
func (h *historian) rootDue(vh *volumeHistory, fresh int64) bool {
	if n := h.s.opts.historyRootBytes; n > 0 {
		return fresh >= n
	}
	if fresh >= historyRootWrites {
		return true
	}
	waits, stored, layer := fresh, int64(0), int64(0)
	if t := &vh.stretch; t.root == vh.rootSeq { // else nothing was copied yet of what came behind the root
		waits, stored, layer = max(0, fresh-t.copied), vh.stream.BytesBehind(t.root), t.layer
	}
	most := h.s.opts.historyRootLayer
	if most == 0 {
		most = h.momentsMost() / historyRootMoments
	}
	part := int64(historyRootPart)
	if h.s.opts.Now().Sub(vh.rootAt) < historyRootRest {
		part = historyRootMost
	}
	return layer >= most || stored+waits >= h.budgetOf(vh)/part
}
