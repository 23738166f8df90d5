package blockstore

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// rmwTable holds the ranges of blocks that are being completed by read-modify-write. While it is empty, which is the rule, a writer pays one atomic load.
//
// A range is registered under Volume.mu held exclusively, so every write that overlaps has either been published before, and is seen by the read, or waits.
type rmwTable struct {
	active atomic.Int32
	mu     sync.Mutex
	ranges map[*rmwRange]struct{}
}

type rmwRange struct {
	first, count uint64 // blocks
	mapEpoch     uint32 // of the volume when the range was registered
	done         chan struct{}
}

// conflict returns a registered range that overlaps, or nil.
func (t *rmwTable) conflict(first, count uint64) *rmwRange {
	if t.active.Load() == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := range t.ranges {
		if first < r.first+r.count && r.first < first+count {
			return r
		}
	}
	return nil
}

// acquire registers the blocks, waiting for others that overlap.
func (v *Volume) acquireRMW(ctx context.Context, first, count uint64) (*rmwRange, error) {
	r := &rmwRange{first: first, count: count, done: make(chan struct{})}
	for {
		v.mu.Lock()
		other := v.rmw.conflict(first, count)
		if other == nil {
			v.rmw.mu.Lock()
			if v.rmw.ranges == nil {
				v.rmw.ranges = make(map[*rmwRange]struct{})
			}
			r.mapEpoch = v.mapEpoch
			v.rmw.ranges[r] = struct{}{}
			v.rmw.active.Add(1)
			v.rmw.mu.Unlock()
			v.mu.Unlock()
			return r, nil
		}
		v.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (v *Volume) releaseRMW(r *rmwRange) {
	v.rmw.mu.Lock()
	delete(v.rmw.ranges, r)
	v.rmw.active.Add(-1)
	v.rmw.mu.Unlock()
	close(r.done)
}

// writeUnaligned applies one write whose ends do not lie on block borders: the first and last block are read, merged and written whole.
func (v *Volume) writeUnaligned(ctx context.Context, w block.Write) error {
	first, count := blocksOf(w.Off, uint64(len(w.Data)))
	r, err := v.acquireRMW(ctx, first, count)
	if err != nil {
		return err
	}
	defer v.releaseRMW(r)
	whole := make([]byte, count*block.Size)
	start := first * block.Size
	head := w.Off - start
	tail := uint64(len(whole)) - head - uint64(len(w.Data))
	n := v.head.Load()
	if head > 0 {
		if err := v.s.readNode(ctx, n, whole[:block.Size], start); err != nil {
			return err
		}
	}
	if tail > 0 && (count > 1 || head == 0) {
		at := (count - 1) * block.Size
		if err := v.s.readNode(ctx, n, whole[at:], start+at); err != nil {
			return err
		}
	}
	copy(whole[head:], w.Data)
	return v.appendWrites(ctx, []block.Write{{Off: start, Data: whole}}, r)
}
