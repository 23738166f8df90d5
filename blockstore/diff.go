package blockstore

import (
	"context"
	"fmt"
	"sort"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// ChangeKind says what a range that changed holds now.
type ChangeKind uint8

// The order counts where a sector is of several kinds: it is data if any of it is, and zero rather than a hole.
const (
	ChangeHole ChangeKind = iota // nothing is stored there; it reads as zeroes
	ChangeData                   // data, which may be zeroes all the same
	ChangeZero                   // zeroes that are stored as such, or a trim that the log still has
)

// String is "hole", "data" or "zero".
func (k ChangeKind) String() string {
	switch k {
	case ChangeHole:
		return "hole"
	case ChangeData:
		return "data"
	case ChangeZero:
		return "zero"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Change is a range in which two states differ. Offset and length are in bytes, of whole sectors.
type Change struct {
	Off, Len uint64
	Kind     ChangeKind
}

// StateName names a snapshot of a volume, or what the volume is now when Snapshot is "".
type StateName struct{ Volume, Snapshot string }

// String is VOLUME@SNAPSHOT or VOLUME.
func (n StateName) String() string {
	if n.Snapshot == "" {
		return n.Volume
	}
	return n.Volume + "@" + n.Snapshot
}

// diffWindow is how many bytes are looked at in one piece where something differs. It bounds the memory that a Diff takes, beside 16 B for each region that the log has something of.
const diffWindow = 256 << 20

// Diff calls emit with the ranges in which the state to may differ from the state from, in order, not overlapping and within to's size, until emit returns false. Nothing else differs. What was written with the same content
// again may be told, and so may what was stored anew. It costs what has changed and not what is there: equal parts of the maps are skipped unread. Both states must have one in common, as those of a volume have, and those
// of a clone and what it was made from; else it is ErrInvalid. Of a volume's present, what is written while Diff runs may be told or not. Neither state can be deleted meanwhile.
func (s *Store) Diff(ctx context.Context, from, to StateName, emit func(Change) bool) error {
	d := differ{s: s, emit: emit}
	err := d.between(ctx, from, to)
	if err != nil {
		return fmt.Errorf("differences from %v to %v: %w", from, to, err)
	}
	return nil
}

// differ is one Diff.
type differ struct {
	s         *Store
	base, top *Device
	emit      func(Change) bool
	pending   Change // not yet emitted, as what comes next may continue it
	stopped   bool
	touched   []block.Range // where overlays between the states held something at the beginning; in order, not touching
	windows   int           // that were looked at
}

func (d *differ) between(ctx context.Context, from, to StateName) (err error) {
	if d.base, err = d.s.OpenDevice(from.Volume, from.Snapshot); err != nil {
		return err
	}
	defer d.base.Close()
	if d.top, err = d.s.OpenDevice(to.Volume, to.Snapshot); err != nil {
		return err
	}
	defer d.top.Close()
	above, common := between(d.base.node(), d.top.node())
	if common == nil {
		return fmt.Errorf("they have no state in common: compare states of one volume, or of a clone and its origin: %w", block.ErrInvalid)
	}
	for _, n := range above {
		d.touched = n.layer.Touched(d.touched)
	}
	d.touched = joined(d.touched)
	for at, size := uint64(0), d.top.Size(); at < size && !d.stopped; {
		start, found, err := d.next(ctx, block.Range{Off: at, Len: size - at})
		if err != nil {
			return err
		}
		if !found {
			break
		}
		window := block.Range{Off: start, Len: min(diffWindow, size-start)}
		if err := d.window(ctx, window); err != nil {
			return err
		}
		at = window.End()
	}
	d.flush()
	return nil
}

// next returns the first sector of a range that may differ.
func (d *differ) next(ctx context.Context, r block.Range) (at uint64, found bool, err error) {
	i := sort.Search(len(d.touched), func(i int) bool { return d.touched[i].End() > r.Off })
	if i < len(d.touched) && d.touched[i].Off < r.End() {
		at, found = max(r.Off, d.touched[i].Off), true
		r.Len = at - r.Off
	}
	if r.Len == 0 || !d.s.mapsDiffer(d.common()) {
		return at, found, ctx.Err()
	}
	err = d.s.whileMoving(func() error {
		off, differs, err := d.s.maps.NextDifference(ctx, d.base.node().effectiveRoot(), d.top.node().effectiveRoot(), r)
		if err == nil && differs {
			at, found = off-off%block.SectorSize, true
		}
		return err
	})
	return at, found, err
}

func (d *differ) common() *node {
	_, common := between(d.base.node(), d.top.node())
	return common
}

// window tells what differs in a window.
func (d *differ) window(ctx context.Context, window block.Range) error {
	d.windows++
	var changed []block.Range
	var kinds []depthRun
	err := d.s.whileMoving(func() (err error) {
		top := d.top.node()
		if changed, err = d.s.changedBetween(ctx, d.base.node(), top, window); err != nil || len(changed) == 0 {
			return err
		}
		w := depthWalk{s: d.s, top: top, kinds: true}
		w.window = block.Range{Off: changed[0].Off, Len: changed[len(changed)-1].End() - changed[0].Off}
		first, count := blocksOf(w.window.Off, w.window.Len)
		err = w.layers(top, first, count, 1)
		kinds = w.sectors()
		return err
	})
	if err != nil || len(changed) == 0 {
		return err
	}
	at := changed[0].Off
	for _, run := range kinds {
		end := at + run.n
		for len(changed) > 0 && changed[0].Off < end {
			lo, hi := max(at, changed[0].Off), min(end, changed[0].End())
			d.add(Change{Off: lo, Len: hi - lo, Kind: ChangeKind(run.depth)})
			if changed[0].End() > end {
				break
			}
			changed = changed[1:]
		}
		at = end
	}
	return ctx.Err()
}

// add tells a change, joined with the one before where they touch and are of one kind.
func (d *differ) add(c Change) {
	if d.pending.Kind == c.Kind && d.pending.Len > 0 && d.pending.Off+d.pending.Len == c.Off {
		d.pending.Len += c.Len
		return
	}
	d.flush()
	d.pending = c
}

func (d *differ) flush() {
	if d.pending.Len > 0 && !d.stopped {
		d.stopped = !d.emit(d.pending)
	}
	d.pending = Change{}
}
