package blockstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// A question about a range is answered window by window, so that what is gathered stays small, and for so many bytes at a time. The first window is small and each is four times as long as the one
// before: who wants to know where the next data are is mostly answered by the first, and who wants to know much by few.
const (
	firstStatusWindow = 1 << 20 // bytes
	statusWindow      = 1 << 30
	statusMost        = 1 << 40
)

// depthRun says where some bytes come from.
type depthRun struct {
	n     uint64
	depth uint32
}

// Depths tells, from r.Off on, which state the bytes come from: 0 for none, they read as zeroes and take no space; 1 for the device's own; 2 for the snapshot that it
// stands on; and so on. It calls emit for consecutive runs until emit returns false, r ends, or a TiB was told.
func (d *Device) Depths(ctx context.Context, r block.Range, emit func(n uint64, depth uint32) bool) error {
	if err := d.check("report on", r.Off, r.Len); err != nil {
		return err
	}
	w := depthWalk{s: d.v.s, top: d.node()}
	return w.s.windows(ctx, r, func(window block.Range) (bool, error) {
		w.runs, w.window = w.runs[:0], window
		first, count := blocksOf(window.Off, window.Len)
		if err := w.layers(w.top, first, count, 1); err != nil {
			return false, err
		}
		for _, run := range w.sectors() {
			if !emit(run.n, run.depth) {
				return false, nil
			}
		}
		return true, nil
	})
}

// windows calls once for one window of r after the other until it returns false, and again for the same window when the map moved under it.
func (s *Store) windows(ctx context.Context, r block.Range, once func(window block.Range) (bool, error)) error {
	r.Len = min(r.Len, statusMost)
	for size := uint64(firstStatusWindow); r.Len > 0; size = min(4*size, statusWindow) {
		window, more := block.Range{Off: r.Off, Len: min(r.Len, size-r.Off%block.SectorSize)}, false
		err := s.whileMoving(func() (err error) {
			more, err = once(window)
			return err
		})
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || !more {
			return err
		}
		r.Off, r.Len = window.End(), r.End()-window.End()
	}
	return nil
}

// whileMoving calls once, and again when the map moved under it.
func (s *Store) whileMoving(once func() error) error {
	err := once()
	for attempt := 0; errors.Is(err, block.ErrNotFound) && attempt < maxReadRetries; attempt++ {
		s.publishing.RLock()
		//lint:ignore SA2001 the lock is only waited for
		s.publishing.RUnlock()
		err = once()
	}
	return err
}

// depthWalk gathers the runs of one window.
type depthWalk struct {
	s      *Store
	top    *node
	window block.Range
	kinds  bool // tell a ChangeKind in the place of each depth
	runs   []depthRun
	whole  []depthRun // the same by sectors
}

// layers answers blocks from the overlay of n, which is so many states deep, and what is absent there from what lies below it.
func (w *depthWalk) layers(n *node, first, count uint64, depth uint32) error {
	runs, _ := n.layer.LookupInto(nil, nil, first, count)
	for _, run := range runs {
		switch g := w.clip(run.Block*block.Size, run.N*block.Size); run.Kind {
		case overlay.Data:
			w.add(g.Len, w.data(depth))
		case overlay.Zero:
			w.add(g.Len, w.zero())
		default:
			var err error
			if parent := n.parent.Load(); n.root.Load() == nil && parent != nil {
				err = w.layers(parent, run.Block, run.N, depth+1)
			} else {
				err = w.fromMap(n.effectiveRoot(), g)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// data and zero are what the walk tells of data at a depth, and of zeroes.
func (w *depthWalk) data(depth uint32) uint32 {
	if w.kinds {
		return uint32(ChangeData)
	}
	return depth
}

func (w *depthWalk) zero() uint32 {
	if w.kinds {
		return uint32(ChangeZero)
	}
	return 0
}

func (w *depthWalk) clip(off, n uint64) block.Range {
	lo := max(off, w.window.Off)
	return block.Range{Off: lo, Len: min(off+n, w.window.End()) - lo}
}

func (w *depthWalk) fromMap(root extentmap.Root, g block.Range) error {
	at := g.Off
	err := w.s.maps.Lookup(root, g.Off, g.Len, func(e extentmap.Extent) bool {
		w.add(e.Off-at, 0)
		depth := w.zero()
		if e.Kind != extentmap.KindZero {
			depth = w.data(w.depthOf(e.Birth))
		}
		w.add(uint64(e.Len), depth)
		at = e.Off + uint64(e.Len)
		return true
	})
	w.add(g.End()-at, 0)
	return err
}

// depthOf is how deep the state lies that something was born in.
func (w *depthWalk) depthOf(birth block.Epoch) uint32 {
	depth := uint32(1)
	for n := w.top; n.birth() > birth; depth++ {
		if n = n.parent.Load(); n == nil {
			break
		}
	}
	return depth
}

func (w *depthWalk) add(n uint64, depth uint32) {
	if n == 0 {
		return
	}
	if k := len(w.runs); k > 0 && w.runs[k-1].depth == depth {
		w.runs[k-1].n += n
		return
	}
	w.runs = append(w.runs, depthRun{n, depth})
}

// sectors returns the runs with their borders moved to borders of sectors: chunks that are cut by content end anywhere, and no client can make anything of half a sector. A
// sector of several depths has the least of them, as that state changed it last, and none is no depth.
func (w *depthWalk) sectors() []depthRun {
	runs := w.runs
	w.runs = w.whole[:0]
	at, end := w.window.Off, w.window.Off
	var mixed depthRun // a sector that is told of in part
	for _, run := range runs {
		for end += run.n; at < end; {
			sector := min(at-at%block.SectorSize+block.SectorSize, w.window.End())
			switch upTo := end - end%block.SectorSize; {
			case end == w.window.End() && mixed.n == 0:
				w.add(end-at, run.depth)
				at = end
			case mixed.n == 0 && upTo > at:
				w.add(upTo-at, run.depth)
				at = upTo
			default:
				part := min(end, sector) - at
				mixed.n += part
				if mixed.depth == 0 || run.depth != 0 && run.depth < mixed.depth {
					mixed.depth = run.depth
				}
				if at += part; at == sector {
					w.add(mixed.n, mixed.depth)
					mixed = depthRun{}
				}
			}
		}
	}
	w.whole, w.runs = w.runs, runs
	return w.whole
}

// ChangeBases returns the names of the snapshots that changes can be counted from, newest first, and then those of bitmaps.
func (d *Device) ChangeBases() []string {
	s := d.v.s
	s.tree.RLock()
	defer s.tree.RUnlock()
	var names []string
	for n := d.node().parent.Load(); n != nil && n.volume == d.v; n = n.parent.Load() {
		if n.visibleLocked() {
			names = append(names, n.name)
		}
	}
	return append(names, d.bitmapNamesLocked()...)
}

// Changes tells, from r.Off on, which bytes may differ from those of an older snapshot of the volume: those that were written, trimmed or zeroed since, and, once they are
// destaged, of these only what really differs in where it is stored. Of a bitmap it tells the granules of BitmapGranule bytes in which anything was written, trimmed or zeroed since that began; a snapshot of the volume tells of what was written
// after it, too. It calls emit for consecutive runs until emit returns false, r ends, or a TiB was told. ErrNotFound when there is no such snapshot or bitmap, or a bitmap was removed or cleared meanwhile.
func (d *Device) Changes(ctx context.Context, base string, r block.Range, emit func(n uint64, changed bool) bool) error {
	if err := d.check("report on", r.Off, r.Len); err != nil {
		return err
	}
	s, top := d.v.s, d.node()
	older := s.olderSnapshot(top, base)
	b, isBitmap := d.bitmapFor(base)
	if older == nil && !isBitmap {
		return fmt.Errorf("changes of volume %d since snapshot or bitmap %q: %w", d.v.id, base, block.ErrNotFound)
	}
	return s.windows(ctx, r, func(window block.Range) (bool, error) {
		var changed []block.Range
		var err error
		if older != nil {
			changed, err = s.changedBetween(ctx, older, top, window)
		} else {
			changed, err = s.changedInBitmap(d.v, top, b, window)
		}
		if err != nil {
			return false, err
		}
		at := window.Off
		for _, c := range changed {
			if c.Off > at && !emit(c.Off-at, false) || !emit(c.Len, true) {
				return false, nil
			}
			at = c.End()
		}
		return at == window.End() || emit(window.End()-at, false), nil
	})
}

// olderSnapshot returns the snapshot of that name that top descends from, or nil.
func (s *Store) olderSnapshot(top *node, name string) *node {
	s.tree.RLock()
	defer s.tree.RUnlock()
	for n := top.parent.Load(); n != nil && n.volume == top.volume; n = n.parent.Load() {
		if n.visibleLocked() && n.name == name {
			return n
		}
	}
	return nil
}

// changedBetween returns the parts of a window, in order and not touching, in which two states may differ that have one in common.
func (s *Store) changedBetween(ctx context.Context, base, top *node, window block.Range) ([]block.Range, error) {
	first, count := blocksOf(window.Off, window.Len)
	above, common := between(base, top)
	var all []block.Range
	for _, n := range above {
		if n.layer.Empty() {
			continue
		}
		runs, _ := n.layer.LookupInto(nil, nil, first, count)
		for _, run := range runs {
			if run.Kind != overlay.Absent {
				lo := max(run.Block*block.Size, window.Off)
				all = append(all, block.Range{Off: lo, Len: min((run.Block+run.N)*block.Size, window.End()) - lo})
			}
		}
	}
	if s.mapsDiffer(common) {
		err := s.maps.Diff(ctx, base.effectiveRoot(), top.effectiveRoot(), window, func(off, n uint64) bool {
			// Chunks end anywhere; a sector has changed when a byte of it has.
			lo, hi := off-off%block.SectorSize, off+n+block.SectorSize-1
			lo, hi = max(lo, window.Off), min(hi-hi%block.SectorSize, window.End())
			all = append(all, block.Range{Off: lo, Len: hi - lo})
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return joined(all), nil
}

// mapsDiffer reports whether maps of states above a common one may differ. What is newer than that goes into maps only when all of it is in its map. If it was not so after the overlays were searched, they had everything.
func (s *Store) mapsDiffer(common *node) bool {
	s.tree.RLock()
	defer s.tree.RUnlock()
	return common != nil && common.flags&nodeResolved != 0
}

// between returns the states that lead from the newest common one of a and b, which is returned too, to either. The common one is nil if there is none.
func between(a, b *node) (above []*node, common *node) {
	for a != b {
		if a == nil || b != nil && b.id > a.id {
			a, b = b, a
		}
		above = append(above, a)
		a = a.parent.Load()
	}
	return above, a
}

// joined sorts ranges and joins those that touch or overlap.
func joined(all []block.Range) []block.Range {
	slices.SortFunc(all, func(a, b block.Range) int { return cmp.Compare(a.Off, b.Off) })
	k := 0
	for _, r := range all {
		if k > 0 && r.Off <= all[k-1].End() {
			all[k-1].Len = max(all[k-1].End(), r.End()) - all[k-1].Off
			continue
		}
		all[k] = r
		k++
	}
	return all[:k]
}
