package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

// rewriteSlack is how many dead bytes a segment must hold at least to be rewritten: moving costs more than a few frames are worth.
const rewriteSlack = 1 << 20

const (
	// movedAtOnce bounds the raw bytes that one batch moves, and with it how long it holds up other batches.
	movedAtOnce = 8 << 20
	// collectNap bounds each wait for the budget, so that the worker's other steps get their turns.
	collectNap = 50 * time.Millisecond
)

// collection is a segment on its way to be emptied: what of it is left, in the order of frames. Its chunks lie there as they were destaged, which is by regions of volumes, and
// stay neighbours.
type collection struct {
	victim segmentRow // as it was when this began; ID 0: there is none
	frames []segment.DirFrame
}

// stepReclaim does a batch of giving back the space of segments that are wholly or mostly dead, and reports whether there was anything to do.
func (s *Store) stepReclaim(ctx context.Context) (bool, error) {
	c := s.collector
	if c.paused() {
		c.current = collection{}
		return false, nil
	}
	if pause := c.budget.pause(); pause > 0 && s.reclaimable() {
		sleep(ctx, min(pause, collectNap))
		return true, nil
	}
	if c.current.victim.ID == 0 {
		victim, ok := s.victim()
		if !ok {
			return s.sealWasteful()
		}
		if victim.LiveChunks == 0 {
			return true, s.give(&victim)
		}
		frames, err := s.directory(ctx, &victim)
		if err != nil {
			return s.cannot(ctx, &victim, err)
		}
		c.current = collection{victim, frames}
	}
	victim := c.current.victim
	if now, there := s.segments.get(victim.ID); !there || now.Generation != victim.Generation || s.coolsSoon(&now) {
		c.current = collection{}
		return true, nil
	}
	move := s.moveSome
	if victim.Class == segment.Cold {
		move = s.moveCold
	}
	if err := move(ctx, &c.current); err != nil {
		c.current = collection{}
		return s.cannot(ctx, &victim, err)
	}
	if len(c.current.frames) > 0 {
		return true, nil
	}
	c.current = collection{}
	return true, s.give(&victim)
}

// reclaimable reports whether there is anything to give back.
func (s *Store) reclaimable() bool {
	if s.collector.current.victim.ID != 0 {
		return true
	}
	_, ok := s.victim()
	return ok
}

// cannot puts a segment off that cannot be emptied, so that others are, and asks for its repair.
func (s *Store) cannot(ctx context.Context, victim *segmentRow, err error) (bool, error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	err = fmt.Errorf("rewrite segment %06x: %w", victim.ID, err)
	if errors.Is(err, block.ErrNoSpace) {
		return false, err // that says nothing about the segment
	}
	s.keeper.found(victim.ID)
	s.collector.later(victim.ID, err)
	if errors.Is(err, block.ErrCorrupt) {
		s.reportCorruption(fmt.Errorf("segment %06x, which cannot be given back: %w", victim.ID, err))
		return true, nil
	}
	return true, err
}

// give drops a segment that was emptied. One in which something still lives, by its counter, holds what its directory does not say, or could not be moved: it stays.
func (s *Store) give(victim *segmentRow) error {
	now, there := s.segments.get(victim.ID)
	if !there {
		return nil
	}
	if now.LiveChunks > 0 {
		s.collector.later(victim.ID, fmt.Errorf("%d of its chunks could not be moved", now.LiveChunks))
		return nil
	}
	if err := s.dropSegment(victim.ID); err != nil {
		return err
	}
	s.collector.forget(victim.ID)
	s.collector.counts.segments.Add(1)
	s.collector.counts.freed.Add(now.Size)
	return nil
}

// sealWasteful ends an open segment of which enough is dead while somebody settles or space is short, so that it can be given back like others, and reports whether there was one.
func (s *Store) sealWasteful() (bool, error) {
	if s.thorough.Load() == 0 && SpaceState(s.space.state.Load()) == SpaceOK {
		return false, nil
	}
	below := s.rewriteBelow()
	m := s.beginMeta()
	for _, p := range []*packer{&s.packer, &s.mover, &s.cold} {
		if p.w == nil {
			continue
		}
		row, err := m.segment(p.id)
		if err == nil && row.TotalRaw-row.LiveRaw >= rewriteSlack && row.LiveRaw*100 < row.TotalRaw*below.of(p.id) {
			if err = p.seal(m); err == nil {
				return true, m.commit()
			}
		}
		if err != nil {
			s.forgetPacked()
			m.abort()
			return false, err
		}
	}
	m.abort()
	return false, nil
}

// forgetPacked drops what an aborted batch had packed.
func (s *Store) forgetPacked() {
	s.packer.forget()
	s.mover.forget()
	s.cold.forget()
}

// rewriteRoom is how many bytes of a segment may be written again: all that is free but for half of the reserve, and what the log alone has.
func (s *Store) rewriteRoom() uint64 {
	usage, err := s.diskUsage()
	if err != nil {
		return math.MaxUint64 // it is not known: the write will tell
	}
	kept := uint64(s.reserve(usage.TotalBytes)/2 + s.undestaged())
	return usage.AvailBytes - min(usage.AvailBytes, kept)
}

// liveBytes is about how much of the segment's file lives.
func (r *segmentRow) liveBytes() uint64 {
	if r.TotalRaw == 0 {
		return 0
	}
	return uint64(float64(r.Size) * float64(r.LiveRaw) / float64(r.TotalRaw))
}

// livingFrame is a frame of which something lives, decoded.
type livingFrame struct {
	*segment.DirFrame
	f *frame
}

// moveSome moves the live chunks of some of the frames that are left of a warm segment into the mover's open segment: what survived there lies apart from what was just written. Frames are read before the batch
// begins, which then holds up nobody for a device but with its sync. Chunks that die meanwhile are simply not moved: their rows are looked at under the metadata lock.
func (s *Store) moveSome(ctx context.Context, c *collection) error {
	t := s.chunks.tools.Get().(*frameTools)
	defer s.chunks.tools.Put(t)
	living, rest, err := s.readLiving(ctx, c, t)
	if err != nil {
		return err
	}
	m := s.beginMeta()
	moved := 0
	for i := range living {
		n, err := s.moveFrame(m, &c.victim, &living[i], t)
		if errors.Is(err, block.ErrCorrupt) {
			// What is left of it stays where it is, and the rest can move.
			s.keeper.found(c.victim.ID)
			s.damaged.keep(c.victim.ID)
			s.reportCorruption(fmt.Errorf("segment %06x, which cannot be given back: %w", c.victim.ID, err))
			err = nil
		}
		if err != nil {
			s.forgetPacked()
			m.abort()
			return err
		}
		moved += n
	}
	if err := s.mover.sync(m); err != nil {
		s.forgetPacked()
		m.abort()
		return err
	}
	if err := m.commit(); err != nil {
		return err
	}
	c.frames = rest
	s.collector.counts.moved.Add(uint64(moved))
	s.collector.budget.book(moved, moved/requestBytes+1)
	s.at(afterMove)
	return ctx.Err()
}

// readLiving reads frames of which something lives until they are enough for a batch, and returns them and what is left then. A frame that cannot be read, by parity neither, is
// left out: its chunks stay where they are.
func (s *Store) readLiving(ctx context.Context, c *collection, t *frameTools) (living []livingFrame, rest []segment.DirFrame, err error) {
	rows := rowIter{}
	defer func() { err = errors.Join(err, rows.close()) }()
	raw, read, requests := 0, 0, 0
	for rest = c.frames; len(rest) > 0 && raw < movedAtOnce; {
		n, err := s.livingRun(&rows, &c.victim, rest)
		if err != nil {
			return nil, nil, err
		}
		if n == 0 {
			rest = rest[1:]
			continue
		}
		run := rest[:n]
		rest = rest[n:]
		stored := make([]byte, run[n-1].Off+run[n-1].Len-run[0].Off)
		read, requests = read+len(stored), requests+1
		failed := s.tiers.ReadAt(ctx, c.victim.ID, c.victim.Placement, stored, int64(run[0].Off))
		for i := range run {
			f, err := s.livingFrame(ctx, c, &run[i], stored[run[i].Off-run[0].Off:][:run[i].Len], t, failed)
			if err != nil {
				return nil, nil, err
			}
			if f != nil {
				living = append(living, livingFrame{&run[i], f})
				raw += len(f.raw)
			}
		}
	}
	s.collector.budget.book(read, requests)
	return living, rest, nil
}

// livingRun returns how many of the first frames have something that lives, up to a read's worth; 0 if the first has not.
func (s *Store) livingRun(rows *rowIter, victim *segmentRow, frames []segment.DirFrame) (int, error) {
	n, bytes := 0, uint32(0)
	for n < len(frames) && (n == 0 || bytes+frames[n].Len <= requestBytes) {
		lives := false
		for i := range frames[n].Chunks {
			row, err := rows.row(s.db, frames[n].Chunks[i].ID)
			if err != nil && !errors.Is(err, block.ErrNotFound) {
				return 0, err
			}
			if lives = err == nil && row.Segment == victim.ID && row.FrameOff == frames[n].Off; lives {
				break
			}
		}
		if !lives {
			return n, nil
		}
		bytes += frames[n].Len
		n++
	}
	return n, nil
}

// livingFrame decodes a frame, with the help of parity if need be. nil is one that is damaged, which was reported; its chunks are marked.
func (s *Store) livingFrame(ctx context.Context, c *collection, d *segment.DirFrame, stored []byte, t *frameTools, err error) (*frame, error) {
	var f *frame
	if err != nil { // of a run of frames; this one may be whole
		err = s.tiers.ReadAt(ctx, c.victim.ID, c.victim.Placement, stored, int64(d.Off))
	}
	if err == nil {
		f, err = t.decode(stored, c.victim.ID, d.Off)
	}
	if err != nil {
		f, err = s.keeper.rescue(ctx, c.victim.ID, d.Off, stored, t, err)
	}
	if !errors.Is(err, block.ErrCorrupt) {
		return f, err
	}
	for i := range d.Chunks {
		if row, e := s.chunks.row(d.Chunks[i].ID); e == nil && row.Segment == c.victim.ID && row.FrameOff == d.Off {
			s.damaged.noteIf(d.Chunks[i].ID, err)
		}
	}
	s.damaged.keep(c.victim.ID)
	s.reportCorruption(fmt.Errorf("segment %06x, which cannot be given back: %w", c.victim.ID, err))
	return nil, nil
}

// moveFrame puts the live chunks of one frame into the mover and returns their bytes.
func (s *Store) moveFrame(m *metaBatch, victim *segmentRow, d *livingFrame, t *frameTools) (int, error) {
	live := make(map[block.ChunkID]bool)
	for i := range d.Chunks {
		row, err := m.nextChunkRow(d.Chunks[i].ID)
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
	moved := 0
	var bad error
	for i := range d.f.chunks {
		c := &d.f.chunks[i]
		if !live[c.ID] {
			continue
		}
		if err := t.verify(d.f, i, victim.ID, d.Off); err != nil {
			s.damaged.noteIf(c.ID, err)
			bad = errors.Join(bad, err)
			continue
		}
		raw := d.f.raw[c.RawOff : c.RawOff+c.RawLen]
		if err := s.mover.add(m, packChunk{Chunk: segment.Chunk{ID: c.ID, Hash: c.Hash, Raw: raw}, moved: true}); err != nil {
			return moved, err
		}
		moved += len(raw)
	}
	return moved, bad
}

// coolsSoon reports whether what lives in a segment is on its way into a cold one: to move it twice would only make the two get into each other's way.
func (s *Store) coolsSoon(r *segmentRow) bool {
	from := s.cooling.Load()
	return from != nil && r.LiveChunks > 0 && r.Class == segment.Warm && (*from == nil || (*from)[r.ID])
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

// dropSegment removes a segment without live chunks: the row first, then the file, which waits for the next delta. A file without a row is removed by a later start.
func (s *Store) dropSegment(id block.SegmentID) error {
	m := s.beginMeta()
	row, err := m.segment(id)
	if err != nil || row.LiveChunks != 0 {
		m.abort()
		return err
	}
	delete(m.segs, id)
	_ = m.deleteRow(key64(keySegment, uint64(id)))
	m.c.Segments--
	m.onApply = append(m.onApply, func() { s.segments.remove(id) })
	if err := m.commit(); err != nil {
		return err
	}
	s.at(beforeUnlink)
	return s.unlink(row)
}

// isMetadata reports whether a segment holds checkpoints: it has no chunks of volumes, and goes when a newer full checkpoint is there.
func isMetadata(r *segmentRow) bool { return r.Class == segment.Metadata }

// heldUnused is how many bytes of segments hold nothing that lives, in proportion.
func (s *Store) heldUnused() uint64 {
	held := uint64(0)
	for _, r := range s.segments.all() {
		if r.TotalRaw > 0 && !isMetadata(&r) {
			held += uint64(float64(r.Size) * float64(r.TotalRaw-r.LiveRaw) / float64(r.TotalRaw))
		}
	}
	return held
}

// tidySegments seals what a crash or a close left open, and removes files that no row knows. It looks at names and open segments only. A file that may once have had a row
// goes after the next delta: the journaled state may need it.
func (s *Store) tidySegments(ctx context.Context) error {
	backend, err := s.tiers.Backend(defaultTier)
	if err != nil {
		return err
	}
	there := make(map[string]bool)
	if err := backend.List(func(key string, _ int64) error { there[key] = true; return nil }); err != nil {
		return err
	}
	for _, r := range s.segments.all() {
		if err := s.tidy(&r, there); err != nil {
			return err
		}
		for _, p := range r.Placement {
			delete(there, p.Key)
		}
	}
	for key := range there {
		id, generation, ok := tiers.ParseSegmentKey(key)
		p := tiers.Placement{Tier: defaultTier, Key: key, Generation: generation, State: tiers.Live}
		if ok && s.c.Lost > 0 && !s.soundHeader(backend, p, id) {
			continue // what is lost may be in it, for whoever can mend it
		}
		if ok && uint64(id) <= s.c.NextSegment {
			err = errors.Join(err, s.unlink(&segmentRow{ID: id, Class: segment.Warm, Placement: tiers.PlacementList{p}}))
		} else {
			err = errors.Join(err, backend.Delete(key))
		}
	}
	return errors.Join(err, ctx.Err())
}

// soundHeader reports whether a file is what its name says, as far as its header tells.
func (s *Store) soundHeader(backend tiers.Backend, p tiers.Placement, id block.SegmentID) bool {
	f, err := backend.Open(p.Key)
	if err != nil {
		return false
	}
	defer f.Close()
	size, err := f.Size()
	if err == nil {
		_, err = segment.CheckHeader(f, size, s.super.StoreID, id, p.Generation)
	}
	return err == nil
}

// tidy seals one segment if it is open. A segment of checkpoints that is missing or damaged is given up, and a new full checkpoint is due.
func (s *Store) tidy(r *segmentRow, there map[string]bool) (err error) {
	if isMetadata(r) && !there[r.Placement[0].Key] {
		err = &block.CorruptError{Source: "segment " + r.Placement[0].Key, Want: "a part of the checkpoints", Got: "no file"}
	} else if r.State == segmentOpen {
		err = s.reseal(*r)
	}
	if err == nil {
		return nil
	}
	if isMetadata(r) && (errors.Is(err, block.ErrCorrupt) || errors.Is(err, block.ErrNotFound)) {
		s.report("checkpoint of the metadata, which is made anew", err)
		s.checkpoints.lost = true
		return s.dropSegment(r.ID)
	}
	return fmt.Errorf("seal segment %06x, which was open: %w", r.ID, err)
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
