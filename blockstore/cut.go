package blockstore

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

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

// piece is a run of bytes of a region that destage replaces: by chunks that cover it, or by nothing, or by the note that it is lost.
type piece struct {
	off, n  uint64 // volume offset, bytes
	chunks  []cutChunk
	damaged bool
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
	n       *node
	snap    overlay.RegionSnapshot
	buf     []byte
	pieces  []piece
	chunks  []cutChunk // backing of all pieces' chunks
	lens    []uint32
	sums    []uint32
	hashers []*dedup.Hasher // one for each goroutine that hashes
	cutter  *cdc.Cutter
	params  cdc.Params
	data    int64 // bytes read from the log
}

// load reads what the snapshot of the region names, cuts it and hashes it. It changes nothing. Other regions of the map may be replaced meanwhile.
func (w *regionWork) load(s *Store) error {
	for {
		root := w.root()
		err := w.loadFrom(s, root)
		if !errors.Is(err, block.ErrNotFound) {
			return err
		}
		s.awaitPublished()
		if w.root() == root {
			return err
		}
	}
}

// root is the map below what the snapshot names.
func (w *regionWork) root() extentmap.Root {
	if w.snap.Void() {
		return extentmap.Root{}
	}
	return w.n.effectiveRoot()
}

func (w *regionWork) loadFrom(s *Store, root extentmap.Root) error {
	w.pieces, w.chunks, w.data = w.pieces[:0], w.chunks[:0], 0
	base := w.snap.Region * block.RegionSize
	s.fetchPieces(w.snap.Slots)
	if w.snap.Zeroed != 0 {
		w.pieces = append(w.pieces, piece{off: base, n: block.RegionSize})
	}
	recut, err := w.recut(s, root)
	if err != nil {
		return err
	}
	if recut {
		// What cannot be read stays as it is. What is dirty goes down all the same: it may be what heals the region.
		if err = w.loadWhole(s, base); errors.Is(err, block.ErrCorrupt) {
			w.pieces, w.chunks, w.data = w.pieces[:0], w.chunks[:0], 0
			recut = false
			if w.snap.Zeroed != 0 {
				w.pieces = append(w.pieces, piece{off: base, n: block.RegionSize})
			}
		}
	}
	if !recut {
		err = w.loadRuns(s, base)
	}
	if err != nil {
		return err
	}
	for i, at := 0, 0; i < len(w.pieces); i++ { // the chunks may have moved while they were gathered
		if k := len(w.pieces[i].chunks); k > 0 {
			w.pieces[i].chunks = w.chunks[at : at+k : at+k]
			at += k
		}
	}
	w.hash()
	return nil
}

// hashedAtOnce is how many chunks a goroutine takes to hash before it looks for more.
const hashedAtOnce = 64

// recut decides whether the whole region is cut anew.
func (w *regionWork) recut(s *Store, root extentmap.Root) (bool, error) {
	if root.ID == 0 || w.snap.Data == 0 || w.snap.Data == block.BlocksPerRegion {
		return false, nil // nothing of the old region would be left
	}
	extents, err := s.maps.Extents(root, w.snap.Region)
	if err != nil {
		return false, err
	}
	if s.space.fill.Load() >= fillDestage && extents+w.snap.Data <= recutFragmentsPressed {
		if extents+w.snap.Data > piecesMost(w.n.volume.cut) {
			s.recuts.note(w.n, w.snap.Region)
		}
		return false, nil // guests wait for room in the log: the dirty blocks alone are several times less work
	}
	return extents > 0 && (w.snap.Data >= recutDirtyBlocks || extents+w.snap.Data > max(recutFragments, piecesMost(w.n.volume.cut))), nil
}

// loadWhole makes one piece of the region: its map content with the dirty blocks laid over it.
func (w *regionWork) loadWhole(s *Store, base uint64) error {
	r := &reader{s: s, ctx: s.ctx, p: w.buf, off: base}
	_, err := r.settle(nil, func() error {
		// The region stays as it is, but other regions under the root are replaced, and chunks move when segments are rewritten.
		return r.fromMap(w.root(), block.Range{Off: base, Len: block.RegionSize})
	})
	if err != nil {
		return fmt.Errorf("read region %d for cutting it anew: %w", w.snap.Region, err)
	}
	for slots := w.snap.Slots; len(slots) > 0; {
		n := runLen(slots)
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

// loadRuns makes a piece of each run of dirty blocks that lie side by side. A block whose bytes in the log are not those that were written is lost, and goes into the map as
// that: it alone answers EIO, and what else is in its log file does not wait for it for ever.
func (w *regionWork) loadRuns(s *Store, base uint64) error {
	var start, end uint64 // the open run of data, offsets in the region
	flush := func() error {
		if end == start {
			return nil
		}
		return w.cut(base+start, w.buf[start:end])
	}
	single := 0 // so many slots are read one by one, since one of them is bad
	for slots := w.snap.Slots; len(slots) > 0; {
		n := runLen(slots)
		if single > 0 {
			n, single = 1, single-1
		}
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
			slots = slots[n:]
			continue
		}
		err := w.readLog(s, w.buf[at:at+size], slots[:n])
		if errors.Is(err, block.ErrCorrupt) && n > 1 {
			single = n
			continue
		}
		if errors.Is(err, block.ErrCorrupt) { // once more, and not out of the mapping
			err = s.log.ReadAt(w.buf[at:at+size], journal.Pos(slots[0].Pos), w.sums)
		}
		slots = slots[n:]
		switch {
		case err == nil:
			end = at + size
		case !errors.Is(err, block.ErrCorrupt):
			return err
		default:
			if err := flush(); err != nil {
				return err
			}
			s.report("destage", fmt.Errorf("volume %d lost %d B at %d: %w", w.n.volume.id, size, base+at, err))
			w.pieces = append(w.pieces, piece{off: base + at, n: size, damaged: true})
			start, end = at+size, at+size
		}
	}
	return flush()
}

// runLen returns how many of the first slots are neighbours of one kind and, for data, lie one after the other in the log.
func runLen(slots []overlay.Slot) int {
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
	if err := s.log.ReadAround(dst, journal.Pos(slots[0].Pos), w.sums); err != nil {
		return fmt.Errorf("destage volume %d, block %d of region %d: %w", w.n.volume.id, slots[0].Block, w.snap.Region, err)
	}
	return nil
}

// hash computes the hashes of all chunks but those of zeroes, with several goroutines.
func (w *regionWork) hash() {
	var next atomic.Int64
	work := func(h *dedup.Hasher) {
		for {
			first := int(next.Add(hashedAtOnce)) - hashedAtOnce
			if first >= len(w.chunks) {
				return
			}
			for i := first; i < min(first+hashedAtOnce, len(w.chunks)); i++ {
				if c := &w.chunks[i]; !c.zero {
					c.hash = h.Sum(c.raw)
				}
			}
		}
	}
	var wg sync.WaitGroup
	for k := 1; k < len(w.hashers) && k*hashedAtOnce < len(w.chunks); k++ {
		wg.Go(func() { work(w.hashers[k]) })
	}
	work(w.hashers[0])
	wg.Wait()
}

// cut makes a piece of data, which lies at off in the volume: its chunks, not yet hashed.
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
		c.zero = dedup.IsZero(c.raw)
		w.chunks = append(w.chunks, c)
		at += uint64(n)
	}
	w.pieces = append(w.pieces, piece{off: off, n: uint64(len(data)), chunks: w.chunks[first:len(w.chunks):len(w.chunks)]})
	return nil
}
