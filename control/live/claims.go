package live

import (
	"context"
	"slices"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// claims keep what is pulled and what guests write apart where they overlap. Guests need not be kept from each other. Whoever comes first goes first, so neither can starve the other.
type claims struct {
	mu   sync.Mutex
	held []*claim // in the order in which they came, those that wait included
}

type claim struct {
	ranges []block.Range
	alone  bool          // of a pull
	done   chan struct{} // closed when it is given up
}

func (c *claim) conflicts(d *claim) bool {
	if !c.alone && !d.alone {
		return false
	}
	for _, r := range c.ranges {
		for _, s := range d.ranges {
			if r.Off < s.End() && s.Off < r.End() {
				return true
			}
		}
	}
	return false
}

// take claims ranges and waits for those before it that conflict.
func (l *claims) take(ctx context.Context, alone bool, ranges ...block.Range) (release func(), err error) {
	mine := &claim{ranges, alone, make(chan struct{})}
	l.mu.Lock()
	before := l.conflictingLocked(mine)
	l.held = append(l.held, mine)
	l.mu.Unlock()
	for _, other := range before {
		select {
		case <-other.done:
		case <-ctx.Done():
			l.release(mine)
			return nil, ctx.Err()
		}
	}
	return func() { l.release(mine) }, nil
}

// try is take for a guest that must not wait.
func (l *claims) try(ranges []block.Range) (release func(), ok bool) {
	mine := &claim{ranges, false, make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conflictingLocked(mine)) > 0 {
		return nil, false
	}
	l.held = append(l.held, mine)
	return func() { l.release(mine) }, true
}

func (l *claims) conflictingLocked(mine *claim) (all []*claim) {
	for _, other := range l.held {
		if mine.conflicts(other) {
			all = append(all, other)
		}
	}
	return all
}

func (l *claims) release(mine *claim) {
	l.mu.Lock()
	l.held = slices.DeleteFunc(l.held, func(c *claim) bool { return c == mine })
	l.mu.Unlock()
	close(mine.done)
}

// rangesOf are the whole blocks that a batch touches.
func rangesOf(batch []nbd.Write) []block.Range {
	all := make([]block.Range, 0, len(batch))
	for _, w := range batch {
		r := outward(block.Range{Off: w.Off, Len: uint64(len(w.Data))})
		if k := len(all); k > 0 && all[k-1].End() == r.Off {
			all[k-1].Len += r.Len
			continue
		}
		all = append(all, r)
	}
	return all
}

// outward widens a range to whole blocks.
func outward(r block.Range) block.Range {
	off := r.Off / block.Size * block.Size
	return block.Range{Off: off, Len: (r.End()+block.Size-1)/block.Size*block.Size - off}
}

// inward narrows a range to the whole blocks in it. The last block of a device of size bytes is whole when it reaches to the device's end.
func inward(r block.Range, size uint64) block.Range {
	off := (r.Off + block.Size - 1) / block.Size * block.Size
	end := r.End()
	if end != size {
		end = end / block.Size * block.Size
	}
	return block.Range{Off: off, Len: max(end, off) - off}
}
