package check

import (
	"bytes"
	"errors"
	"fmt"
)

// journaled compares the state that checkpoints give with the rows. Memory: a key for each row in a delta and each marker, a bit for each chunk.
type journaled struct {
	r      *run
	j      *journalRow
	dec    *frameReader
	marked map[string]bool
	seen   map[string]bool // keys of deltas
	rows   map[byte]uint64 // rows by table that checkpoints have and that are not marked
	live   idSet
	bits   map[string]string // rows of table L of one checkpoint
	count  int               // of rows of counters that were compared
}

const journaledUnit = "M|j"

// journaledTables are those that checkpoints hold row by row.
var journaledTables = []byte{tableDead, tableJob, tableRadix, tablePage, tableRef, tableNode, tableTouched, tableVolume}

// compareState compares the rows with a full checkpoint and the deltas after it, the newest first: what that says of a key counts.
func (r *run) compareState(j *journalRow, full checkpoint, deltas []checkpoint) error {
	dec, err := newFrameReader(nil)
	if err != nil {
		return err
	}
	defer dec.close()
	s := &journaled{r: r, j: j, dec: dec, marked: map[string]bool{}, seen: map[string]bool{}, rows: map[byte]uint64{}}
	if err := s.readMarkers(); err != nil {
		return err
	}
	way := append(deltas[:len(deltas):len(deltas)], full)
	for i, c := range way {
		if err := s.each(c, func(row *partRow) error { return s.row(row, i < len(deltas)) }); err != nil {
			return err
		}
	}
	for i := len(way) - 1; i >= 0; i-- {
		s.bits = map[string]string{}
		if err := s.each(way[i], s.liveRow); err != nil {
			return err
		}
	}
	if err := s.compareTables(); err != nil {
		return err
	}
	return s.compareChunks()
}

// each calls f with each row of a checkpoint.
func (s *journaled) each(c checkpoint, f func(row *partRow) error) error {
	for i := range c {
		p, err := s.r.readPart(&c[i], s.dec)
		if err != nil {
			return err
		}
		for k := range p.rows {
			if err := f(&p.rows[k]); err != nil {
				return err
			}
		}
	}
	return s.r.ctx.Err()
}

// readMarkers reads which rows changed since.
func (s *journaled) readMarkers() error {
	r := s.r
	return r.meta.scan([]byte{tableMarker}, []byte{tableMarker + 1}, func(key, value []byte) error {
		if !markerKeyOK(key) {
			return nil // checkKeys has said so
		}
		gen, row := uint32(key[1])<<24|uint32(key[2])<<16|uint32(key[3])<<8|uint32(key[4]), key[5:]
		r.expect(gen > s.j.Gen, unit(key), 1, fmt.Sprintf("a generation above %d", s.j.Gen), gen)
		r.expect(len(value) == 0, unit(key), 0, "no value", fmt.Sprintf("%d B", len(value)))
		s.marked[string(row)] = true
		if t := row[0]; t != tablePage && t != tableRadix {
			return nil
		}
		_, err := r.meta.get(row)
		if err == nil {
			r.fail(unit(key), 0, "no row "+unit(row)+", which can only have gone", "a row")
		} else if errors.Is(err, errNoRow) {
			err = nil
		}
		return err
	})
}

// row compares one row of a checkpoint, unless a newer one has the same key.
func (s *journaled) row(p *partRow, delta bool) error {
	r, t := s.r, p.key[0]
	if t == tableLive || s.seen[string(p.key)] {
		return nil
	}
	if delta || t == tableMeta {
		s.seen[string(p.key)] = true
	}
	if t == tableMeta {
		return s.counters(p.value)
	}
	if s.marked[string(p.key)] {
		return nil
	}
	b, err := r.meta.get(p.key)
	switch {
	case errors.Is(err, errNoRow):
		r.expect(p.gone, unit(p.key), 0, "the row that the checkpoints have, or a marker", "none")
		return nil
	case err != nil:
		return err
	case p.gone:
		r.fail(unit(p.key), 0, "no row, as the checkpoints say, or a marker", "a row")
	default:
		r.expect(bytes.Equal(b, p.value), unit(p.key), 0, "the value that the checkpoints have, or a marker", "another one")
		s.rows[t]++
	}
	return nil
}

// counters compares those of the newest checkpoint with what the row M|j repeats of them.
func (s *journaled) counters(b []byte) error {
	r, j, now := s.r, s.j, &s.r.tree.counters
	c, err := parseCounters(b)
	if err != nil {
		r.noteErr("counters in a checkpoint", err)
		return nil
	}
	same := c.Watermark == j.Watermark && c.AppliedSeq == j.AppliedSeq && c.Page == j.Page && c.Chunk == j.Chunk
	r.expect(same, journaledUnit, 16, fmt.Sprintf("watermark %d, applied %d, page %d, chunk %d, as its counters say", c.Watermark, c.AppliedSeq, c.Page, c.Chunk), fmt.Sprint(j.Watermark, j.AppliedSeq, j.Page, j.Chunk))
	older := c.Watermark <= now.Watermark && c.AppliedSeq <= now.AppliedSeq && c.Page <= now.Page && c.Chunk <= now.Chunk && c.Segment <= now.Segment && c.NextVolume <= now.NextVolume && c.Row <= now.Row
	r.expect(older, countersUnit, 8, "numbers not below those of the newest checkpoint", fmt.Sprintf("%+v after %+v", *now, c))
	s.count++
	return nil
}

// liveRow notes which chunks there are. It is called with the oldest checkpoint first.
func (s *journaled) liveRow(p *partRow) error {
	if p.key[0] != tableLive {
		return nil
	}
	if before, twice := s.bits[string(p.key)]; twice {
		s.r.expect(before == string(p.value), unit(p.key), 0, "the value that the same checkpoint had before", "another one")
	}
	s.bits[string(p.key)] = string(p.value)
	p.eachLive(s.live.set)
	return nil
}

// compareTables finds rows that the checkpoints do not have: all that they have was found.
func (s *journaled) compareTables() error {
	s.r.expect(s.count == 1, journaledUnit, 8, "a checkpoint with counters", "none")
	for _, t := range journaledTables {
		n := uint64(0)
		err := s.r.meta.table(t, func(key, _ []byte) error {
			if fresh := (t == tablePage || t == tableRadix) && keyField(key, 0) > s.j.Page; !fresh && !s.marked[string(key)] {
				n++
			}
			return nil
		})
		if err != nil {
			return err
		}
		s.r.expect(n <= s.rows[t], fmt.Sprintf("metadata table %c", t), 0, fmt.Sprintf("%d rows that are in the checkpoints or marked", s.rows[t]), n)
	}
	return nil
}

// compareChunks compares which chunks there are.
func (s *journaled) compareChunks() error {
	r := s.r
	err := r.meta.table(tableChunk, func(key, _ []byte) error {
		if id := keyField(key, 0); id <= s.j.Chunk {
			r.expect(s.live.has(id), unit(key), 0, "a chunk that the checkpoints have, or none", "a row")
			s.live.remove(id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.live.each(func(id uint64) {
		key := key64(tableChunk, id)
		r.expect(s.marked[string(key64(tableLive, id/livePerRow))], unit(key), 0, "the row that the checkpoints have, or a marker", "none")
	})
	return nil
}
