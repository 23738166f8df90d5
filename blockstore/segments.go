package blockstore

import (
	"context"
	"fmt"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

// segmentTable holds the rows of all segments: about 150 bytes for each 64 MiB of data.
type segmentTable struct {
	s    *Store
	mu   sync.RWMutex
	rows map[block.SegmentID]*segmentRow
}

func (t *segmentTable) get(id block.SegmentID) (segmentRow, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if r := t.rows[id]; r != nil {
		return *r, true
	}
	return segmentRow{}, false
}

// generation returns that of a segment; 0 if there is none.
func (t *segmentTable) generation(id block.SegmentID) uint32 {
	row, _ := t.get(id)
	return row.Generation
}

// apply takes over the rows of a committed batch.
func (t *segmentTable) apply(changed map[block.SegmentID]*segmentRow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, r := range changed {
		t.rows[id] = r
	}
}

func (t *segmentTable) remove(id block.SegmentID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.rows, id)
}

// all returns a copy of every row.
func (t *segmentTable) all() []segmentRow {
	t.mu.RLock()
	defer t.mu.RUnlock()
	rows := make([]segmentRow, 0, len(t.rows))
	for _, r := range t.rows {
		rows = append(rows, *r)
	}
	return rows
}

// readAt reads from a segment wherever it lies. A segment that is gone is ErrNotFound: the chunk's row has moved meanwhile.
func (t *segmentTable) readAt(ctx context.Context, id block.SegmentID, p []byte, off uint32, try bool) error {
	if id == 0 {
		return errLost
	}
	row, ok := t.get(id)
	if !ok {
		return fmt.Errorf("segment %06x: %w", id, block.ErrNotFound)
	}
	if row.Class == segment.Warm {
		t.s.cooler.reads.add(id, len(p))
	}
	if try {
		return t.s.tiers.TryReadAt(id, row.Placement, p, int64(off))
	}
	return t.s.tiers.ReadAt(ctx, id, row.Placement, p, int64(off))
}

// prefetch begins to bring bytes of a segment into memory. It is a hint.
func (t *segmentTable) prefetch(ctx context.Context, id block.SegmentID, off, n int64) {
	if row, ok := t.get(id); ok {
		t.s.tiers.Prefetch(ctx, id, row.Placement, off, n)
	}
}
