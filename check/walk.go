package check

import (
	"errors"
	"fmt"
)

// walker visits what is born after a bound in one subtree.
type walker struct {
	r     *run
	unit  string // of the holder: a node, deadlist row or job
	bound uint64
	// cursor skips what a job has done already.
	cursor uint64
	page   func(p *page) error
	radix  func(n *radix)
	older  func(x ref, region uint64) error // in place of what is not born after the bound; may be nil
}

// walk visits a subtree, children before their parent. What cannot be read is a finding and left out.
func (w *walker) walk(x ref, region uint64) error {
	if x.ID == 0 || cursorAfter(x.Level, region) <= w.cursor {
		return nil
	}
	if x.Birth <= w.bound {
		if w.older != nil {
			return w.older(x, region)
		}
		return nil
	}
	if x.Level == 0 {
		p, err := w.r.loadPage(x, region, w.unit)
		if err != nil || p == nil {
			return err
		}
		return w.page(p)
	}
	if err := w.r.ctx.Err(); err != nil {
		return err
	}
	n, err := w.r.loadRadix(x, region, w.unit)
	if err != nil || n == nil {
		return err
	}
	for i, c := range n.Children {
		if err := w.walk(c, region+uint64(i)*span(c.Level)); err != nil {
			return err
		}
	}
	w.radix(n)
	return nil
}

// loadPage reads the page that x names at region. A page that is missing, damaged or another one is a finding, once, and nil. holder is who names it.
func (r *run) loadPage(x ref, region uint64, holder string) (*page, error) {
	u := unit64(tablePage, x.ID)
	b, err := r.meta.get(key64(tablePage, x.ID))
	if errors.Is(err, errNoRow) {
		r.broken(u, holder, "a page", "no row")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	parse := parsePage
	if isDirectory(b) {
		parse = parsePageList
	}
	p, err := parse(x.ID, b)
	if err != nil {
		r.brokenErr(u, holder, err)
		return nil, nil
	}
	if p.Birth != x.Birth || p.Region != region {
		r.broken(u, holder, fmt.Sprintf("birth %d, region %d, as its parent says", x.Birth, region), fmt.Sprintf("%d, %d", p.Birth, p.Region))
		return nil, nil
	}
	if len(p.Parts) > 0 {
		if whole, err := r.loadParts(p, holder); err != nil || !whole {
			return nil, err
		}
	}
	return p, nil
}

// loadRadix is loadPage for radix nodes.
func (r *run) loadRadix(x ref, region uint64, holder string) (*radix, error) {
	u := unit64(tableRadix, x.ID)
	b, err := r.meta.get(key64(tableRadix, x.ID))
	if errors.Is(err, errNoRow) {
		r.broken(u, holder, "a radix node", "no row")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	n, err := parseRadix(x.ID, b)
	if err != nil {
		r.brokenErr(u, holder, err)
		return nil, nil
	}
	if n.Birth != x.Birth || n.Region != region || n.Level != x.Level {
		r.broken(u, holder, fmt.Sprintf("birth %d, region %d, level %d, as its parent says", x.Birth, region, x.Level), fmt.Sprintf("%d, %d, %d", n.Birth, n.Region, n.Level))
		return nil, nil
	}
	return n, nil
}

// broken records damage of a page or node once, however often it is met.
func (r *run) broken(unit, holder, want, got string) {
	r.brokenErr(unit, holder, &fault{want: want, got: got})
}

func (r *run) brokenErr(unit, holder string, err error) {
	f := asFault(err)
	if !r.brokenMaps[unit] {
		r.brokenMaps[unit] = true
		r.fail(unit, f.off, f.want+", held by "+holder, f.got)
	}
}

// at returns what a map has at a level and first region: the page or node there, or a hole. A map that is lower than level has itself, or a part of itself, only there; that
// is found by whoever descends further.
func (r *run) at(root ref, level uint8, region uint64) (ref, error) {
	x, first := root, uint64(0)
	for x.ID != 0 && x.Level > level {
		if region >= first+span(x.Level) {
			return ref{}, nil
		}
		n, err := r.cachedRadix(x, first)
		if err != nil || n == nil {
			return ref{}, err
		}
		i := (region - first) / span(x.Level-1)
		x, first = n.Children[i], first+i*span(x.Level-1)
	}
	if x.Level != level || first != region {
		return ref{}, nil
	}
	return x, nil
}

// cachedRadix keeps the node of each level that was read last, since neighbours are asked for one after the other.
func (r *run) cachedRadix(x ref, region uint64) (*radix, error) {
	c := &r.lastRadix[x.Level]
	if *c != nil && (*c).ID == x.ID && (*c).Region == region && (*c).Birth == x.Birth {
		return *c, nil
	}
	n, err := r.loadRadix(x, region, "a map")
	if n != nil {
		*c = n
	}
	return n, err
}
