package blockstore

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// bitmapFor returns the bitmap of that name, if the device is of a state since it began.
func (d *Device) bitmapFor(name string) (b bitmap, ok bool) {
	s := d.v.s
	s.tree.RLock()
	defer s.tree.RUnlock()
	if found := d.v.bitmapLocked(name); found != nil && d.inBitmapLocked(found) {
		return *found, true
	}
	return b, false
}

// inBitmapLocked reports whether the device's state comes after the begin of a bitmap. A moment of history is not told of: the layers that it is made of are not those that destage takes down. Store.tree is held.
func (d *Device) inBitmapLocked(b *bitmap) bool { return d.point == nil && d.node().id >= b.Epoch }

// bitmapNamesLocked returns the names of the bitmaps that the device can tell of, newest first. Store.tree is held.
func (d *Device) bitmapNamesLocked() (names []string) {
	all := d.v.orderedBitmapsLocked()
	slices.Reverse(all)
	for i := range all {
		if d.inBitmapLocked(&all[i]) {
			names = append(names, all[i].Name)
		}
	}
	return names
}

// granuleSet is which granules of a window have changed.
type granuleSet struct {
	window block.Range
	first  uint64 // granule
	bits   []uint64
}

func newGranuleSet(window block.Range) *granuleSet {
	first, end := window.Off/BitmapGranule, (window.End()+BitmapGranule-1)/BitmapGranule
	return &granuleSet{window: window, first: first, bits: make([]uint64, (end-first+63)/64)}
}

// add adds the granules that a range meets, as far as they lie in the window.
func (g *granuleSet) add(off, n uint64) {
	off, end := max(off, g.window.Off), min(off+n, g.window.End())
	if off >= end {
		return
	}
	for at := off / BitmapGranule; at <= (end-1)/BitmapGranule; at++ {
		g.bits[(at-g.first)/64] |= 1 << ((at - g.first) % 64)
	}
}

func (g *granuleSet) has(granule uint64) bool {
	return g.bits[(granule-g.first)/64]>>((granule-g.first)%64)&1 != 0
}

// ranges returns what was added, joined, cut to the window.
func (g *granuleSet) ranges() (all []block.Range) {
	for at := g.window.Off; at < g.window.End(); {
		if next := at/BitmapGranule - g.first; next%64 == 0 && g.bits[next/64] == 0 {
			at = (g.first + next + 64) * BitmapGranule
			continue
		}
		end := min((at/BitmapGranule+1)*BitmapGranule, g.window.End())
		if g.has(at / BitmapGranule) {
			if k := len(all); k > 0 && all[k-1].End() == at {
				all[k-1].Len += end - at
			} else {
				all = append(all, block.Range{Off: at, Len: end - at})
			}
		}
		at = end
	}
	return all
}

// changedInBitmap returns the parts of a window, in order and not touching, that count as changed to a bitmap, as a state of its volume has them.
func (s *Store) changedInBitmap(v *Volume, top *node, b bitmap, window block.Range) ([]block.Range, error) {
	if b.All {
		return []block.Range{window}, s.stillBitmap(v, b)
	}
	g := newGranuleSet(window)
	if window.End() > b.Size {
		g.add(b.Size, window.End()-b.Size)
	}
	// Layers first: what destage takes out of them is in rows before.
	first, count := blocksOf(window.Off, window.Len)
	for n := top; n != nil && n.volume == v && n.id >= b.Epoch; n = n.parent.Load() {
		if n.layer.Empty() {
			continue
		}
		runs, _ := n.layer.LookupInto(nil, nil, first, count)
		for _, run := range runs {
			if run.Kind != overlay.Absent {
				g.add(run.Block*block.Size, run.N*block.Size)
			}
		}
	}
	if err := s.addTouched(v.id, b.Epoch, g); err != nil {
		return nil, err
	}
	return g.ranges(), s.stillBitmap(v, b)
}

// stillBitmap returns ErrNotFound when a bitmap was removed or cleared: rows forget then what only that one needed.
func (s *Store) stillBitmap(v *Volume, b bitmap) error {
	s.tree.RLock()
	defer s.tree.RUnlock()
	if now := v.bitmapLocked(b.Name); now == nil || now.ID != b.ID || now.Epoch != b.Epoch {
		return fmt.Errorf("bitmap %q was removed or cleared meanwhile; ask again: %w", b.Name, block.ErrNotFound)
	}
	return nil
}

// addTouched adds what rows tell.
func (s *Store) addTouched(id block.VolumeID, since nodeID, g *granuleSet) (err error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: touchedKey{volume: id}.bytes(), UpperBound: touchedKey{volume: id + 1}.bytes()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Error(), it.Close()) }()
	unit := uint64(BitmapGranule) // bytes of a bit
	for level := range uint64(touchedTopLevel + 1) {
		firstRow, lastRow := g.window.Off/unit/touchedRowBits, (g.window.End()-1)/unit/touchedRowBits
		for ok := it.SeekGE(touchedKey{id, level, firstRow}.bytes()); ok; ok = it.Next() {
			k, err := parseTouchedKey(it.Key())
			if err != nil {
				return err
			}
			if k.level != level || k.index > lastRow {
				break
			}
			value, err := it.ValueAndErr()
			if err != nil {
				return err
			}
			bits := allGranules
			if row, err := decodeTouched(it.Key(), value); err == nil {
				bits = row.since(since)
			} else {
				s.report("read which granules changed", err) // all of it may have
			}
			for i := range uint64(touchedRowBits) {
				if bits.has(i) {
					g.add((k.index*touchedRowBits+i)*unit, unit)
				}
			}
		}
		unit *= touchedRowBits
	}
	return nil
}
