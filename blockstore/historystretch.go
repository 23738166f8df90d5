package blockstore

import (
	"github.com/hyper-nixos/hyper-nixos/block"
)

// When a root is due by amount. A root costs: the head is closed, and every block that was written since the root before has to go down, though the log would have kept those that are rewritten all the time (hotset.go). So where the same blocks are
// written again and again, roots are far apart; what bounds them is how long a moment takes to open, and how much of a history goes at once when it is over its budget (docs/rfc/0034-roots-and-rewrites.md).
const (
	// historyRootBytes of different blocks bound what the layer of a moment takes.
	historyRootBytes = 4 << 30
	// historyRootWrites is how much may be written behind a root, in bytes, to however few blocks: two million records of a block, which a moment has to look through.
	historyRootWrites = 8 << 30
	// historyRootStored is the part of the budget that what is stored behind one root may be.
	historyRootStored = 3
	// stretchRegions bounds the regions of all volumes of which it is known which blocks were written, each 512 B; of others every block counts as another one.
	stretchRegions = 1 << 15
)

// stretch is what was copied of a volume behind a root. It belongs to historian.work.
type stretch struct {
	root    uint64 // sequence number
	copied  int64  // bytes of writes
	blocks  int64  // different ones
	touched map[uint64]*regionBits
}

// regionBits has a bit for each block of a region.
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
			t.blocks += int64(next - b)
			b = next
			continue
		}
		for ; b < next; b++ {
			i := b % block.BlocksPerRegion
			if bit := uint64(1) << (i % 64); bits[i/64]&bit == 0 {
				bits[i/64] |= bit
				t.blocks++
			}
		}
	}
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
	waits, stored, blocks := fresh, int64(0), int64(0)
	if t := &vh.stretch; t.root == vh.rootSeq { // else nothing was copied yet of what came behind the root
		waits, stored, blocks = max(0, fresh-t.copied), vh.stream.BytesBehind(t.root), t.blocks
	}
	different := int64(historyRootBytes)
	if n := h.s.opts.historyRootDifferent; n > 0 {
		different = n
	}
	return blocks*block.Size >= different || stored+waits >= h.budgetOf(vh)/historyRootStored
}
