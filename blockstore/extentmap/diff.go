package extentmap

import (
	"context"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Diff calls visit, in order, for each part of a range in which two maps differ, until visit returns false. Parts are exact: bytes are the same if they come from the same place
// of the same chunk or source, or are both zero, both damaged or both holes; a hole and a zero differ. Touching ranges are joined. Subtrees of equal id are skipped unread, and so are the parts that two pages have in common.
func (m *Map) Diff(ctx context.Context, a, b Root, within block.Range, visit func(off, n uint64) bool) error {
	if within.Len == 0 {
		return nil
	}
	d := diff{m: m, ctx: ctx, visit: visit, within: within}
	if err := d.subtrees(a.Subtree(), b.Subtree(), max(a.Level, b.Level), 0); err != nil {
		return err
	}
	d.flush()
	return nil
}

// NextDifference returns where in a range two maps differ first. It costs a path through the differing parts of both, however much more differs.
func (m *Map) NextDifference(ctx context.Context, a, b Root, within block.Range) (off uint64, found bool, err error) {
	if within.Len == 0 {
		return 0, false, nil
	}
	d := diff{m: m, ctx: ctx, within: within, first: true, visit: func(at, _ uint64) bool {
		off, found = at, true
		return false
	}}
	err = d.subtrees(a.Subtree(), b.Subtree(), max(a.Level, b.Level), 0)
	return off, found, err
}

type diff struct {
	m        *Map
	ctx      context.Context // lives as long as the diff
	visit    func(off, n uint64) bool
	within   block.Range
	off, end uint64 // found, not yet visited
	first    bool   // the first difference will do, in whole or in part
	stopped  bool
}

func (d *diff) add(off, end uint64) {
	off, end = max(off, d.within.Off), min(end, d.within.End())
	if off >= end {
		return
	}
	if d.end != off || d.off == d.end {
		d.flush()
		d.off = off
	}
	d.end = end
	if d.first {
		d.flush()
	}
}

func (d *diff) flush() {
	if d.off < d.end && !d.stopped {
		d.stopped = !d.visit(d.off, d.end-d.off)
	}
	d.off, d.end = 0, 0
}

// subtrees compares two subtrees as children of a common level, which begins at a region. One may be lower than that: it is then the first descendant.
func (d *diff) subtrees(a, b Subtree, level uint8, region uint64) error {
	if a.ID == b.ID || d.stopped || region+span(level) <= regionOf(d.within.Off) || region > regionOf(d.within.End()-1) {
		return nil
	}
	if err := d.ctx.Err(); err != nil {
		return err
	}
	if level == 0 {
		return d.pages(a, b)
	}
	na, err := d.children(a, level)
	if err != nil {
		return err
	}
	nb, err := d.children(b, level)
	if err != nil {
		return err
	}
	for i := 0; i < Fanout && !d.stopped; i++ {
		if err := d.subtrees(na.at(i), nb.at(i), level-1, region+uint64(i)*span(level-1)); err != nil {
			return err
		}
	}
	return nil
}

// family are the children of a subtree at a level: those of a node, or, if the subtree is lower than that, itself alone.
type family struct {
	parent Subtree
	node   Node
}

func (d *diff) children(s Subtree, level uint8) (family, error) {
	f := family{parent: s}
	if s.ID == 0 || s.Level < level {
		return f, nil
	}
	var err error
	f.node, err = d.m.node(s, false)
	return f, err
}

func (f family) at(i int) Subtree {
	switch {
	case f.node.data != nil:
		return childAt(f.parent.Level, f.parent.Region, i, f.node.child(i))
	case i == 0:
		return f.parent
	}
	return Subtree{}
}

func (d *diff) pages(sa, sb Subtree) error {
	a, b, err := d.m.apart(sa, sb)
	if err != nil {
		return err
	}
	base := max(a.Region(), b.Region()) << regionBits // that of a hole is 0
	ca, cb := piece{e: a.entries()}, piece{e: b.entries()}
	for at := uint32(0); at < block.RegionSize && !d.stopped; {
		xa, enda := ca.at(at)
		xb, endb := cb.at(at)
		end := min(enda, endb)
		if xa != xb {
			d.add(base+uint64(at), base+uint64(end))
		}
		at = end
	}
	return nil
}

// piece moves along the entries of a page.
type piece struct {
	e entries
	i int
}

// at returns what lies at an offset of the region, reduced to where its bytes come from, and where that ends. Offsets must not fall from call to call.
func (p *piece) at(at uint32) (Extent, uint32) {
	for p.i < p.e.len() && p.e.end(p.i) <= at {
		p.i++
	}
	switch {
	case p.i == p.e.len():
		return Extent{}, block.RegionSize
	case p.e.off(p.i) > at:
		return Extent{}, p.e.off(p.i)
	}
	x := p.e.extent(p.i, 0).Slice(uint64(at), block.RegionSize)
	x.Off, x.Len, x.Birth = 0, 0, 0
	if x.Kind == KindChunk {
		x.Hash8 = [8]byte{}
	}
	return x, p.e.end(p.i)
}
