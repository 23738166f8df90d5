package check

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// checkMaps walks everything that holds pages, nodes and references, each of these exactly once.
//
// An element (page, radix node, extent) is born in one node, and its birth is that node's id. What is born after a node's bound, the id of the nearest older state, is not
// in any map below it, and what is born at or before it is the older state's, which the node was given. So the map of each node counts for what was born after its bound,
// and all together count everything once. A node that is being purged does not count: a leaf's map has become a job; an inner node's is held by its child, and what the
// child dropped by the child's deadlist, whose entries born after the child's bound are the only ones that hold anything. Jobs hold what they have not done yet.
func (r *run) checkMaps() error {
	for _, n := range r.tree.order {
		if !n.purged() && n.is(nodeStarted) {
			if err := r.walkOwned(n, n.unit(), n.Root, 0, 0); err != nil {
				return err
			}
		}
		for _, j := range n.jobs {
			if err := r.walkOwned(n, j.unit, j.ref, j.region, j.cursor); err != nil {
				return err
			}
		}
	}
	if err := r.checkDeadlists(); err != nil {
		return err
	}
	if err := r.checkReached(tablePage, "page"); err != nil {
		return err
	}
	return r.checkReached(tableRadix, "radix node")
}

// walkOwned counts what of a subtree was born after the bound of n.
func (r *run) walkOwned(n *treeNode, holder string, x ref, region, cursor uint64) error {
	w := walker{r: r, unit: holder, bound: n.Bound, cursor: cursor}
	w.radix = func(x *radix) { r.own(unit64(tableRadix, x.ID), x.ID, holder) }
	w.page = func(p *page) error {
		r.own(unit64(tablePage, p.ID), p.ID, holder)
		for _, x := range p.Parts {
			if x.Birth > n.Bound {
				r.own(unit64(tablePage, x.ID), x.ID, holder)
			}
		}
		for i := range p.Extents {
			x := &p.Extents[i]
			if x.Birth > n.Bound {
				r.rep.Totals.Extents++
			}
			if x.Kind != kindChunk {
				continue
			}
			if x.Birth > n.Bound {
				r.refs.add(x.Chunk)
				r.rep.Totals.References++
			}
			if err := r.checkExtent(n, p, i); err != nil {
				return err
			}
		}
		return nil
	}
	return w.walk(x, region)
}

// own notes that a page or node is held. Two holders would free it twice.
func (r *run) own(unit string, id uint64, holder string) {
	if !r.owned.add(id) {
		r.fail(unit, 0, "one holder", "another one: "+holder)
	}
}

// checkExtent compares an extent with the row of its chunk.
func (r *run) checkExtent(n *treeNode, p *page, i int) error {
	x := &p.Extents[i]
	u, at := p.unitOf(i)
	where := r.place(n, p.Region<<regionBits+uint64(x.Off), uint64(x.Len))
	finding, bad := r.bad[x.Chunk]
	if bad {
		r.addPlace(finding, where)
	}
	b, err := r.meta.get(key64(tableChunk, x.Chunk))
	if errors.Is(err, errNoRow) {
		if bad {
			return nil
		}
		r.bad[x.Chunk] = r.fail(unit64(tableChunk, x.Chunk), 0, "a row of a chunk that extents refer to", "none")
		r.addPlace(r.bad[x.Chunk], where)
		return nil
	}
	if err != nil {
		return err
	}
	row, err := parseChunkRow(b)
	if err != nil {
		return nil // checkChunks has said so
	}
	if want := binary.LittleEndian.Uint64(row.Hash[:8]); want != x.Hash {
		r.addPlace(r.fail(u, at+32, fmt.Sprintf("hash %016x of chunk %d", want, x.Chunk), fmt.Sprintf("%016x", x.Hash)), where)
	}
	if end := uint64(x.ChunkOff) + uint64(x.Len); end > uint64(row.RawLen) {
		r.addPlace(r.fail(u, at+12, fmt.Sprintf("a place in the %d B of chunk %d", row.RawLen, x.Chunk), fmt.Sprintf("%d+%d", x.ChunkOff, x.Len)), where)
	}
	return nil
}

// checkDeadlists decodes all deadlist rows and counts those that are the only holders of what they list.
func (r *run) checkDeadlists() error {
	return r.meta.table(tableDead, func(key, value []byte) error {
		u := unit(key)
		entries, err := parseDead(value)
		if err != nil {
			r.noteErr(u, err)
			return nil
		}
		r.rep.Totals.DeadlistEntries += uint64(len(entries))
		r.checkRowNumber(key, 3)
		n, birth := r.tree.nodes[keyField(key, 1)], keyField(key, 2)
		r.expect(keyField(key, 0) == 0, u, 0, "volume field 0", keyField(key, 0))
		if !r.expect(n != nil, u, 0, "a node that exists", keyField(key, 1)) {
			return nil
		}
		if !r.expect(birth > 0 && birth < n.ID, u, 0, fmt.Sprintf("a birth below %d", n.ID), birth) || birth <= n.Bound {
			return nil // the older state holds it, see checkInheritance
		}
		r.expect(n.parent != nil && n.parent.purged(), u, 0, fmt.Sprintf("a birth up to bound %d, or a parent that is being purged", n.Bound), birth)
		for _, d := range entries {
			if err := r.ownDead(n, u, d, birth); err != nil {
				return err
			}
		}
		return nil
	})
}

// ownDead counts an entry that holds something.
func (r *run) ownDead(n *treeNode, holder string, d dead, birth uint64) error {
	switch d.Kind {
	case deadPage:
		r.own(unit64(tablePage, d.ID), d.ID, holder)
	case deadRadix:
		r.own(unit64(tableRadix, d.ID), d.ID, holder)
	case deadChunk:
		r.refs.add(d.ID)
		r.rep.Totals.References++
	case deadSubtree:
		return r.walkOwned(n, holder, ref{d.ID, d.Level, birth}, d.Region, 0)
	}
	return nil
}

// checkReached finds rows of pages or nodes that nothing holds: space that never comes back.
func (r *run) checkReached(table byte, what string) error {
	return r.meta.table(table, func(key, value []byte) error {
		if table == tablePage {
			r.rep.Totals.Pages++
		} else {
			r.rep.Totals.RadixNodes++
		}
		id := keyField(key, 0)
		r.expect(id <= r.tree.counters.Page, unit(key), 0, fmt.Sprintf("an id up to %d", r.tree.counters.Page), id)
		if r.owned.has(id) {
			return nil
		}
		r.fail(unit(key), 0, "a holder: a root, deadlist or job", "none: this "+what+" is leaked")
		return nil
	})
}
