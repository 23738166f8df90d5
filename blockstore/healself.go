package blockstore

import (
	"context"
	"errors"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
)

// What the store itself may have of a lost chunk: another chunk of the same bytes, as when they were written again since, and the writes that brought them, as long as the log or a history keeps them.

// healedAtOnce bounds the chunks whose bytes are gathered at once, and healBatch the bytes that one batch stores.
const (
	healedAtOnce = 1024
	healBatch    = 4 << 20
)

// healSelf heals lost chunks out of what the store itself has.
func (s *Store) healSelf(ctx context.Context) error {
	for after, more := block.ChunkID(0), true; more; {
		var lost []LostChunk
		var err error
		if lost, more, err = s.LostChunks(ctx, after); err != nil || len(lost) == 0 {
			return err
		}
		after = lost[len(lost)-1].ID
		if lost, err = s.healFromTwins(ctx, lost); err != nil {
			return err
		}
		for part := range slices.Chunk(lost, healedAtOnce) {
			if err := s.healFromLog(ctx, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// healFromTwins heals lost chunks from others with the same bytes, and returns those that have none.
func (s *Store) healFromTwins(ctx context.Context, lost []LostChunk) (left []LostChunk, err error) {
	for _, c := range lost {
		twin, row, err := s.twin(c.ID)
		if errors.Is(err, block.ErrNotFound) {
			left = append(left, c)
			continue
		}
		if err != nil {
			return nil, err
		}
		raw := make([]byte, row.RawLen)
		if err := s.chunks.fetch(ctx, []wanted{{id: twin, row: row, p: raw}}, false); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			left = append(left, c) // the twin is no better
			continue
		}
		healed, err := s.Heal(ctx, []ChunkBytes{{c.ID, raw}})
		if err != nil {
			return nil, err
		}
		if len(healed) == 0 {
			left = append(left, c)
		}
	}
	return left, ctx.Err()
}

// twin returns another chunk that has the bytes of a lost one, by its hash, or ErrNotFound.
func (s *Store) twin(id block.ChunkID) (block.ChunkID, chunkRow, error) {
	m := s.beginMeta() // where rows and index can be read and nobody changes them
	defer m.abort()
	row, err := m.chunkRow(id)
	if err != nil {
		return 0, row, err
	}
	if row.lost() {
		return 0, row, block.ErrNotFound // the index goes by more of the hash than is known
	}
	twin, err := m.known(row.Hash, int(row.RawLen))
	if err != nil {
		return 0, row, err
	}
	if twin == id {
		return 0, row, block.ErrNotFound
	}
	row, err = m.chunkRow(twin)
	return twin, row, err
}

// logWant is a lost chunk of which writes may be in the log, at one of its places.
type logWant struct {
	id   block.ChunkID
	off  uint64 // in the volume
	raw  []byte
	have []bool // blocks of the volume, from the one on that off lies in
	left int    // of these that are not there yet
}

// healFromLog reads what the log still has of the places of lost chunks, in the order of the writes, and hands in whatever lies there together at any time, and then the same of histories. What neither has all of stays lost.
func (s *Store) healFromLog(ctx context.Context, lost []LostChunk) error {
	h := s.newLogHealer(ctx, lost)
	if len(h.wants) == 0 {
		return nil
	}
	if err := s.log.Sync(ctx); err != nil { // only what is durable can be read again
		return err
	}
	durable, _ := s.log.Durable()
	for _, f := range s.log.LiveFiles() {
		if err := noSource(ctx, s.log.Records(f.ID, 0, durable, h.record)); err != nil {
			return err
		}
	}
	if err := h.store(); err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(lost), func(c LostChunk) bool { return h.healed[c.ID] })
	return s.healFromHistory(ctx, s.newLogHealer(ctx, left))
}

// noSource passes over what went meanwhile, or cannot be read itself.
func noSource(ctx context.Context, err error) error {
	if ctx.Err() == nil && (errors.Is(err, block.ErrNotFound) || errors.Is(err, block.ErrCorrupt)) {
		return nil
	}
	return err
}

// healFromHistory is healFromLog for what volumes keep of their past.
func (s *Store) healFromHistory(ctx context.Context, h *logHealer) error {
	for id := range h.wants {
		s.tree.RLock()
		v := s.volumes[id]
		s.tree.RUnlock()
		if v == nil {
			continue
		}
		vh := v.history.Load()
		if vh == nil {
			continue
		}
		_, release, err := s.historian.catchUp(ctx, vh)
		if err != nil {
			return err
		}
		err = vh.stream.Each(0, ^uint64(0), func(r *history.Record) error {
			switch r.Kind {
			case history.Write:
				return h.piece(id, block.Range{Off: r.Off, Len: r.Len}, func(at uint64) error {
					return s.historian.set.ReadAt(h.sector[:], r.Pos+at, r.Sums[at/block.Size:at/block.Size+1])
				})
			case history.Trim, history.Zero:
				return h.piece(id, block.Range{Off: r.Off, Len: r.Len}, h.zero)
			}
			return ctx.Err()
		})
		release()
		if err := noSource(ctx, err); err != nil {
			return err
		}
	}
	return h.store()
}

// newLogHealer finds out where volumes had the bytes of lost chunks.
func (s *Store) newLogHealer(ctx context.Context, lost []LostChunk) *logHealer {
	h := &logHealer{s: s, ctx: ctx, wants: map[block.VolumeID][]*logWant{}, healed: map[block.ChunkID]bool{}}
	wants := h.wants
	s.tree.RLock()
	defer s.tree.RUnlock()
	for _, c := range lost {
		seen := map[[2]uint64]bool{}
		for _, p := range c.Places {
			v := s.names[p.Volume]
			if v == nil || seen[[2]uint64{uint64(v.id), p.Offset}] {
				continue
			}
			seen[[2]uint64{uint64(v.id), p.Offset}] = true
			blocks := int((p.Offset+uint64(c.Length)+block.Size-1)/block.Size - p.Offset/block.Size)
			wants[v.id] = append(wants[v.id], &logWant{id: c.ID, off: p.Offset, raw: make([]byte, c.Length), have: make([]bool, blocks), left: blocks})
			h.most = max(h.most, uint64(c.Length))
		}
	}
	for _, of := range wants {
		slices.SortFunc(of, func(a, b *logWant) int { return int(min(1, max(-1, int64(a.off-b.off)))) })
	}
	return h
}

// logHealer is one pass over the log, or over histories.
type logHealer struct {
	s      *Store
	ctx    context.Context
	wants  map[block.VolumeID][]*logWant // by offset
	most   uint64                        // the longest, bytes
	found  []ChunkBytes
	bytes  int
	healed map[block.ChunkID]bool
	sector [block.Size]byte
}

// record takes what one record of the log has of wanted places.
func (h *logHealer) record(r *journal.Replayed) error {
	switch r.Kind {
	case journal.Write:
		return h.piece(r.Volume, block.Range{Off: r.Off, Len: r.Len}, func(at uint64) error {
			return h.s.log.ReadMapped(h.sector[:], r.Pos+journal.Pos(at), r.Sums[at/block.Size:at/block.Size+1])
		})
	case journal.Trim, journal.Zero:
		return h.piece(r.Volume, block.Range{Off: r.Off, Len: r.Len}, h.zero)
	}
	return h.ctx.Err()
}

// zero is what a trimmed block reads as.
func (h *logHealer) zero(uint64) error {
	clear(h.sector[:])
	return nil
}

// piece takes what a change of a range has of wanted places. read fills sector with the block at an offset of the range.
func (h *logHealer) piece(id block.VolumeID, r block.Range, read func(at uint64) error) error {
	of := h.wants[id]
	first, _ := slices.BinarySearchFunc(of, r.Off-min(r.Off, h.most), func(w *logWant, off uint64) int { return int(min(1, max(-1, int64(w.off-off)))) })
	for _, w := range of[first:] {
		if w.off >= r.End() {
			break
		}
		if h.healed[w.id] || w.off+uint64(len(w.raw)) <= r.Off {
			continue
		}
		if err := h.take(w, r, read); err != nil {
			return err
		}
	}
	return h.ctx.Err()
}

// take copies what a change has of one place.
func (h *logHealer) take(w *logWant, r block.Range, read func(at uint64) error) error {
	base := w.off / block.Size * block.Size
	for i := range w.have {
		off := base + uint64(i)*block.Size // of the block, in the volume
		if off < r.Off || off+block.Size > r.End() {
			continue
		}
		if err := read(off - r.Off); err != nil {
			if errors.Is(err, block.ErrCorrupt) {
				continue
			}
			return err
		}
		if !w.have[i] {
			w.have[i] = true
			w.left--
		}
		if off < w.off {
			copy(w.raw, h.sector[w.off-off:])
		} else {
			copy(w.raw[off-w.off:], h.sector[:])
		}
	}
	if w.left > 0 {
		return nil
	}
	// A later record may write over it: it is looked at whenever it is complete.
	row, err := h.s.chunks.row(w.id)
	if err != nil {
		if errors.Is(err, block.ErrNotFound) {
			return nil
		}
		return err
	}
	t := h.s.chunks.tools.Get().(*frameTools)
	right := row.means(w.raw, t.hash.Sum(w.raw))
	h.s.chunks.tools.Put(t)
	if !right {
		return nil
	}
	h.healed[w.id] = true
	h.found = append(h.found, ChunkBytes{w.id, w.raw})
	if h.bytes += len(w.raw); h.bytes < healBatch {
		return nil
	}
	return h.store()
}

// store hands in what was found.
func (h *logHealer) store() error {
	if len(h.found) == 0 {
		return nil
	}
	_, err := h.s.Heal(h.ctx, h.found)
	h.found, h.bytes = nil, 0
	return err
}
