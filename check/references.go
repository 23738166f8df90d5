package check

import (
	"errors"
	"fmt"
)

// checkMapped compares what each node says of the size of its map with the map. It may say more: what a trim cut off in one piece is not read and so still counts, until a job
// has freed it, or for good where an older state has it, too.
func (r *run) checkMapped() error {
	sizes := map[uint64]uint64{} // of subtrees, which nodes share
	for _, n := range r.tree.order {
		if n.purged() || !n.is(nodeStarted) || n.abandoned() {
			continue
		}
		got, err := r.mapped(n.Root, 0, sizes)
		if err != nil {
			return err
		}
		if got > n.Mapped {
			r.warn(n.unit(), 80, fmt.Sprintf("at least %d B of chunk extents, as its map has it", got), fmt.Sprint(n.Mapped))
		}
	}
	return nil
}

// mapped is how many bytes of chunk extents there are under a page or node.
func (r *run) mapped(x ref, region uint64, sizes map[uint64]uint64) (total uint64, err error) {
	if x.ID == 0 {
		return 0, nil
	}
	if n, known := sizes[x.ID]; known {
		return n, nil
	}
	if x.Level == 0 {
		p, err := r.loadPage(x, region, "a map")
		if err != nil || p == nil {
			return 0, err
		}
		for i := range p.Extents {
			if p.Extents[i].Kind == kindChunk {
				total += uint64(p.Extents[i].Len)
			}
		}
	} else {
		n, err := r.loadRadix(x, region, "a map")
		if err != nil || n == nil {
			return 0, err
		}
		for i, c := range n.Children {
			sub, err := r.mapped(c, region+uint64(i)*span(c.Level), sizes)
			if err != nil {
				return 0, err
			}
			total += sub
		}
	}
	sizes[x.ID] = total
	return total, nil
}

// checkReferences compares each count with the insertions that were found.
func (r *run) checkReferences() error {
	return r.meta.table(tableRef, func(key, value []byte) error {
		f := &fields{b: value}
		n := f.u64()
		f.rule(2 <= n && n <= 1<<62, 0, "a count from 2 to 2^62", "%d", n)
		if err := f.end(); err != nil {
			r.noteErr(unit(key), err)
			return nil
		}
		id := keyField(key, 0)
		if _, err := r.meta.get(key64(tableChunk, id)); errors.Is(err, errNoRow) {
			r.fail(unit(key), 0, "a chunk", "no row")
		} else if err != nil {
			return err
		}
		r.counted.add(id)
		r.expect(r.refs.get(id) == n, unit(key), 0, fmt.Sprintf("%d, as the maps have it", r.refs.get(id)), n)
		return nil
	})
}
