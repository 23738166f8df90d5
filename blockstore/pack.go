package blockstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

// packer decides which chunks are new, packs those into frames and appends these to the open segment. It is used only by the holder of Store.meta.
//
// Frames are gathered and compressed in parallel in groups; the rows of their chunks are written when their place is known. There is one for destage, one for what survives in warm segments that are emptied, and one for the cold class.
type packer struct {
	s    *Store
	form packForm
	w    *segment.Writer
	file tiers.Writer
	id   block.SegmentID

	pending []packChunk // of the frame that is being filled
	raw     int         // bytes in pending
	group   []*packFrame
	free    []*packFrame
	extents []extentmap.Extent
	givenUp []block.SegmentID // left open by batches that failed
}

// packForm is how a class of segments is packed.
type packForm struct {
	class segment.Class
	codec segment.Codec
	raw   int // bytes at which a frame is closed
	group int // frames that are compressed at once
}

// Frames of the warm class are small, so that random reads are cheap; those of the cold class as large as reads of cold data can bear (docs/format/frame.md).
var (
	warmForm = packForm{class: segment.Warm, codec: segment.S2, raw: segment.FrameRawTarget, group: framesPerGroup}
	coldForm = packForm{class: segment.Cold, codec: segment.Zstd, raw: segment.ColdFrameRawTarget, group: 4}
)

// coldFormFor is how cold segments are packed in a store with this much memory for decoded frames: where the cache could not hold some of them, each small read would decode a whole one.
func coldFormFor(frameCache int64, effort segment.Effort) packForm {
	f := coldForm
	switch {
	case frameCache < 16*segment.ColdFrameRawTarget:
		f.raw = segment.ColdFrameRawTarget / 4
	case effort == segment.High && frameCache >= 8*segment.MaxFrameRaw: // small counts more
		f.raw = segment.DenseFrameRawTarget
	}
	return f
}

// packChunk is a chunk on its way into a frame. moved is set for one that has a row already and only changes its place; gone for one that lost its row, or got another
// place, while the frame was made: the frame has its bytes, and nothing refers to them.
type packChunk struct {
	segment.Chunk
	moved, gone bool
	read        int  // its number in the batch that goes cold
	alike       bool // it lies behind one that it is like
}

// packFrame is a frame on its way through compression. It owns a copy of nothing but what it encoded.
type packFrame struct {
	chunks []packChunk
	input  []segment.Chunk
	out    []byte
	enc    *segment.Encoder
	err    error
}

// framesPerGroup is how many frames are compressed at once.
const framesPerGroup = 64

func (p *packer) init(s *Store, form packForm) { p.s, p.form = s, form }

// region turns the pieces of one region into extents and puts these into the map. Raw bytes of w are not needed any more when it returns.
func (p *packer) region(m *metaBatch, e *mapEdit, w *regionWork) error {
	for i := range w.pieces {
		piece := &w.pieces[i]
		if piece.damaged {
			p.extents = append(p.extents[:0], extentmap.Extent{Off: piece.off, Len: uint32(piece.n), Kind: extentmap.KindDamaged})
			if err := e.replace(piece.off, piece.n, p.extents); err != nil {
				return err
			}
			continue
		}
		if piece.chunks == nil {
			if err := e.detach(piece.off, piece.n); err != nil {
				return err
			}
			continue
		}
		p.extents = p.extents[:0]
		for j := range piece.chunks {
			c := &piece.chunks[j]
			if c.zero {
				continue
			}
			id, err := p.chunk(m, c)
			if err != nil {
				return err
			}
			p.extents = append(p.extents, extentmap.Extent{Off: c.off, Len: uint32(len(c.raw)), Kind: extentmap.KindChunk, Chunk: id, Hash8: [8]byte(c.hash[:8])})
		}
		if err := e.replace(piece.off, piece.n, p.extents); err != nil {
			return err
		}
	}
	return p.drain(m)
}

// chunk returns the id of a chunk with these bytes: one that is stored already, or a new one that is put into the next frame.
func (p *packer) chunk(m *metaBatch, c *cutChunk) (block.ChunkID, error) {
	key := [16]byte(c.hash[:16])
	var looked error
	if !p.s.opts.ReduceOff {
		id, err := m.known(key, len(c.raw))
		if err == nil || !errors.Is(err, block.ErrNotFound) {
			return id, err
		}
		looked = err
	}
	m.c.NextChunk++
	id := block.ChunkID(m.c.NextChunk)
	m.hints[key] = id
	if looked == errNotLooked {
		m.leaveUnmatched(key)
	}
	return id, p.add(m, packChunk{Chunk: segment.Chunk{ID: id, Hash: c.hash, Raw: c.raw}})
}

// add puts a chunk into the frame that is being filled. Its bytes are borrowed until drain.
func (p *packer) add(m *metaBatch, c packChunk) error {
	if !segment.FrameTakes(p.form.raw, p.raw, len(c.Raw)) {
		if err := p.closeFrame(m); err != nil {
			return err
		}
	}
	p.pending = append(p.pending, c)
	p.raw += len(c.Raw)
	if p.raw >= p.form.raw {
		return p.closeFrame(m)
	}
	return nil
}

// closeFrame ends the frame that is being filled and, when a group is full, compresses and appends the group.
func (p *packer) closeFrame(m *metaBatch) error {
	if len(p.pending) == 0 {
		return nil
	}
	var f *packFrame
	if k := len(p.free); k > 0 {
		f, p.free = p.free[k-1], p.free[:k-1]
	} else {
		f = &packFrame{enc: segment.NewEncoder()}
	}
	f.chunks = append(f.chunks[:0], p.pending...)
	p.pending, p.raw = p.pending[:0], 0
	p.group = append(p.group, f)
	if len(p.group) >= p.form.group {
		return p.encodeGroup(m)
	}
	return nil
}

// encodeGroup compresses the gathered frames in parallel and appends them in order.
func (p *packer) encodeGroup(m *metaBatch) error {
	codec := p.form.codec
	if p.s.opts.ReduceOff {
		codec = segment.None
	}
	workers := min(p.s.opts.Workers, len(p.group))
	var wg sync.WaitGroup
	for k := range workers {
		wg.Go(func() {
			for i := k; i < len(p.group); i += workers {
				p.group[i].encode(codec)
			}
		})
	}
	wg.Wait()
	for _, f := range p.group {
		if f.err != nil {
			return f.err
		}
		if err := p.append(m, f); err != nil {
			return err
		}
	}
	p.free = append(p.free, p.group...)
	p.group = p.group[:0]
	return nil
}

func (f *packFrame) encode(codec segment.Codec) {
	f.input = f.input[:0]
	for i := range f.chunks {
		f.input = append(f.input, f.chunks[i].Chunk)
	}
	f.out, f.err = segment.EncodeFrame(f.out[:0], f.input, codec, f.enc)
}

// append puts an encoded frame into the open segment, or into a new one, and writes the rows of its chunks.
func (p *packer) append(m *metaBatch, f *packFrame) error {
	off, err := uint32(0), segment.ErrFull
	if p.w != nil {
		off, err = p.w.Append(f.out)
	}
	if errors.Is(err, segment.ErrFull) {
		if err := p.roll(m); err != nil {
			return err
		}
		off, err = p.w.Append(f.out)
	}
	if err != nil {
		return err
	}
	p.s.bytesOut.Add(int64(len(f.out)))
	raw := uint32(0)
	for i := range f.chunks {
		c := &f.chunks[i]
		row := chunkRow{Segment: p.id, FrameOff: off, FrameLen: uint32(len(f.out)), RawOff: raw, RawLen: uint32(len(c.Raw)), Hash: [16]byte(c.Hash[:16])}
		raw += row.RawLen
		switch {
		case c.gone:
			err = m.passChunk(row)
		case c.moved:
			err = m.moveChunk(c.ID, row)
		default:
			err = m.addChunk(c.ID, row)
		}
		if err != nil {
			return err
		}
		c.Raw, f.input[i].Raw = nil, nil
	}
	return nil
}

// roll seals the open segment, if there is one, and begins the next.
func (p *packer) roll(m *metaBatch) error {
	if p.w != nil {
		if err := p.seal(m); err != nil {
			return err
		}
	}
	m.c.NextSegment++
	id := block.SegmentID(m.c.NextSegment)
	placement, file, err := p.s.tiers.Create(defaultTier, id, 1)
	if err != nil {
		return fmt.Errorf("create segment %06x: %w", id, err)
	}
	key, err := p.s.keys.writing(id, 1)
	var w *segment.Writer
	if err == nil {
		w, err = segment.NewSealedWriter(file, segment.Meta{StoreID: p.s.super.StoreID, ID: id, Generation: 1, Class: p.form.class, DomainID: p.s.super.DomainID}, key)
	}
	if err != nil {
		return errors.Join(err, file.Close(), p.s.tiers.Delete(placement))
	}
	p.w, p.file, p.id = w, file, id
	m.segs[id] = &segmentRow{ID: id, Generation: 1, Class: p.form.class, State: segmentOpen, Placement: tiers.PlacementList{placement}}
	return nil
}

// seal ends the open segment. What it holds of this batch is durable afterwards.
func (p *packer) seal(m *metaBatch) error {
	row, err := m.segment(p.id)
	if err != nil {
		return err
	}
	footer, err := p.w.Seal(m.s.appliedSeqNow())
	if err != nil {
		return err
	}
	row.State, row.Size = segmentSealed, footer.FileSize()
	err = p.file.Close()
	p.w, p.file, p.id = nil, nil, 0
	return err
}

// drain encodes every gathered chunk, so that the bytes they borrow may be reused. The frame that is being filled keeps its last chunks, in memory of its own.
func (p *packer) drain(m *metaBatch) error {
	if err := p.encodeGroup(m); err != nil {
		return err
	}
	for i := range p.pending {
		p.pending[i].Raw = append([]byte(nil), p.pending[i].Raw...)
	}
	return nil
}

// sync makes every chunk of the batch durable. It must come before the batch's commit.
func (p *packer) sync(m *metaBatch) error {
	if err := p.closeFrame(m); err != nil {
		return err
	}
	if err := p.encodeGroup(m); err != nil {
		return err
	}
	if p.w == nil {
		return nil
	}
	if err := p.w.Sync(); err != nil {
		return err
	}
	row, err := m.segment(p.id)
	if err != nil {
		return err
	}
	row.Size = uint64(p.w.Size())
	return nil
}

// forget drops what an aborted batch had gathered. The open segment is given up: frames that this batch made have no rows, so it is sealed behind its committed end.
func (p *packer) forget() {
	p.pending, p.raw = p.pending[:0], 0
	p.free = append(p.free, p.group...)
	p.group = p.group[:0]
	if p.w != nil {
		p.givenUp = append(p.givenUp, p.id)
		_ = p.file.Close()
		p.w, p.file, p.id = nil, nil, 0
	}
}

// sealGivenUp seals one segment that a failed batch left open, and reports whether there was one.
func (s *Store) sealGivenUp(context.Context) (bool, error) {
	s.meta.Lock()
	p := &s.packer
	if len(p.givenUp) == 0 {
		p = &s.mover
	}
	if len(p.givenUp) == 0 {
		p = &s.cold
	}
	k := len(p.givenUp)
	if k == 0 {
		s.meta.Unlock()
		return false, nil
	}
	id := p.givenUp[k-1]
	s.meta.Unlock()
	row, known := s.segments.get(id)
	if known && row.State == segmentOpen {
		if err := s.reseal(row); err != nil {
			return false, fmt.Errorf("seal segment %06x, which a failed batch left open: %w", id, err)
		}
	}
	s.meta.Lock()
	defer s.meta.Unlock()
	p.givenUp = slices.DeleteFunc(p.givenUp, func(other block.SegmentID) bool { return other == id })
	return true, nil
}

// close lets the open segment go. It stays open on disk; the next start seals it.
func (p *packer) close() error {
	if p.w == nil {
		return nil
	}
	err := p.file.Close()
	p.w, p.file, p.id = nil, nil, 0
	return err
}
