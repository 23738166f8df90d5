package check

import "fmt"

// checkCounters looks at each chunk's count once more, for those without a row of it, and at the totals.
func (r *run) checkCounters() error {
	shared := uint64(0)
	err := r.meta.table(tableChunk, func(key, value []byte) error {
		id := keyField(key, 0)
		n := r.refs.get(id)
		if !r.counted.has(id) {
			r.expect(n == 1, unit64(tableRef, id), 0, fmt.Sprintf("%d references, as the maps have it", n), "no row, which means 1")
		}
		if row, err := parseChunkRow(value); err == nil && n > 1 {
			shared += uint64(row.RawLen)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.rep.Totals.SharedBytes = shared
	c, t := &r.tree.counters, &r.rep.Totals
	r.expect(c.Unique == t.ChunkBytes, countersUnit, 64, fmt.Sprintf("%d B of chunks", t.ChunkBytes), c.Unique)
	r.expect(c.Shared == shared, countersUnit, 72, fmt.Sprintf("%d B of shared chunks", shared), c.Shared)
	r.expect(c.StoreID == r.super.StoreID, countersUnit, 80, "store "+r.super.StoreID.String(), c.StoreID)
	r.expect(c.Nodes == uint64(t.Nodes), countersUnit, 104, fmt.Sprintf("%d rows of nodes", t.Nodes), c.Nodes)
	r.expect(c.Segments == uint64(len(r.segments)), countersUnit, 96, fmt.Sprintf("%d rows of segments", len(r.segments)), c.Segments)
	r.expect(c.Lost == r.lost, countersUnit, 112, fmt.Sprintf("%d lost chunks", r.lost), c.Lost)
	r.expect(c.Version == 1 || c.RowSum == r.rowSum, countersUnit, 120, fmt.Sprintf("sum %016x of the rows of volumes, nodes and segments", r.rowSum), fmt.Sprintf("%016x: one of these rows is not what it was", c.RowSum))
	r.expect(c.NextVolume > 0, countersUnit, 48, "a next volume", c.NextVolume)
	r.expect(c.AppliedSeq <= r.logEnd, countersUnit, 8, fmt.Sprintf("a record of the log, which ends with %d", r.logEnd), c.AppliedSeq)
	return nil
}
