package blockstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

// A sealed segment is rewritten when less than this part of it is live, in percent. While somebody settles, or when the disk is getting full, it pays to go further.
const (
	rewriteBelow         = 40
	rewriteBelowThorough = 80
)

// rewriteSlack is how many dead bytes a segment must hold at least to be rewritten: moving costs more than a few frames are worth.
const rewriteSlack = 1 << 20

// stepReclaim gives the space of one segment back that is wholly or mostly dead, and reports whether there was one.
func (s *Store) stepReclaim(ctx context.Context) (bool, error) {
	victim, ok := s.victim()
	if !ok {
		return false, nil
	}
	if victim.LiveChunks > 0 {
		if err := s.rewrite(ctx, &victim); err != nil {
			return false, fmt.Errorf("rewrite segment %06x: %w", victim.ID, err)
		}
	}
	return true, s.dropSegment(victim.ID)
}

// victim returns the segment with the least live share among those that are worth it.
func (s *Store) victim() (segmentRow, bool) {
	below := uint64(rewriteBelow)
	if s.thorough.Load() > 0 || SpaceState(s.space.state.Load()) != SpaceOK {
		below = rewriteBelowThorough
	}
	s.segments.mu.RLock()
	defer s.segments.mu.RUnlock()
	var best *segmentRow
	for _, r := range s.segments.rows {
		if r.State != segmentSealed {
			continue
		}
		dead := r.TotalRaw - r.LiveRaw
		if r.LiveChunks > 0 && (r.LiveRaw*100 >= r.TotalRaw*below || dead < rewriteSlack) {
			continue
		}
		if best == nil || r.LiveRaw*best.TotalRaw < best.LiveRaw*r.TotalRaw {
			best = r
		}
	}
	if best == nil {
		return segmentRow{}, false
	}
	return *best, true
}

// rewrite moves the live chunks of a segment into the open one. Chunks that die meanwhile are simply not moved: their rows are looked at under the metadata lock.
func (s *Store) rewrite(ctx context.Context, victim *segmentRow) error {
	frames, err := s.directory(ctx, victim)
	if err != nil {
		return err
	}
	t := s.chunks.tools.Get().(*frameTools)
	defer s.chunks.tools.Put(t)
	const rawPerBatch = 8 << 20
	for len(frames) > 0 {
		m := s.beginMeta()
		raw := 0
		for len(frames) > 0 && raw < rawPerBatch && err == nil {
			var n int
			n, err = s.moveFrame(ctx, m, victim, &frames[0], t)
			raw += n
			frames = frames[1:]
		}
		if err == nil {
			err = s.packer.sync(m)
		}
		if err != nil {
			s.packer.forget()
			m.abort()
			return err
		}
		if err := m.commit(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// moveFrame puts the live chunks of one frame into the packer and returns their bytes.
func (s *Store) moveFrame(ctx context.Context, m *metaBatch, victim *segmentRow, d *segment.DirFrame, t *frameTools) (int, error) {
	live := make(map[block.ChunkID]bool)
	for i := range d.Chunks {
		row, err := m.chunkRow(d.Chunks[i].ID)
		if errors.Is(err, block.ErrNotFound) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if row.Segment == victim.ID && row.FrameOff == d.Off {
			live[d.Chunks[i].ID] = true
		}
	}
	if len(live) == 0 {
		return 0, nil
	}
	stored := make([]byte, d.Len)
	if err := s.tiers.ReadAt(ctx, victim.ID, victim.Placement, stored, int64(d.Off)); err != nil {
		return 0, err
	}
	f, err := t.decode(stored, fmt.Sprintf("segment %06x", victim.ID), d.Off)
	if err != nil {
		return 0, err
	}
	moved := 0
	for _, c := range f.chunks {
		if !live[c.ID] {
			continue
		}
		raw := f.raw[c.RawOff : c.RawOff+c.RawLen]
		if err := s.packer.add(m, packChunk{Chunk: segment.Chunk{ID: c.ID, Hash: c.Hash, Raw: raw}, moved: true}); err != nil {
			return moved, err
		}
		moved += len(raw)
	}
	return moved, nil
}

// directory reads what a sealed segment holds.
func (s *Store) directory(ctx context.Context, r *segmentRow) ([]segment.DirFrame, error) {
	at := &segmentReader{ctx: ctx, s: s, row: r}
	footer, err := segment.ReadFooter(at, int64(r.Size))
	if err != nil {
		return nil, err
	}
	return segment.ReadDirectory(at, &footer)
}

// segmentReader is a segment as an io.ReaderAt.
type segmentReader struct {
	ctx context.Context // of the one call it is made for
	s   *Store
	row *segmentRow
}

// ReadAt fills p or fails.
func (r *segmentReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.s.tiers.ReadAt(r.ctx, r.row.ID, r.row.Placement, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// dropSegment removes a segment without live chunks: the row first, then the file. A file without a row is removed by the next start.
func (s *Store) dropSegment(id block.SegmentID) error {
	m := s.beginMeta()
	row, err := m.segment(id)
	if err != nil || row.LiveChunks != 0 {
		m.abort()
		return err
	}
	delete(m.segs, id)
	m.delete(key64(keySegment, uint64(id)))
	m.c.Segments--
	m.onApply = append(m.onApply, func() { s.segments.remove(id) })
	if err := m.commit(); err != nil {
		return err
	}
	s.at(beforeUnlink)
	for _, p := range row.Placement {
		err = errors.Join(err, s.tiers.Delete(p))
	}
	return err
}

// heldUnused is how many bytes of segments hold nothing that lives, in proportion.
func (s *Store) heldUnused() uint64 {
	held := uint64(0)
	for _, r := range s.segments.all() {
		if r.TotalRaw > 0 {
			held += uint64(float64(r.Size) * float64(r.TotalRaw-r.LiveRaw) / float64(r.TotalRaw))
		}
	}
	return held
}

// tidySegments seals what a crash or a close left open, and removes files that no row knows. It looks at names and open segments only.
func (s *Store) tidySegments(ctx context.Context) error {
	known := make(map[string]bool)
	for _, r := range s.segments.all() {
		for _, p := range r.Placement {
			known[p.Key] = true
		}
		if r.State != segmentOpen {
			continue
		}
		if err := s.reseal(r); err != nil {
			return fmt.Errorf("seal segment %06x, which was open: %w", r.ID, err)
		}
	}
	backend, err := s.tiers.Backend(defaultTier)
	if err != nil {
		return err
	}
	var unknown []string
	err = backend.List(func(key string, _ int64) error {
		if !known[key] {
			unknown = append(unknown, key)
		}
		return nil
	})
	for _, key := range unknown {
		err = errors.Join(err, backend.Delete(key))
	}
	return errors.Join(err, ctx.Err())
}

func (s *Store) reseal(r segmentRow) error {
	if r.Size == 0 {
		return nil
	}
	f, err := s.tiers.Update(r.Placement[0])
	if err != nil {
		return err
	}
	size, err := f.Size()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	footer, err := segment.Reseal(f, size, segment.Meta{StoreID: s.super.StoreID, ID: r.ID, Generation: r.Generation, Class: r.Class, DomainID: s.super.DomainID}, uint32(r.Size), s.appliedSeq)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	m := s.beginMeta()
	row, err := m.segment(r.ID)
	if err != nil {
		m.abort()
		return err
	}
	row.State, row.Size = segmentSealed, max(uint64(size), footer.FileSize())
	return m.commit()
}
