package blockstore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// Repair tries again to mend every segment and file of history that is known to be damaged, looks for lost chunks in what was written since, in the log and in histories, and returns when that is done. What it could not mend, and why, Damages says;
// LostChunks says what Heal would take.
func (s *Store) Repair(ctx context.Context) error {
	if err := s.mendSegments(ctx); err != nil {
		return err
	}
	if err := s.healSelf(ctx); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	return s.waitMended(ctx)
}

// mendSegments has the keeper try again to mend what is damaged, files of history included.
func (s *Store) mendSegments(ctx context.Context) error {
	k := s.keeper
	k.mu.Lock()
	for id, d := range k.mu.damaged {
		if !d.Mended && !slices.Contains(k.mu.queue, id) {
			k.mu.queue = append(k.mu.queue, id)
		}
	}
	for key, d := range k.mu.histories {
		if !d.Mended && !slices.Contains(k.mu.files, key) {
			k.mu.files = append(k.mu.files, key)
		}
	}
	k.mu.Unlock()
	return s.waitMended(ctx)
}

// waitMended waits until nothing is to be mended.
func (s *Store) waitMended(ctx context.Context) error {
	k := s.keeper
	k.kick()
	for k.repairing() {
		sleep(ctx, settlePoll)
		if s.ctx.Err() != nil {
			return fmt.Errorf("repair: %w", block.ErrClosed)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// repairing reports whether segments wait to be mended.
func (k *keeper) repairing() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.mu.queue) > 0 || k.mu.busy != 0 || len(k.mu.files) > 0 || k.mu.mending
}

// stepRepair mends the next segment that somebody found damaged, and reports whether there was one.
func (k *keeper) stepRepair(ctx context.Context) (bool, error) {
	k.mu.Lock()
	if len(k.mu.queue) == 0 {
		k.mu.Unlock()
		return false, nil
	}
	id := k.mu.queue[0]
	k.mu.queue, k.mu.busy = k.mu.queue[1:], id
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		k.mu.busy = 0
		k.mu.Unlock()
	}()
	row, ok := k.s.segments.get(id)
	if !ok || row.State != segmentSealed {
		return true, nil
	}
	_, err := k.repair(ctx, &row)
	return true, err
}

// repair looks at a segment and its sidecar, mends what it can, and records what was found; nil is a segment that is whole. The error is the end of ctx, or one of
// the metadata.
//
// It mends in a copy: the damaged file stays until the copy is whole, was read back, passed all checksums and is durable, and then one rename replaces it. So a
// crash leaves one of the two, a full disk and a mistake of the sidecar harm nothing, and what the device could not read well is not written in place. The copy has the
// bytes that were sealed, so that neither id nor generation nor any row changes.
func (k *keeper) repair(ctx context.Context, row *segmentRow) (*Damage, error) {
	s := k.s
	d := &Damage{Segment: row.ID, File: row.Placement[0].Key, FoundAt: s.opts.Now()}
	g, why := s.openGuarded(row)
	defer func() { g.close() }()
	var found erasure.Damage
	mended := false
	if g.side != nil {
		var err error
		if found, err = g.side.Verify(ctx, g.src, k.pace.wait); err != nil {
			return nil, err
		}
		d.Columns, d.Lost = len(found.Columns), len(found.Lost)
		if len(found.Columns) > len(found.Lost) {
			if why = k.mend(ctx, row, &g); ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if mended = why == nil; mended {
				g.close()
				g, why = s.openGuarded(row)
			}
		}
	}
	_, _, unsound := s.sound(ctx, g.src, row, k.pace.wait)
	if unsound != nil && ctx.Err() == nil {
		patched, err := k.patch(ctx, row, &g)
		if err != nil && ctx.Err() == nil {
			s.report(fmt.Sprintf("mend segment %06x from second copies", row.ID), err)
		} else if patched > 0 {
			d.Columns = max(d.Columns, patched)
			g.close()
			g, why = s.openGuarded(row)
			_, _, unsound = s.sound(ctx, g.src, row, k.pace.wait)
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	now, there := s.segments.get(row.ID)
	if !there || now.Generation != row.Generation {
		return nil, nil // it went meanwhile
	}
	k.mark(row.ID, unsound != nil)
	if unsound == nil {
		if err := s.unmark(ctx, row); err != nil {
			return nil, err
		}
		return k.repaired(row, d, &found)
	}
	if d.Reason = unsound.Error(); why != nil {
		d.Reason += "; parity does not help: " + why.Error()
	}
	// What parity still answers is not lost, though it could not be mended now, as without room for a copy.
	in, err := s.inspect(ctx, bestReader{&g, k, row}, row, k.pace.wait)
	if err == nil && in.first != nil {
		err = k.affected(ctx, row, in, d)
	}
	if err != nil {
		return nil, err
	}
	if in.first != nil && k.harmless(row, d) {
		return d, nil
	}
	if g.side == nil {
		d.Columns = max(1, len(in.bad))
		d.Lost = d.Columns
	}
	k.counts.found.Add(uint64(d.Columns))
	k.counts.lost.Add(uint64(d.Lost))
	if mended {
		k.counts.mended.Add(uint64(d.Columns - d.Lost))
	}
	k.record(d)
	if in.first == nil {
		return d, nil
	}
	if f := s.opts.Events.Corruption; f != nil {
		f(fmt.Errorf("%v: %w", d, block.ErrCorrupt))
	}
	return d, nil
}

// repaired records a segment that is whole now. If its sidecar is not, another one is made.
func (k *keeper) repaired(row *segmentRow, d *Damage, found *erasure.Damage) (*Damage, error) {
	k.mu.Lock()
	_, known := k.mu.damaged[row.ID]
	k.mu.Unlock()
	ofSidecar := found.ParityColumns + found.Heads
	if d.Columns+ofSidecar == 0 && !known {
		return nil, nil
	}
	d.Mended, d.Lost = true, 0
	k.counts.found.Add(uint64(d.Columns + ofSidecar))
	k.counts.mended.Add(uint64(d.Columns + ofSidecar))
	k.record(d)
	if found.Sidecar() {
		return d, k.setParity(row, erasure.Shape{})
	}
	return d, nil
}

// mend replaces a segment by a copy in which all is mended that parity reaches.
func (k *keeper) mend(ctx context.Context, row *segmentRow, g *guarded) error {
	s := k.s
	if !k.room(int64(row.Size)) {
		return fmt.Errorf("mend segment %06x: no room for a copy of %d B beside it: %w", row.ID, row.Size, block.ErrNoSpace)
	}
	c, err := k.coderFor(g.side.Shape())
	if err != nil {
		return err
	}
	file, err := s.tiers.ReplaceCopy(row.Placement[0])
	if err != nil {
		return err
	}
	defer file.Discard()
	m, err := g.side.Mend(ctx, g.src, file, c, k.pace.wait)
	if err != nil {
		return err
	}
	// Read back before it counts: every column but those that are lost must pass, and with none lost the segment's own checksums, too.
	again, err := g.side.Verify(ctx, file, k.pace.wait)
	if err != nil {
		return err
	}
	slices.Sort(m.Lost)
	for _, c := range again.Columns {
		if _, lost := slices.BinarySearch(m.Lost, c); !lost {
			return corruptSegment(row, int64(c)*erasure.ColumnSize, "a mended column", "another one when it was read back")
		}
	}
	if len(m.Lost) == 0 && again.Unguarded == 0 {
		id := s.identity(row)
		if _, err := s.soundBytes(ctx, file, row, &id, k.pace.wait); err != nil {
			return fmt.Errorf("read the mended segment back: %w", err)
		}
		if id.FooterCRC != g.side.Identity().FooterCRC {
			return corruptSegment(row, int64(row.Size)-4, "the footer that parity was made for", "another one")
		}
	}
	s.at(beforeMended)
	if err := file.Commit(); err != nil {
		return err
	}
	k.counts.written.Add(int64(row.Size))
	if _, there := s.segments.get(row.ID); !there {
		return s.unlink(row) // it was dropped meanwhile: the copy goes where the original went
	}
	return nil
}

// rescue answers the read of a frame that failed: from parity, if that reaches it. The segment is mended in the background.
func (k *keeper) rescue(ctx context.Context, id block.SegmentID, off uint32, stored []byte, t *frameTools, cause error) (*frame, error) {
	row, there := k.s.segments.get(id)
	if !there || ctx.Err() != nil || errors.Is(cause, block.ErrClosed) {
		return nil, cause
	}
	if f, ok := k.fromCopies(&row, off, stored, t); ok {
		return f, nil
	}
	if row.State != segmentSealed {
		return nil, cause
	}
	if f, ok := k.fromSecond(&row, off, stored, t); ok {
		return f, nil
	}
	select {
	case k.rescues <- struct{}{}:
		defer func() { <-k.rescues }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	k.found(id)
	g, err := k.s.openGuarded(&row)
	defer g.close()
	var f *frame
	if err == nil {
		if _, err = g.side.ReadAt(g.src, stored, int64(off)); err == nil {
			f, err = t.decode(stored, id, off)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w; parity does not help: %v", cause, err)
	}
	k.counts.inline.Add(1)
	return f, nil
}

// found asks for the repair of a segment that somebody met damage in, unless it is known to be beyond repair, or was tried just now: then each read would set off another look
// at all of it.
func (k *keeper) found(id block.SegmentID) {
	k.mu.Lock()
	d := k.mu.damaged[id]
	k.mu.Unlock()
	if d == nil || d.Mended || d.Lost == 0 && k.s.opts.Now().Sub(d.FoundAt) > keeperRetry {
		k.enqueue(id)
	}
}
