package check

import (
	"encoding/binary"
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

// checkChunks checks the rows of chunks against what was found in segments, the live counters of these, and the hints.
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
	return r.checkHints()
}

// checkHints checks that each hint names a chunk with its hash: deletes of a chunk remove its hint, too.
func (r *run) checkHints() error {
	hinted := uint64(0)
	err := r.meta.table(tableHint, func(key, value []byte) error {
		u := unit(key)
		if !r.expect(len(value) == 8, u, 0, "8 B", len(value)) {
			return nil
		}
		id := binary.LittleEndian.Uint64(value)
		b, err := r.meta.get(key64(tableChunk, id))
		if errors.Is(err, errNoRow) {
			r.fail(u, 0, "a chunk that exists", fmt.Sprint(id))
			return nil
		}
		if err != nil {
			return err
		}
		if row, err := parseChunkRow(b); err == nil {
			r.expect(row.Hash == [16]byte(key[1:]), u, 0, "a chunk with this hash", fmt.Sprintf("chunk %d with %x", id, row.Hash))
		}
		hinted++
		return nil
	})
	r.rep.Totals.UnhintedChunks = r.rep.Totals.Chunks - min(hinted, r.rep.Totals.Chunks)
	return err
}
