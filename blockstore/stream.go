package blockstore

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/checkpoint"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

// stream appends parts of checkpoints to segments of class metadata. A part is the only chunk of its frame; its chunk id says when it was written: boot epoch, then a
// number in this run. It is used by the holder of checkpointer.writing.
type stream struct {
	s     *Store
	boot  uint64 // epoch of this run
	w     *segment.Writer
	file  tiers.Writer
	id    block.SegmentID
	parts uint32 // ids given in this run
	life  int    // raised when a segment is given up: a checkpoint that has parts in it can not be completed

	frame []byte
	enc   segment.Encoder
	hash  *dedup.Hasher
}

// take returns the id of the next part.
func (o *stream) take() uint64 {
	o.parts++
	return o.boot<<32 | uint64(o.parts)
}

// append adds a part and returns where it lies and the first half of its hash.
func (o *stream) append(id uint64, raw []byte) (checkpoint.Place, [16]byte, error) {
	if o.hash == nil {
		o.hash = dedup.NewHasher(o.s.domain)
	}
	hash := o.hash.Sum(raw)
	var err error
	o.frame, err = segment.EncodeFrame(o.frame[:0], []segment.Chunk{{ID: block.ChunkID(id), Hash: hash, Raw: raw}}, segment.S2, &o.enc)
	if err != nil {
		return checkpoint.Place{}, [16]byte{}, err
	}
	off, err := uint32(0), segment.ErrFull
	if o.w != nil && (o.s.opts.metadataSegmentBytes == 0 || int64(o.w.Size()) < o.s.opts.metadataSegmentBytes) {
		off, err = o.w.Append(o.frame)
	}
	if errors.Is(err, segment.ErrFull) {
		if err = o.roll(); err == nil {
			off, err = o.w.Append(o.frame)
		}
	}
	if err != nil {
		return checkpoint.Place{}, [16]byte{}, fmt.Errorf("write checkpoint part: %w", err)
	}
	o.s.bytesOut.Add(int64(len(o.frame)))
	return checkpoint.Place{Segment: o.id, Offset: off, Len: uint32(len(o.frame))}, [16]byte(hash[:16]), nil
}

// roll seals the segment under way, if there is one, and begins the next. Its row is durable before its first part is written.
func (o *stream) roll() error {
	if o.w != nil {
		if err := o.seal(); err != nil {
			return err
		}
	}
	m := o.s.beginMeta()
	err := o.begin(m)
	if err != nil {
		m.abort()
		return err
	}
	return m.commit()
}

func (o *stream) begin(m *metaBatch) error {
	m.c.NextSegment++
	id := block.SegmentID(m.c.NextSegment)
	placement, file, err := o.s.tiers.Create(defaultTier, id, 1)
	if err != nil {
		return fmt.Errorf("create segment %06x: %w", id, err)
	}
	key, err := o.s.keys.writing(id, 1)
	var w *segment.Writer
	if err == nil {
		w, err = segment.NewSealedWriter(file, segment.Meta{StoreID: o.s.super.StoreID, ID: id, Generation: 1, Class: segment.Metadata, DomainID: o.s.super.DomainID}, key)
	}
	if err == nil {
		err = w.Sync()
	}
	if err != nil {
		return errors.Join(err, file.Close(), o.s.tiers.Delete(placement))
	}
	o.w, o.file, o.id = w, file, id
	m.segs[id] = &segmentRow{ID: id, Generation: 1, Class: segment.Metadata, State: segmentOpen, Size: segment.HeaderSize, Placement: tiers.PlacementList{placement}}
	return nil
}

// seal ends the segment under way.
func (o *stream) seal() error {
	footer, err := o.w.Seal(o.s.appliedSeqNow())
	if err != nil {
		return err
	}
	m := o.s.beginMeta()
	row, err := m.segment(o.id)
	if err != nil {
		m.abort()
		return err
	}
	row.State, row.Size, row.TotalRaw, row.TotalChunks = segmentSealed, footer.FileSize(), footer.RawBytes, footer.Chunks
	err = errors.Join(o.file.Close(), m.commit())
	o.w, o.file, o.id = nil, nil, 0
	return err
}

// sync makes every part durable.
func (o *stream) sync() error { return o.w.Sync() }

// count puts into a batch how much of the segment under way counts.
func (o *stream) count(m *metaBatch) error {
	if o.w == nil {
		return nil
	}
	row, err := m.segment(o.id)
	if err != nil {
		return err
	}
	st := o.w.Stats()
	row.Size, row.TotalRaw, row.TotalChunks = uint64(o.w.Size()), st.RawBytes, st.Chunks
	return nil
}

// forget lets the segment under way go, after a failure or at the end. The next start seals it where it counts.
func (o *stream) forget() {
	if o.w != nil {
		_ = o.file.Close()
		o.w, o.file, o.id = nil, nil, 0
		o.life++
	}
}

var errStreamBroken = errors.New("a segment with earlier parts of the checkpoint was given up; it begins again")

// partWriter cuts the rows of one checkpoint into parts.
type partWriter struct {
	out     *stream
	h       checkpoint.Header // Number is also the id of the first part
	life    int               // of the stream when it began
	b       checkpoint.Builder
	lock    sync.Locker  // taken for each part, if not nil
	between func() error // called after each part but the last, without the lock; may be nil
	begun   bool
	bytes   uint64 // stored
	place   checkpoint.Place
}

// first says where the checkpoint begins.
func (p *partWriter) first() checkpointPointer {
	return checkpointPointer{Segment: p.place.Segment, Offset: uint64(p.place.Offset), Seq: p.h.Number}
}

func (p *partWriter) set(key, value []byte) error {
	if err := p.room(len(key), len(value)); err != nil {
		return err
	}
	p.b.Set(key, value)
	return nil
}

func (p *partWriter) delete(key []byte) error {
	if err := p.room(len(key), 0); err != nil {
		return err
	}
	p.b.Delete(key)
	return nil
}

// room begins a part, if none is under way, or ends it and begins the next, if a row would not fit.
func (p *partWriter) room(key, value int) error {
	target := checkpoint.PartTarget
	if n := p.out.s.opts.checkpointPartBytes; n != 0 {
		target = n
	}
	if p.begun && p.b.Fits(key, value, target) {
		return nil
	}
	if p.begun {
		if err := p.flush(false); err != nil {
			return err
		}
		if p.between != nil {
			if err := p.between(); err != nil {
				return err
			}
		}
	}
	p.begun = true
	p.b.Reset(p.h)
	return nil
}

// cut ends the part under way: the next row begins another.
func (p *partWriter) cut() error {
	p.begun = false
	return p.flush(false)
}

// flush ends a part and appends it.
func (p *partWriter) flush(last bool) error {
	if p.lock != nil {
		p.lock.Lock()
		defer p.lock.Unlock()
	}
	if p.life != p.out.life {
		return errStreamBroken
	}
	id, rows := p.h.Number, p.b.Rows()
	if p.h.Part > 0 {
		id = p.out.take()
	}
	place, hash, err := p.out.append(id, p.b.Bytes(last))
	if err != nil {
		return err
	}
	if p.h.Part == 0 {
		p.place = place
	}
	p.bytes += uint64(place.Len)
	p.h.Part++
	p.h.RowsBefore += uint64(rows)
	p.h.Previous = hash
	if last {
		return p.out.sync()
	}
	return nil
}

// finish ends the checkpoint and makes it durable. The last part of a store without any rows is empty.
func (p *partWriter) finish() error {
	if !p.begun {
		p.b.Reset(p.h)
	}
	return p.flush(true)
}
