package blockstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
)

// discard makes a range read as zeroes. Whole blocks become one record and a few tombstones, however long the range is; with edges, the parts of blocks at both ends
// are zeroed by read-modify-write, otherwise they keep their bytes.
func (v *Volume) discard(ctx context.Context, kind journal.Kind, off, n uint64, edges, sync bool) error {
	if err := v.checkRange(off, n); err != nil {
		return fmt.Errorf("discard volume %d at %d+%d B: %w", v.id, off, n, err)
	}
	if n == 0 {
		return nil
	}
	if err := v.pass(ctx, true, 1, 0); err != nil {
		return err
	}
	first, last := wholeBlocks(off, n, v.size.Load())
	if edges {
		if err := v.zeroEdges(ctx, off, n, first, last); err != nil {
			return err
		}
	}
	if last > first {
		if err := v.appendDiscard(ctx, kind, first, last-first); err != nil {
			return err
		}
	}
	if sync || WriteMode(v.mode.Load()) == ModeDurable {
		return v.flush(ctx)
	}
	return nil
}

// wholeBlocks returns the blocks [first, last) that lie wholly in [off, off+n). A part of a block at the volume's end counts as whole.
func wholeBlocks(off, n, size uint64) (first, last uint64) {
	end := off + n
	first = (off + block.Size - 1) / block.Size
	last = end / block.Size
	if end == size {
		last = (end + block.Size - 1) / block.Size
	}
	return first, max(first, last)
}

// zeroEdges writes zeroes to what of [off, off+n) lies outside the blocks [first, last).
func (v *Volume) zeroEdges(ctx context.Context, off, n, first, last uint64) error {
	end := off + n
	var zeroes [block.Size]byte
	if first >= last {
		first = (off / block.Size) + 1
		last = first
	}
	if head := min(end, first*block.Size); off < head {
		if err := v.writeOne(ctx, block.Write{Off: off, Data: zeroes[:head-off]}); err != nil {
			return err
		}
	}
	if tail := max(off, last*block.Size); tail < end {
		return v.writeOne(ctx, block.Write{Off: tail, Data: zeroes[:end-tail]})
	}
	return nil
}

// appendDiscard logs one record for a run of whole blocks and publishes it. It may use the log's reserve: a full store must be able to give space back.
func (v *Volume) appendDiscard(ctx context.Context, kind journal.Kind, first, count uint64) error {
	own, err := v.acquireRMW(ctx, first, count)
	if err != nil {
		return err
	}
	defer v.releaseRMW(own)
	for {
		err := v.tryDiscard(kind, first, count)
		if !errors.Is(err, errLogFull) {
			return err
		}
		if err := v.s.space.waitForRoom(ctx); err != nil {
			return err
		}
	}
}

func (v *Volume) tryDiscard(kind journal.Kind, first, count uint64) error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.gone.Load() {
		return fmt.Errorf("discard of volume %d: %w", v.id, block.ErrClosed)
	}
	rec := journal.Record{Kind: kind, Volume: v.id, MapEpoch: v.mapEpoch, Off: first * block.Size, Len: count * block.Size}
	if err := v.s.appendControl(&rec); err != nil {
		return fmt.Errorf("discard of volume %d: %w", v.id, err)
	}
	v.s.at(afterAppend)
	v.s.noteAsked(rec.Seq)
	v.wrote(rec.Seq, 0)
	v.head.Load().layer.PublishZero(first, count, uint64(rec.Pos))
	v.counters.discards.Add(1)
	return nil
}
