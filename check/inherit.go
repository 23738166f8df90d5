package check

import (
	"fmt"
	"maps"
	"slices"
)

// element is what a deadlist can name, for comparing.
type element struct {
	kind  uint8 // deadPage, deadRadix or deadChunk
	id    uint64
	birth uint64
}

// balance counts elements: up for those that a node was given and dropped, down for those that are listed as dropped.
type balance map[element]int

func (b balance) add(e element, n int) {
	if b[e] += n; b[e] == 0 {
		delete(b, e)
	}
}

// checkInheritance checks what each node was given by the state it began as: what it still has must be there, and what it dropped must be on its deadlist, or under a job
// that will put it there. Otherwise it is lost when the older state goes, or freed while the node still needs it.
func (r *run) checkInheritance() error {
	for _, n := range r.tree.order {
		if n.purged() || !n.is(nodeStarted) || n.abandoned() {
			continue // of a node that goes without heirs nothing is listed any more
		}
		if err := r.checkHeir(n); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) checkHeir(n *treeNode) error {
	given := ref{}
	base := n.base()
	if base != nil {
		given = base.root()
	}
	d := differ{r: r, n: n, bal: balance{}}
	if err := d.dropped(given, n.Root, 0); err != nil {
		return err
	}
	for o := n; o != nil && o != base; o = o.parent {
		if err := d.listed(o); err != nil {
			return err
		}
	}
	if err := d.kept(given); err != nil {
		return err
	}
	return d.report()
}

// differ compares a node's map with the one it was given.
type differ struct {
	r   *run
	n   *treeNode
	bal balance
}

// dropped books everything under a, of the older map, that is not in the node's map b. Both lie at region; b is a hole or, unless roots differ in height, of the same level.
func (d *differ) dropped(a, b ref, region uint64) error {
	r := d.r
	if a.ID == 0 || a.ID == b.ID {
		return nil
	}
	if b.ID != 0 && b.Level > a.Level {
		var err error
		if b, err = r.at(b, a.Level, region); err != nil {
			return err
		}
		return d.dropped(a, b, region)
	}
	if a.Level == 0 {
		return d.droppedPage(a, b, region)
	}
	na, err := r.loadRadix(a, region, "a map")
	if err != nil || na == nil {
		return err
	}
	d.bal.add(element{deadRadix, a.ID, a.Birth}, 1)
	var nb *radix
	if b.ID != 0 && b.Level == a.Level {
		if nb, err = r.loadRadix(b, region, "a map"); err != nil {
			return err
		}
	}
	for i, c := range na.Children {
		other := ref{}
		switch {
		case nb != nil:
			other = nb.Children[i]
		case i == 0 && b.Level < a.Level:
			other = b
		}
		if err := d.dropped(c, other, region+uint64(i)*span(a.Level-1)); err != nil {
			return err
		}
	}
	return r.ctx.Err()
}

func (d *differ) droppedPage(a, b ref, region uint64) error {
	pa, err := d.r.loadPage(a, region, "a map")
	if err != nil || pa == nil {
		return err
	}
	d.bal.add(element{deadPage, a.ID, a.Birth}, 1)
	pb := &page{}
	if b.ID != 0 {
		if pb, err = d.r.loadPage(b, region, "a map"); err != nil || pb == nil {
			return err
		}
	}
	still := pb.partSet()
	for _, x := range pa.Parts {
		if !still[x.ID] {
			d.bal.add(element{deadPage, x.ID, x.Birth}, 1)
		}
	}
	for i := range pa.Extents {
		if x := &pa.Extents[i]; x.Kind == kindChunk && !hasExtent(pb, x) {
			d.bal.add(element{deadChunk, x.Chunk, x.Birth}, 1)
		}
	}
	return nil
}

func hasExtent(p *page, x *extent) bool {
	i, found := slices.BinarySearchFunc(p.Extents, x.Off, func(e extent, off uint32) int { return int(e.Off) - int(off) })
	return found && p.Extents[i] == *x
}

// listed books what the deadlist of a node names, and what its jobs will put there.
func (d *differ) listed(o *treeNode) error {
	lower, upper := append(key64(tableDead, 0), key64(0, o.ID)[1:]...), append(key64(tableDead, 0), key64(0, o.ID+1)[1:]...)
	err := d.r.meta.scan(lower, upper, func(key, value []byte) error {
		entries, err := parseDead(value)
		if err != nil {
			return nil // checkDeadlists has said so
		}
		for _, e := range entries {
			if err := d.listedEntry(o, unit(key), e, keyField(key, 2)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, j := range o.jobs {
		if err := d.listedJob(o, &j); err != nil {
			return err
		}
	}
	return nil
}

// listedEntry books an entry. One that was born after the bound waits to be freed and is no matter of the older state; but a subtree becomes a job then, which will list what
// the subtree was given.
func (d *differ) listedEntry(o *treeNode, u string, e dead, birth uint64) error {
	x := ref{e.ID, e.Level, birth}
	switch {
	case e.Kind == deadSubtree && birth > d.n.Bound:
		return d.listedJob(o, &subtreeJob{unit: u, ref: x, region: e.Region})
	case e.Kind == deadSubtree:
		return d.expand(u, x, e.Region)
	case birth <= d.n.Bound:
		d.bal.add(element{e.Kind, e.ID, birth}, -1)
	}
	return nil
}

// expand books all that is under a subtree, whatever its birth.
func (d *differ) expand(u string, x ref, region uint64) error {
	w := walker{r: d.r, unit: u}
	w.radix = func(n *radix) { d.bal.add(element{deadRadix, n.ID, n.Birth}, -1) }
	w.page = func(p *page) error {
		d.bal.add(element{deadPage, p.ID, p.Birth}, -1)
		for _, x := range p.Parts {
			d.bal.add(element{deadPage, x.ID, x.Birth}, -1)
		}
		for i := range p.Extents {
			if x := &p.Extents[i]; x.Kind == kindChunk {
				d.bal.add(element{deadChunk, x.Chunk, x.Birth}, -1)
			}
		}
		return nil
	}
	return w.walk(x, region)
}

// listedJob books what a job will still list: the inherited part of its subtree.
func (d *differ) listedJob(o *treeNode, j *subtreeJob) error {
	w := walker{r: d.r, unit: j.unit, bound: o.Bound, cursor: j.cursor, radix: func(*radix) {}}
	w.page = func(p *page) error {
		for _, x := range p.Parts {
			if x.Birth <= o.Bound {
				d.bal.add(element{deadPage, x.ID, x.Birth}, -1)
			}
		}
		for i := range p.Extents {
			if x := &p.Extents[i]; x.Kind == kindChunk && x.Birth <= o.Bound {
				d.bal.add(element{deadChunk, x.Chunk, x.Birth}, -1)
			}
		}
		return nil
	}
	w.older = func(x ref, region uint64) error { return d.expand(j.unit, x, region) }
	return w.walk(j.ref, j.region)
}

// kept checks that what the node has and did not bring is what it was given.
func (d *differ) kept(given ref) error {
	w := walker{r: d.r, unit: d.n.unit(), bound: d.n.Bound, radix: func(*radix) {}}
	foreign := func(u, what string, birth uint64) {
		d.r.fail(u, 0, fmt.Sprintf("%s, born by %d, in the older state of %s, too", what, birth, d.n.unit()), "not there")
	}
	w.older = func(x ref, region uint64) error {
		got, err := d.r.at(given, x.Level, region)
		if err == nil && got != x {
			table := byte(tableRadix)
			if x.Level == 0 {
				table = tablePage
			}
			foreign(unit64(table, x.ID), "a subtree", x.Birth)
		}
		return err
	}
	w.page = func(p *page) error {
		old, err := d.givenPage(given, p.Region)
		if err != nil {
			return err
		}
		for _, x := range p.Parts {
			if x.Birth <= d.n.Bound && (old == nil || !old.hasPart(x.ID)) {
				foreign(unit64(tablePage, x.ID), "a part of a page", x.Birth)
			}
		}
		for i := range p.Extents {
			x := &p.Extents[i]
			if x.Birth <= d.n.Bound && (old == nil || !hasExtent(old, x)) {
				foreign(unit64(tablePage, p.ID), fmt.Sprintf("extent %d+%d", x.Off, x.Len), x.Birth)
			}
		}
		return nil
	}
	return w.walk(d.n.Root, 0)
}

func (d *differ) givenPage(given ref, region uint64) (*page, error) {
	x, err := d.r.at(given, 0, region)
	if err != nil || x.ID == 0 {
		return nil, err
	}
	return d.r.loadPage(x, region, "a map")
}

// report turns what is left of the balance into findings.
func (d *differ) report() error {
	left := slices.SortedFunc(maps.Keys(d.bal), func(a, b element) int {
		if a.kind != b.kind {
			return int(a.kind) - int(b.kind)
		}
		return int(int64(a.id) - int64(b.id))
	})
	names := map[uint8]byte{deadPage: tablePage, deadRadix: tableRadix, deadChunk: tableChunk}
	for _, e := range left {
		u := unit64(names[e.kind], e.id)
		if n := d.bal[e]; n > 0 {
			d.r.fail(u, 0, fmt.Sprintf("an entry, born by %d, on the deadlist of %s, which dropped it", e.birth, d.n.unit()), fmt.Sprintf("%d too few: it leaks", n))
		} else {
			d.r.fail(u, 0, fmt.Sprintf("no entry, born by %d, on the deadlist of %s, which still has it or never had it", e.birth, d.n.unit()), fmt.Sprintf("%d too many: it would be freed twice", -n))
		}
	}
	return nil
}
