package blockstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// maxReadRetries bounds how often a read starts again because the map moved under it. Each round needs a commit in between, so a few are enough.
const maxReadRetries = 100

// reader fills one buffer from one node. It is pooled; its slices keep their capacity.
type reader struct {
	s     *Store
	ctx   context.Context
	try   bool // answer ErrWouldBlock instead of reading from a device
	p     []byte
	off   uint64 // volume offset of p[0], bytes
	holes []block.Range

	runs   []overlay.Run
	sums   []uint32
	edge   [block.Size]byte
	pieces []journal.Piece // of the log, of a read of scattered blocks
	missed []wanted        // what the frame cache did not have
}

// scatteredRuns is from how many runs on a read is one of scattered blocks: a copy out of the mapped log costs less than a call for each of them.
const scatteredRuns = 16

var readerPool = sync.Pool{New: func() any { return new(reader) }}

// readNode fills p with the bytes of a node at off.
func (s *Store) readNode(ctx context.Context, n *node, p []byte, off uint64) error {
	_, err := s.read(ctx, n, p, off, nil, false)
	return err
}

// read fills p with the bytes of a node at off and appends to holes what is known to be empty. With try it never waits for a device.
func (s *Store) read(ctx context.Context, n *node, p []byte, off uint64, holes []block.Range, try bool) ([]block.Range, error) {
	if len(p) == 0 {
		return holes, nil
	}
	r := readerPool.Get().(*reader)
	defer readerPool.Put(r)
	r.s, r.ctx, r.try, r.p, r.off = s, ctx, try, p, off
	defer func() { r.p, r.ctx, r.holes = nil, nil, nil }()
	return r.settle(holes, func() error { return r.once(n) })
}

// settle runs one attempt at a read until the map holds still for it. What the attempt missed in the frame cache is read at its end.
func (r *reader) settle(holes []block.Range, once func() error) ([]block.Range, error) {
	s, try := r.s, r.try
	for attempt := 0; ; attempt++ {
		r.holes = holes
		err := once()
		if len(r.missed) > 0 {
			if err == nil {
				err = s.chunks.fetch(r.ctx, r.missed, try)
			}
			clear(r.missed)
			r.missed = r.missed[:0]
		}
		if err == nil {
			return r.holes, nil
		}
		// A page or chunk row that is gone means that the map moved between the look at the root and the look at the row: the next look finds the new one.
		moved := errors.Is(err, block.ErrNotFound)
		if moved && try {
			return holes, block.ErrWouldBlock
		}
		if !moved || attempt >= maxReadRetries {
			if moved {
				err = fmt.Errorf("the map does not come to rest: %w: %w", block.ErrCorrupt, err)
			}
			if errors.Is(err, block.ErrCorrupt) && s.opts.Events.Corruption != nil {
				s.opts.Events.Corruption(err)
			}
			return holes, err
		}
		s.awaitPublished()
	}
}

// awaitPublished returns when the metadata batch that was being published when it was called, if there was one, can be seen.
func (s *Store) awaitPublished() {
	s.publishing.RLock()
	//lint:ignore SA2001 the lock is only waited for
	s.publishing.RUnlock()
}

func (r *reader) once(n *node) error {
	pin := r.s.log.Pin()
	defer pin.Release()
	first, count := blocksOf(r.off, uint64(len(r.p)))
	return r.layers(n, first, count)
}

// layers answers blocks [first, first+count) from the overlay of n, and what is absent there from what lies below it.
func (r *reader) layers(n *node, first, count uint64) error {
	mark, sumMark := len(r.runs), len(r.sums)
	defer func() {
		r.runs, r.sums = r.runs[:mark], r.sums[:sumMark]
		clear(r.pieces) // some are left after an error only
		r.pieces = r.pieces[:0]
	}()

	r.runs, r.sums = n.layer.LookupInto(r.runs, r.sums, first, count)
	end := len(r.runs)
	scattered := end-mark >= scatteredRuns
	if scattered && r.try {
		return block.ErrWouldBlock // it is long anyhow: a worker does it, beside the reader of the connection
	}
	for i := mark; i < end; i++ {
		run := r.runs[i]
		var err error
		switch run.Kind {
		case overlay.Data:
			err = r.fromLog(run, scattered)
		case overlay.Zero:
			r.zero(r.clip(run.Block*block.Size, run.N*block.Size))
		default:
			// The root is loaded only now, after the overlay was searched: destage publishes a root before it drops slots.
			if parent := n.parent.Load(); n.root.Load() == nil && parent != nil {
				err = r.layers(parent, run.Block, run.N)
			} else {
				err = r.fromMap(n.effectiveRoot(), r.clip(run.Block*block.Size, run.N*block.Size))
			}
		}
		if err != nil {
			return err
		}
	}
	return r.readPieces()
}

// readPieces reads what was noted of the log. The checksums lie in r.sums, so this is done before that is used for something else.
func (r *reader) readPieces() error {
	if len(r.pieces) == 0 {
		return nil
	}
	err := r.s.log.ReadScattered(r.pieces)
	clear(r.pieces)
	r.pieces = r.pieces[:0]
	return err
}

// clip cuts a range of the volume to the part that the buffer asks for.
func (r *reader) clip(off, n uint64) block.Range {
	lo := max(off, r.off)
	hi := min(off+n, r.off+uint64(len(r.p)))
	return block.Range{Off: lo, Len: hi - lo}
}

func (r *reader) buf(g block.Range) []byte {
	at := g.Off - r.off
	return r.p[at : at+g.Len]
}

// zero answers a range that is known to be empty.
func (r *reader) zero(g block.Range) {
	clear(r.buf(g))
	if k := len(r.holes); k > 0 && r.holes[k-1].End() == g.Off {
		r.holes[k-1].Len += g.Len
		return
	}
	r.holes = append(r.holes, g)
}

// fromLog reads a run of sectors that lie one after the other in the log. Whole blocks go straight into the buffer; a block that the buffer wants only a part of goes
// through the edge block, so that its checksum can be verified. Of scattered blocks it only notes where they lie.
func (r *reader) fromLog(run overlay.Run, scattered bool) error {
	g := r.clip(run.Block*block.Size, run.N*block.Size)
	for g.Len > 0 {
		i := g.Off/block.Size - run.Block
		inner := g.Off % block.Size
		if whole := g.Len / block.Size; inner == 0 && whole > 0 {
			n := whole * block.Size
			if err := r.readLog(r.buf(block.Range{Off: g.Off, Len: n}), journal.Pos(run.Pos+i*block.Size), run.Sums[i:i+whole], scattered); err != nil {
				return err
			}
			g.Off, g.Len = g.Off+n, g.Len-n
			continue
		}
		n := min(block.Size-inner, g.Len)
		if err := r.readLog(r.edge[:], journal.Pos(run.Pos+i*block.Size), run.Sums[i:i+1], false); err != nil {
			return err
		}
		copy(r.buf(block.Range{Off: g.Off, Len: n}), r.edge[inner:])
		g.Off, g.Len = g.Off+n, g.Len-n
	}
	return nil
}

// readLog reads sectors that lie one after the other in the log and checks them, or notes them if they are to be read together with others.
func (r *reader) readLog(p []byte, pos journal.Pos, sums []uint32, later bool) error {
	switch {
	case history.InHistory(uint64(pos)) && r.try:
		return block.ErrWouldBlock
	case history.InHistory(uint64(pos)):
		return r.s.historian.set.ReadAt(p, uint64(pos), sums)
	case r.try:
		return r.s.log.TryReadAt(p, pos, sums)
	case later:
		r.pieces = append(r.pieces, journal.Piece{P: p, Pos: pos, Sums: sums})
		return nil
	}
	return r.s.log.ReadAt(p, pos, sums)
}

// fromMap answers a range from a map root.
func (r *reader) fromMap(root extentmap.Root, g block.Range) error {
	if root.ID == 0 {
		r.zero(g)
		return nil
	}
	at := g.Off
	var inner error
	err := r.s.maps.Lookup(root, g.Off, g.Len, func(e extentmap.Extent) bool {
		if e.Off > at {
			r.zero(block.Range{Off: at, Len: e.Off - at})
		}
		inner = r.extent(e)
		at = e.Off + uint64(e.Len)
		return inner == nil
	})
	if err = errors.Join(err, inner); err != nil {
		return err
	}
	if end := g.End(); at < end {
		r.zero(block.Range{Off: at, Len: end - at})
	}
	return nil
}

func (r *reader) extent(e extentmap.Extent) error {
	g := block.Range{Off: e.Off, Len: uint64(e.Len)}
	switch e.Kind {
	case extentmap.KindZero:
		r.zero(g)
		return nil
	case extentmap.KindChunk:
		return r.chunk(e, r.buf(g))
	}
	return &block.CorruptError{Source: "volume extent", Offset: int64(e.Off), Want: "readable data", Got: fmt.Sprintf("an extent of kind %d", e.Kind)}
}

// chunk answers an extent from the frame cache, or notes it among what is missed: that is read at the end, neighbours together.
func (r *reader) chunk(e extentmap.Extent, p []byte) error {
	c := r.s.chunks
	w, err := c.want(e, p)
	if err != nil {
		return err
	}
	r.s.at(afterChunkRow)
	if hit, err := c.cached(&w); hit || err != nil {
		return err
	}
	r.missed = append(r.missed, w)
	return nil
}
