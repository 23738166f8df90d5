package blockstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

// moveCold is moveSome for a cold segment. What survives in it is packed as what goes cold is (cool.go): with the effort of cold data, chunks that are alike side by side, and compressed before the metadata lock is
// taken. So cold data that is overwritten here and there stays as dense as it was.
func (s *Store) moveCold(ctx context.Context, c *collection) (err error) {
	k := s.collector.coldMoves
	if k == nil {
		k = &cooling{s: s, ids: map[block.ChunkID]bool{}, buf: make([]byte, 0, movedAtOnce)}
		s.collector.coldMoves = k
	}
	k.ctx = ctx
	defer k.clear()
	defer func() { err = errors.Join(err, k.rows.close()) }()
	rest, left, err := k.survivors(c)
	if err != nil {
		return err
	}
	raw, had := len(k.buf), len(k.want)
	if had > 0 {
		if err := k.move(); err != nil {
			return err
		}
	}
	if left += had - len(k.want); left > 0 {
		// They stay where they are, and the rest can move.
		s.keeper.found(c.victim.ID)
		s.damaged.keep(c.victim.ID)
		s.reportCorruption(&block.CorruptError{Source: fmt.Sprintf("segment %06x, which cannot be given back", c.victim.ID), Want: "chunks that can be read", Got: fmt.Sprintf("%d that cannot", left)})
	}
	c.frames = rest
	s.collector.counts.moved.Add(uint64(raw))
	s.collector.budget.book(2*raw, 2*(raw/requestBytes+1)) // read and written
	s.at(afterMove)
	return ctx.Err()
}

// survivors puts what lives in the first frames that are left of a segment into the batch, and returns the frames behind these, and how many chunks live that are damaged: they stay where parity may reach them one day.
func (c *cooling) survivors(from *collection) (rest []segment.DirFrame, damaged int, err error) {
	var found []coolChunk
	for rest = from.frames; len(rest) > 0; rest = rest[1:] {
		f := &rest[0]
		found = found[:0]
		raw := 0
		for i := range f.Chunks {
			row, err := c.rows.row(c.s.db, f.Chunks[i].ID)
			switch {
			case errors.Is(err, block.ErrNotFound) || err == nil && (row.Segment != from.victim.ID || row.FrameOff != f.Off):
				continue
			case err != nil:
				return nil, 0, err
			case !c.sound(f.Chunks[i].ID, &row):
				damaged++
				continue
			}
			raw += int(row.RawLen)
			found = append(found, coolChunk{wanted{id: f.Chunks[i].ID, row: row}, coolPlace{}})
		}
		if len(c.buf)+raw > cap(c.buf) && len(c.buf) > 0 {
			return rest, damaged, nil
		}
		for i := range found {
			if err := c.add(&found[i]); err != nil {
				return nil, 0, err
			}
		}
	}
	return rest, damaged, nil
}
