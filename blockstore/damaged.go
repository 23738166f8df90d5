package blockstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// damagedChunks are chunks whose bytes failed a check. Their rows are marked soon, so that nothing is written as one more reference to them: the same bytes, written again,
// are stored again, and heal what they are written over.
type damagedChunks struct {
	mu   sync.Mutex
	ids  map[block.ChunkID]bool // whether the row is marked
	kept map[block.SegmentID]bool
}

// damagedMost bounds how many chunks are remembered: what is beyond is found again by the next read.
const damagedMost = 1 << 14

// noteIf remembers a chunk if an error says that it is damaged.
func (d *damagedChunks) noteIf(id block.ChunkID, err error) {
	if errors.Is(err, block.ErrCorrupt) {
		d.note(id)
	}
}

// note remembers a chunk.
func (d *damagedChunks) note(id block.ChunkID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.ids[id]; known || len(d.ids) >= damagedMost {
		return
	}
	if d.ids == nil {
		d.ids = make(map[block.ChunkID]bool)
	}
	d.ids[id] = false
}

// has reports whether a chunk is known to be damaged.
func (d *damagedChunks) has(id block.ChunkID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, known := d.ids[id]
	return known
}

// keep remembers that a segment cannot be given back until it is mended, as long as this process runs: what lives in it cannot be moved.
func (d *damagedChunks) keep(id block.SegmentID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kept == nil {
		d.kept = make(map[block.SegmentID]bool)
	}
	d.kept[id] = true
}

// keeps reports whether a segment was kept that way.
func (d *damagedChunks) keeps(id block.SegmentID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.kept[id]
}

// mended forgets what is known of a segment and of chunks in it, since it is whole again.
func (d *damagedChunks) mended(id block.SegmentID, chunks []block.ChunkID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.kept, id)
	for _, c := range chunks {
		delete(d.ids, c)
	}
}

// any reports whether a chunk is known to be damaged, of those given, or the segment is kept.
func (d *damagedChunks) any(id block.SegmentID, chunks []block.ChunkID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range chunks {
		if _, known := d.ids[c]; known {
			return true
		}
	}
	return d.kept[id]
}

// unmark takes the marks off the rows of the chunks in a segment that was found whole, or mended, and lets it be given back again. It reads their rows: marks outlive what is known of them here.
func (s *Store) unmark(ctx context.Context, row *segmentRow) (err error) {
	if isMetadata(row) {
		return nil
	}
	frames, err := s.directory(ctx, row)
	if err != nil {
		return err
	}
	var here, flagged []block.ChunkID
	rows := rowIter{}
	for i := range frames {
		for _, c := range frames[i].Chunks {
			r, e := rows.row(s.db, c.ID)
			if e != nil || r.Segment != row.ID {
				continue // it is elsewhere, or dead; an error of the database is found by whoever needs the row
			}
			here = append(here, c.ID)
			if r.Flags&chunkDamaged != 0 {
				flagged = append(flagged, c.ID)
			}
		}
	}
	if err := rows.close(); err != nil || len(flagged) == 0 && !s.damaged.any(row.ID, here) {
		return err
	}
	m := s.beginMeta()
	for _, id := range flagged {
		r, err := m.chunkRow(id)
		if errors.Is(err, block.ErrNotFound) || err == nil && r.Segment != row.ID {
			continue
		}
		if err == nil {
			r.Flags &^= chunkDamaged
			m.fresh[id] = r
			err = m.b.Set(key64(keyChunk, uint64(id)), r.encode(nil), nil)
		}
		if err != nil {
			m.abort()
			return fmt.Errorf("unmark chunk %d: %w", id, err)
		}
	}
	s.damaged.mended(row.ID, here) // before the commit: who meets damage after it marks anew
	s.collector.forget(row.ID)
	return m.commit()
}

// unmarked returns the chunks whose rows are not marked.
func (d *damagedChunks) unmarked() (ids []block.ChunkID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, marked := range d.ids {
		if !marked {
			ids = append(ids, id)
		}
	}
	return ids
}

// marked says that the row of a chunk is marked, or gone.
func (d *damagedChunks) marked(id block.ChunkID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.ids[id]; known { // else it was mended meanwhile
		d.ids[id] = true
	}
}

// stepDamaged marks the rows of damaged chunks.
func (s *Store) stepDamaged(context.Context) (bool, error) {
	ids := s.damaged.unmarked()
	if len(ids) == 0 {
		return false, nil
	}
	m := s.beginMeta()
	for _, id := range ids {
		row, err := m.chunkRow(id)
		if errors.Is(err, block.ErrNotFound) || err == nil && row.Flags&chunkDamaged != 0 {
			continue
		}
		if err == nil {
			row.Flags |= chunkDamaged
			m.fresh[id] = row
			err = m.b.Set(key64(keyChunk, uint64(id)), row.encode(nil), nil)
		}
		if err != nil {
			m.abort()
			return false, fmt.Errorf("mark chunk %d as damaged: %w", id, err)
		}
	}
	if err := m.commit(); err != nil {
		return false, err
	}
	for _, id := range ids {
		s.damaged.marked(id)
	}
	return false, nil
}
