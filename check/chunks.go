package check

import (
	"errors"
	"fmt"
)

// matchChunk compares a chunk in a frame with its row. A chunk without a row, or with one that names another place, is dead here.
func (r *run) matchChunk(segment uint64, at uint32, fr *frame, c *frameChunk) error {
	b, err := r.meta.get(key64(tableChunk, c.ID))
	if errors.Is(err, errNoRow) {
		return nil
	}
	if err != nil {
		return err
	}
	row, err := parseChunkRow(b)
	if err != nil || row.Segment != segment || row.FrameOff != at {
		return nil // damage is reported by checkChunks
	}
	if row.FrameLen == fr.Size && row.RawOff == c.RawOff && row.RawLen == c.RawLen && row.Hash == [16]byte(c.Hash[:16]) {
		r.stored.add(c.ID)
	}
	return nil
}

// checkChunks checks the rows of chunks against what was found in segments, the live counters of these, and the index.
func (r *run) checkChunks() error {
	last := uint64(0)
	err := r.meta.table(tableChunk, func(key, value []byte) error {
		id, u := keyField(key, 0), unit(key)
		last = id
		row, err := parseChunkRow(value)
		if err != nil {
			r.bad[id] = r.noteErr(u, err)
		}
		r.rep.Totals.Chunks++
		r.rep.Totals.ChunkBytes += uint64(row.RawLen)
		if row.lost() {
			r.lost++
			r.bad[id] = r.fail(u, 0, "a chunk in a segment", "one that was in no segment when the metadata was made anew")
			return nil
		}
		s := r.segments[row.Segment]
		if s == nil {
			r.bad[id] = r.fail(u, 0, "a segment that exists", fmt.Sprint(row.Segment))
			return nil
		}
		s.liveRaw += uint64(row.RawLen)
		s.liveChunks++
		if row.Flags&chunkDamaged != 0 {
			r.bad[id] = r.fail(u, 23, "a chunk that could be read", "one that is marked as damaged")
		} else if _, known := r.bad[id]; !known && !r.stored.has(id) {
			where := fmt.Sprintf("a frame of %d B at %d of segment %d that has it at %d+%d, with hash %x", row.FrameLen, row.FrameOff, row.Segment, row.RawOff, row.RawLen, row.Hash)
			r.bad[id] = r.fail(u, 0, where, "no such frame, or another chunk")
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.expect(last <= r.tree.counters.Chunk, countersUnit, 24, fmt.Sprintf("at least %d, the id of a chunk", last), r.tree.counters.Chunk)
	for id, s := range r.segments {
		u := unit64(tableSegment, id)
		r.expect(s.row.LiveRaw == s.liveRaw, u, 32, fmt.Sprintf("%d B live, as chunk rows have it", s.liveRaw), s.row.LiveRaw)
		r.expect(s.row.LiveChunks == s.liveChunks, u, 44, fmt.Sprintf("%d chunks live, as chunk rows have it", s.liveChunks), s.row.LiveChunks)
	}
	return r.checkIndex()
}
