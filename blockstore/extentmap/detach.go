package extentmap

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Detach makes [off, off+n) a hole. Pages and nodes that lie wholly inside are cut off and reported as subtrees, unread, so the cost is that of the two edges, whatever
// the range holds. Parts of regions at the ends are replaced by nothing. The range may reach beyond the tree.
func (u *Update) Detach(off, n uint64) error {
	if u.err == nil {
		u.err = u.detach(off, n)
	}
	return u.err
}

func (u *Update) detach(off, n uint64) error {
	end := off + n
	if end < off || end > block.MaxVolumeSize {
		return fmt.Errorf("detach %d+%d: %w", off, n, block.ErrOutOfRange)
	}
	lo, hi := regionOf(off+block.RegionSize-1), regionOf(end) // whole regions are [lo, hi)
	if off < lo<<regionBits && off < end {
		head := min(end, lo<<regionBits)
		if err := u.replace(off, head-off, nil); err != nil {
			return err
		}
	}
	if tail := hi << regionBits; tail >= lo<<regionBits && tail < end {
		if err := u.replace(tail, end-tail, nil); err != nil {
			return err
		}
	}
	_, err := u.cutRange(&u.root, u.level, 0, lo, hi)
	return err
}

// cutRange empties the regions [lo, hi) of a subtree that starts at region. It reports whether that changed anything.
func (u *Update) cutRange(s *slot, level uint8, region, lo, hi uint64) (changed bool, err error) {
	if s.empty() || lo >= region+span(level) || hi <= region || lo >= hi {
		return false, nil
	}
	if lo <= region && region+span(level) <= hi {
		return true, u.cut(s, level, region)
	}
	n, err := u.openNode(s, level, region) // not a page: a page is inside the range or outside of it
	if err != nil {
		return false, err
	}
	for i := range n.child {
		c, err := u.cutRange(&n.child[i], level-1, region+uint64(i)*span(level-1), lo, hi)
		if err != nil {
			return false, err
		}
		changed = changed || c
	}
	if changed {
		u.soil(n)
	}
	return changed, nil
}

// cut empties a slot. What this update changed was never written: it is taken apart in memory. The rest is reported as subtrees.
func (u *Update) cut(s *slot, level uint8, region uint64) error {
	written := s.ref
	switch {
	case s.page != nil && s.page.dirty:
		if err := u.cutPage(s.page); err != nil {
			return err
		}
	case s.page != nil:
		written = s.page.base
	case s.node != nil && s.node.dirty:
		for i := range s.node.child {
			if err := u.cut(&s.node.child[i], level-1, region+uint64(i)*span(level-1)); err != nil {
				return err
			}
		}
	case s.node != nil:
		written = s.node.base
	}
	if written.id != 0 {
		u.sink.Subtree(Subtree{ID: written.id, Level: level, Region: region, Birth: written.birth})
	}
	*s = slot{}
	return nil
}
