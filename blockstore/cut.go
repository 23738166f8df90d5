package blockstore

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// Of a region that has a map page already, so much dirty data or so many extents make destage cut the whole region anew instead of the dirty runs alone: many small
// overwrites would otherwise leave it in pieces.
const (
	recutDirtyBlocks = block.BlocksPerRegion / 4
	recutFragments   = 2 * block.RegionSize / (16 << 10)
	// recutFragmentsPressed is the bound while the log is filling up: no more than if every block were an extent of its own.
	recutFragmentsPressed = 2 * block.BlocksPerRegion
)

// piece is a run of bytes of a region that destage replaces: by chunks that cover it, or by nothing.
type piece struct {
	off, n uint64 // volume offset, bytes
	chunks []cutChunk
}

// cutChunk is a chunk as the cutter found it. raw lies in the buffer of its regionWork.
type cutChunk struct {
	off  uint64 // volume offset, bytes
	raw  []byte
	zero bool
	hash block.Hash
}

// regionWork is one region on its way from the log to the map. It owns a buffer of one region.
type regionWork struct {
	n      *node
	snap   overlay.RegionSnapshot
	buf    []byte
	pieces []piece
	chunks []cutChunk // backing of all pieces' chunks
	lens   []uint32
	sums   []uint32
	hasher *dedup.Hasher
	cutter *cdc.Cutter
	params cdc.Params
	data   int64 // bytes read from the log
}

// load reads what the snapshot of the region names, cuts it and hashes it. It changes nothing.
func (w *regionWork) load(s *Store) error {
	w.pieces, w.chunks, w.data = w.pieces[:0], w.chunks[:0], 0
	base := w.snap.Region * block.RegionSize
	if w.snap.Zeroed != 0 {
		w.pieces = append(w.pieces, piece{off: base, n: block.RegionSize})
	}
	root := w.n.effectiveRoot()
	if w.snap.Void() {
		root = extentmap.Root{}
	}
	recut, err := w.recut(s, root)
	if err != nil {
		return err
	}
	if recut {
		return w.loadWhole(s, root, base)
	}
	return w.loadRuns(s, base)
}

// recut decides whether the whole region is cut anew.
func (w *regionWork) recut(s *Store, root extentmap.Root) (bool, error) {
	if root.ID == 0 || w.snap.Data == 0 {
		return false, nil
	}
	page, err := s.maps.Region(root, w.snap.Region)
	if err != nil {
		return false, err
	}
	extents := page.Len()
	if s.space.fill.Load() >= fillDestage && extents+w.snap.Data <= recutFragmentsPressed {
		return false, nil // guests wait for room in the log: the dirty blocks alone are several times less work
	}
	return extents > 0 && (w.snap.Data >= recutDirtyBlocks || extents+w.snap.Data > recutFragments), nil
}

// loadWhole makes one piece of the region: its map content with the dirty blocks laid over it.
func (w *regionWork) loadWhole(s *Store, root extentmap.Root, base uint64) error {
	r := &reader{s: s, ctx: s.ctx, p: w.buf, off: base}
	_, err := r.settle(nil, func() error {
		// The root stays while it is being destaged into, but chunks under it move when segments are rewritten.
		return r.fromMap(root, block.Range{Off: base, Len: block.RegionSize})
	})
	if err != nil {
		return fmt.Errorf("read region %d for cutting it anew: %w", w.snap.Region, err)
	}
	for slots := w.snap.Slots; len(slots) > 0; {
		n := w.runLen(slots)
		at := uint64(slots[0].Block) * block.Size
		dst := w.buf[at : at+uint64(n)*block.Size]
		if slots[0].Kind == overlay.Zero {
			clear(dst)
		} else if err := w.readLog(s, dst, slots[:n]); err != nil {
			return err
		}
		slots = slots[n:]
	}
	return w.cut(base, w.buf)
}

// loadRuns makes a piece of each run of dirty blocks that lie side by side.
func (w *regionWork) loadRuns(s *Store, base uint64) error {
	var start, end uint64 // the open run of data, offsets in the region
	flush := func() error {
		if end == start {
			return nil
		}
		return w.cut(base+start, w.buf[start:end])
	}
	for slots := w.snap.Slots; len(slots) > 0; {
		n := w.runLen(slots)
		at, size := uint64(slots[0].Block)*block.Size, uint64(n)*block.Size
		if slots[0].Kind == overlay.Zero || at != end {
			if err := flush(); err != nil {
				return err
			}
			start, end = at, at
		}
		if slots[0].Kind == overlay.Zero {
			w.pieces = append(w.pieces, piece{off: base + at, n: size})
			start, end = at+size, at+size
		} else {
			end = at + size
			if err := w.readLog(s, w.buf[at:end], slots[:n]); err != nil {
				return err
			}
		}
		slots = slots[n:]
	}
	return flush()
}

// runLen returns how many of the first slots are neighbours of one kind and, for data, lie one after the other in the log.
func (w *regionWork) runLen(slots []overlay.Slot) int {
	n := 1
	for n < len(slots) && slots[n].Block == slots[n-1].Block+1 && slots[n].Kind == slots[0].Kind &&
		(slots[0].Kind == overlay.Zero || slots[n].Pos == slots[n-1].Pos+block.Size) {
		n++
	}
	return n
}

func (w *regionWork) readLog(s *Store, dst []byte, slots []overlay.Slot) error {
	w.data += int64(len(dst))
	w.sums = w.sums[:0]
	for i := range slots {
		w.sums = append(w.sums, slots[i].Sum)
	}
	if err := s.log.ReadAt(dst, journal.Pos(slots[0].Pos), w.sums); err != nil {
		return fmt.Errorf("destage volume %d, block %d of region %d: %w", w.n.volume.id, slots[0].Block, w.snap.Region, err)
	}
	return nil
}

// cut makes a piece of data, which lies at off in the volume: its chunks, each hashed unless it is all zeroes.
func (w *regionWork) cut(off uint64, data []byte) error {
	if w.cutter == nil || w.params != w.n.volume.cut {
		cutter, err := cdc.NewCutter(w.n.volume.cut)
		if err != nil {
			return err
		}
		w.cutter, w.params = cutter, w.n.volume.cut
	}
	first := len(w.chunks)
	w.lens = w.cutter.Cut(w.lens[:0], data, off)
	at := uint64(0)
	for _, n := range w.lens {
		c := cutChunk{off: off + at, raw: data[at : at+uint64(n)]}
		if c.zero = dedup.IsZero(c.raw); !c.zero {
			c.hash = w.hasher.Sum(c.raw)
		}
		w.chunks = append(w.chunks, c)
		at += uint64(n)
	}
	w.pieces = append(w.pieces, piece{off: off, n: uint64(len(data)), chunks: w.chunks[first:len(w.chunks):len(w.chunks)]})
	return nil
}
