package blockstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
)

const (
	// MaxBitmaps is how many bitmaps a volume can have. It is part of the disk format.
	MaxBitmaps = 64
	// BitmapGranule is how finely a bitmap tells what changed, in bytes. It is part of the disk format.
	BitmapGranule = 64 << 10
)

// bitmapState is the name of the state that a bitmap closes where it begins. That is deleted in the same moment, so nobody sees it.
const bitmapState = ".bitmap"

// bitmap is a name for what changed in a volume since a moment. It holds no data, old or new: what changed is known by the nodes that it was written to (bitmaptouch.go). Store.tree guards all bitmaps of a volume.
type bitmap struct {
	ID    uint64 // sequence number of the record that added it; never that of another one
	Epoch nodeID // the head that was made when it began: what was written to this node or a later one has changed
	Since int64  // when that was, ns since the epoch
	Size  uint64 // bytes: the least size that the volume had since then. What lies behind it was not there all the time, and counts as changed
	All   bool   // the volume was rolled back since: all of it counts as changed
	Name  string
}

// BitmapInfo describes a bitmap.
type BitmapInfo struct {
	Name string
	// Epoch is the sequence number of the log from which on changes count.
	Epoch block.Epoch
	// Since is when it was added, or cleared last.
	Since time.Time
	// All says that everything counts as changed, as the volume was rolled back since. Clearing the bitmap ends that.
	All bool
}

// AddBitmap begins to remember which parts of a volume change from here on, under a name that no other bitmap and no snapshot of it has: else ErrExists. A volume has MaxBitmaps of them at most: else ErrInvalid. Its writers wait for some
// microseconds, as for a snapshot. The first bitmap of a store makes older programs refuse the store, for good.
func (s *Store) AddBitmap(_ context.Context, volume, name string) (BitmapInfo, error) {
	err := CheckName(name)
	var v *Volume
	if err == nil {
		v, err = s.lookupVolume(volume)
	}
	if err == nil {
		_, err = s.op([]*Volume{v}, func() (*op, error) {
			switch {
			case v.gone.Load():
				return nil, block.ErrNotFound
			case s.snapshotLocked(v, name) != nil:
				return nil, fmt.Errorf("a snapshot has that name, and NBD clients tell both by it: %w", block.ErrExists)
			case v.bitmapLocked(name) != nil:
				return nil, block.ErrExists
			case len(v.bitmaps) >= MaxBitmaps:
				return nil, fmt.Errorf("the volume has %d bitmaps, and no more are possible; remove one first: %w", len(v.bitmaps), block.ErrInvalid)
			}
			return &op{Kind: opAddBitmap, Volume: v.id, Name: name}, nil
		})
	}
	if err != nil {
		return BitmapInfo{}, fmt.Errorf("add bitmap %q to volume %q: %w", name, volume, err)
	}
	return s.Bitmap(volume, name)
}

// ClearBitmap lets a bitmap begin again from here on, as if it had been added now. What is written meanwhile is in it.
func (s *Store) ClearBitmap(_ context.Context, volume, name string) (BitmapInfo, error) {
	v, err := s.lookupVolume(volume)
	if err == nil {
		_, err = s.op([]*Volume{v}, func() (*op, error) { return s.bitmapOpLocked(v, opClearBitmap, name) })
	}
	if err != nil {
		return BitmapInfo{}, fmt.Errorf("clear bitmap %q of volume %q: %w", name, volume, err)
	}
	return s.Bitmap(volume, name)
}

// RemoveBitmap forgets a bitmap. Clients that asked for it get errors from then on.
func (s *Store) RemoveBitmap(_ context.Context, volume, name string) error {
	v, err := s.lookupVolume(volume)
	if err == nil {
		_, err = s.op(nil, func() (*op, error) { return s.bitmapOpLocked(v, opRemoveBitmap, name) })
	}
	if err != nil {
		return fmt.Errorf("remove bitmap %q of volume %q: %w", name, volume, err)
	}
	return nil
}

func (s *Store) bitmapOpLocked(v *Volume, kind journal.Kind, name string) (*op, error) {
	if v.gone.Load() {
		return nil, block.ErrNotFound
	}
	b := v.bitmapLocked(name)
	if b == nil {
		return nil, block.ErrNotFound
	}
	return &op{Kind: kind, Volume: v.id, Node: nodeID(b.ID)}, nil
}

// Bitmaps describes the bitmaps of a volume, those first that began first.
func (s *Store) Bitmaps(volume string) ([]BitmapInfo, error) {
	s.tree.RLock()
	defer s.tree.RUnlock()
	v, err := s.volumeLocked(volume)
	if err != nil {
		return nil, err
	}
	all := make([]BitmapInfo, 0, len(v.bitmaps))
	for _, b := range v.orderedBitmapsLocked() {
		all = append(all, b.info())
	}
	return all, nil
}

// orderedBitmapsLocked returns the bitmaps of the volume, those first that began first. Store.tree is held.
func (v *Volume) orderedBitmapsLocked() []bitmap {
	all := slices.Clone(v.bitmaps)
	slices.SortFunc(all, func(a, b bitmap) int { return cmp.Compare(a.Epoch, b.Epoch) })
	return all
}

func (v *Volume) bitmapNamesLocked() (names []string) {
	for _, b := range v.orderedBitmapsLocked() {
		names = append(names, b.Name)
	}
	return names
}

// Bitmap describes one bitmap of a volume, or returns ErrNotFound.
func (s *Store) Bitmap(volume, name string) (BitmapInfo, error) {
	s.tree.RLock()
	defer s.tree.RUnlock()
	v, err := s.volumeLocked(volume)
	if err != nil {
		return BitmapInfo{}, err
	}
	if b := v.bitmapLocked(name); b != nil {
		return b.info(), nil
	}
	return BitmapInfo{}, fmt.Errorf("bitmap %q of volume %q: %w", name, volume, block.ErrNotFound)
}

func (b *bitmap) info() BitmapInfo {
	return BitmapInfo{Name: b.Name, Epoch: block.Epoch(b.Epoch), Since: time.Unix(0, b.Since), All: b.All}
}

// bitmapLocked returns the bitmap of that name, or nil. Store.tree is held.
func (v *Volume) bitmapLocked(name string) *bitmap {
	for i := range v.bitmaps {
		if v.bitmaps[i].Name == name {
			return &v.bitmaps[i]
		}
	}
	return nil
}

// freeNameLocked returns ErrExists when a snapshot or a bitmap of the volume has that name: a client that asks for changes names either. Store.tree is held.
func (s *Store) freeNameLocked(v *Volume, name string) error {
	switch {
	case s.snapshotLocked(v, name) != nil:
		return fmt.Errorf("snapshot %q: %w", name, block.ErrExists)
	case v.bitmapLocked(name) != nil:
		return fmt.Errorf("a bitmap has the name %q, and NBD clients tell both by it: %w", name, block.ErrExists)
	}
	return nil
}

// applyAddBitmapLocked puts a new head over what there is, so that the node of a write says whether it came before or after. The state below is nobody's: it is deleted at once, and goes as soon as all of it is in maps.
func (s *Store) applyAddBitmapLocked(o *op, v *Volume) error {
	s.beginEpochLocked(o, v)
	v.bitmaps = append(slices.Clone(v.bitmaps), bitmap{ID: o.Seq, Epoch: nodeID(o.Seq), Since: o.Time, Size: v.size.Load(), Name: o.Name})
	return nil
}

func (s *Store) applyClearBitmapLocked(o *op, v *Volume) error {
	return s.withBitmapLocked(o, v, func(all []bitmap, i int) []bitmap {
		s.beginEpochLocked(o, v)
		b := &all[i]
		b.Epoch, b.Since, b.Size, b.All = nodeID(o.Seq), o.Time, v.size.Load(), false
		return all
	})
}

func (s *Store) applyRemoveBitmapLocked(o *op, v *Volume) error {
	return s.withBitmapLocked(o, v, func(all []bitmap, i int) []bitmap { return slices.Delete(all, i, i+1) })
}

func (s *Store) beginEpochLocked(o *op, v *Volume) {
	s.closeHeadLocked(v, nodeDeleted, bitmapState, o.Seq, o.Time, nodeID(o.Seq))
}

// withBitmapLocked changes a copy of a volume's bitmaps, at the one that a record names.
func (s *Store) withBitmapLocked(o *op, v *Volume, change func(all []bitmap, i int) []bitmap) error {
	i := slices.IndexFunc(v.bitmaps, func(b bitmap) bool { return b.ID == uint64(o.Node) })
	if i < 0 {
		return &block.CorruptError{Source: fmt.Sprintf("control record %d", o.Seq), Want: fmt.Sprintf("a bitmap of volume %d", v.id), Got: fmt.Sprint(o.Node)}
	}
	if v.bitmaps = change(slices.Clone(v.bitmaps), i); len(v.bitmaps) == 0 {
		s.freeTouched.Store(true)
	}
	return nil
}

// resizedLocked notes that the volume has a new size. What it grows by was not there when its bitmaps began. Store.tree is held.
func (v *Volume) resizedLocked(size uint64) {
	v.bitmaps = slices.Clone(v.bitmaps)
	for i := range v.bitmaps {
		v.bitmaps[i].Size = min(v.bitmaps[i].Size, size)
	}
}

// rolledBackLocked makes all of the volume changed, to all its bitmaps: whoever copied what they told has states that are no part of its past any more. Store.tree is held.
func (v *Volume) rolledBackLocked() {
	v.bitmaps = slices.Clone(v.bitmaps)
	for i := range v.bitmaps {
		v.bitmaps[i].All = true
	}
}
