package blockstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

// What parity and copies do not reach can be had from somebody else: a backup, or the log. Whoever has bytes that may be those of a lost chunk hands them in, and the hash of the chunk's row decides. They go into
// the open segment of what survives, as the garbage collector's do, and the row leads there from then on: neither maps nor references change, so all volumes, snapshots and clones that need the chunk are whole at once.

// LostChunk is a chunk that cannot be read, by parity and copies neither.
type LostChunk struct {
	ID     block.ChunkID
	Length uint32 // bytes
	Places []ChunkPlace
}

// ChunkPlace is where the bytes of a chunk lay, or lie, one after the other. Of one that was overwritten in part the state does not need all.
type ChunkPlace struct {
	Volume   string
	Snapshot string // empty: the volume as it is
	Offset   uint64 // of the chunk's first byte
}

// ChunkBytes are what may be the bytes of a chunk.
type ChunkBytes struct {
	ID  block.ChunkID
	Raw []byte
}

const (
	// maxLostChunks bounds the lost chunks that are listed at once; what is healed makes room for others.
	maxLostChunks = 1 << 14
	// maxChunkPlaces bounds the places of one.
	maxChunkPlaces = 16
)

// LostChunks lists chunks that are known to be lost, by their ids from after on, at most maxLostChunks, and whether there may be more. It reads the rows of all chunks, and all maps if one is lost: it is for a repair that somebody asked for.
func (s *Store) LostChunks(ctx context.Context, after block.ChunkID) (lost []LostChunk, more bool, err error) {
	if _, err := s.stepDamaged(ctx); err != nil { // what reads found since the last round
		return nil, false, err
	}
	if lost, more, err = s.flaggedChunks(ctx, after); err != nil || len(lost) == 0 {
		return nil, false, err
	}
	at := make(map[block.ChunkID]int, len(lost))
	for i := range lost {
		at[lost[i].ID] = i
	}
	err = s.eachExtent(ctx, func(volume, snapshot string, e extentmap.Extent) {
		i, wanted := at[e.Chunk]
		if e.Kind != extentmap.KindChunk || !wanted || e.Off < uint64(e.ChunkOff) {
			return
		}
		c, p := &lost[i], ChunkPlace{volume, snapshot, e.Off - uint64(e.ChunkOff)}
		if len(c.Places) < maxChunkPlaces && !slices.Contains(c.Places, p) {
			c.Places = append(c.Places, p)
		}
	})
	return lost, more, err
}

// flaggedChunks returns the chunks whose rows say that they cannot be read.
func (s *Store) flaggedChunks(ctx context.Context, after block.ChunkID) (lost []LostChunk, more bool, err error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: key64(keyChunk, uint64(after)+1), UpperBound: []byte{keyChunk + 1}})
	if err != nil {
		return nil, false, err
	}
	for ok := it.First(); ok && ctx.Err() == nil; ok = it.Next() {
		id := block.ChunkID(binary.BigEndian.Uint64(it.Key()[1:]))
		row, err := decodeChunkRow(id, it.Value())
		if err != nil || row.Flags&chunkDamaged == 0 {
			continue // a bad row is found by who needs it
		}
		if more = len(lost) == maxLostChunks; more {
			break
		}
		lost = append(lost, LostChunk{ID: id, Length: row.RawLen})
	}
	return lost, more, errors.Join(it.Error(), it.Close(), ctx.Err())
}

// eachExtent calls visit with the extents of all volumes and snapshots that can be seen. It may call it more than once for one of which the map moves meanwhile.
func (s *Store) eachExtent(ctx context.Context, visit func(volume, snapshot string, e extentmap.Extent)) error {
	for _, st := range s.visibleStates() {
		err := block.ErrNotFound
		for try := 0; errors.Is(err, block.ErrNotFound) && try < maxReadRetries; try++ {
			err = s.maps.Lookup(st.n.effectiveRoot(), 0, block.MaxVolumeSize, func(e extentmap.Extent) bool {
				visit(st.volume, st.snapshot, e)
				return ctx.Err() == nil
			})
		}
		if err = errors.Join(err, ctx.Err()); err != nil && !errors.Is(err, block.ErrNotFound) {
			return err
		}
	}
	return nil
}

// Heal takes bytes of lost chunks and returns the ids of those that are whole now, durably: it believes nobody, so only what has the chunk's own length and hash is taken. Anything else, a chunk that is not lost, and one
// that is gone are left out, which is no error.
func (s *Store) Heal(ctx context.Context, all []ChunkBytes) (healed []block.ChunkID, err error) {
	t := s.chunks.tools.Get().(*frameTools)
	defer s.chunks.tools.Put(t)
	var good []segment.Chunk
	for _, c := range all {
		row, err := s.chunks.row(c.ID)
		if errors.Is(err, block.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if sum := t.hash.Sum(c.Raw); row.means(c.Raw, sum) {
			good = append(good, segment.Chunk{ID: c.ID, Hash: sum, Raw: c.Raw})
		}
	}
	slices.SortFunc(good, func(a, b segment.Chunk) int { return cmp.Compare(a.ID, b.ID) })
	good = slices.CompactFunc(good, func(a, b segment.Chunk) bool { return a.ID == b.ID })
	if len(good) == 0 || ctx.Err() != nil {
		return nil, ctx.Err()
	}
	from := map[block.SegmentID]bool{}
	m := s.beginMeta()
	for _, c := range good {
		row, err := m.chunkRow(c.ID)
		if err == nil && row.means(c.Raw, c.Hash) { // it may have gone meanwhile, or been healed
			from[row.Segment] = true
			healed = append(healed, c.ID)
			err = s.mover.add(m, packChunk{Chunk: c, moved: true})
		}
		if err != nil && !errors.Is(err, block.ErrNotFound) {
			s.forgetPacked()
			m.abort()
			return nil, fmt.Errorf("store the bytes of lost chunk %d again: %w", c.ID, err)
		}
	}
	if err := s.mover.sync(m); err != nil {
		s.forgetPacked()
		m.abort()
		return nil, fmt.Errorf("store the bytes of lost chunks again: %w", err)
	}
	s.damaged.forget(healed)
	if err := m.commit(); err != nil {
		return nil, fmt.Errorf("store the bytes of lost chunks again: %w", err)
	}
	s.keeper.healed(from, len(healed))
	return healed, nil
}

// means reports whether the chunk of a row is lost and has these bytes. The rows of chunks that a rebuild of the metadata did not find know 8 bytes of the hash, all others 16.
func (r *chunkRow) means(raw []byte, sum block.Hash) bool {
	known := 16
	if r.lost() {
		known = 8
	}
	return r.Flags&chunkDamaged != 0 && len(raw) == int(r.RawLen) && bytes.Equal(r.Hash[:known], sum[:known])
}

// forget forgets chunks that are whole again.
func (d *damagedChunks) forget(ids []block.ChunkID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range ids {
		delete(d.ids, id)
	}
}

// healed notes that chunks of segments were stored elsewhere. The next repair looks at these again: what is left of the damage may concern nobody.
func (k *keeper) healed(from map[block.SegmentID]bool, chunks int) {
	k.counts.healed.Add(uint64(chunks))
	k.mu.Lock()
	defer k.mu.Unlock()
	for id := range from {
		k.mu.emptied[id] = true
	}
}

// harmless records a damaged segment in whose damage nothing lives any more, because it was healed. It can be given back like others.
func (k *keeper) harmless(row *segmentRow, d *Damage) bool {
	k.mu.Lock()
	emptied := k.mu.emptied[row.ID]
	k.mu.Unlock()
	if !emptied || d.Chunks > 0 {
		return false
	}
	d.Mended, d.Lost, d.Reason = true, 0, ""
	k.s.damaged.mended(row.ID, nil)
	k.s.collector.forget(row.ID)
	k.record(d)
	return true
}
