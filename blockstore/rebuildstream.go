package blockstore

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/checkpoint"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

// foundSegment is a segment file and the row that is made for it.
type foundSegment struct {
	row    segmentRow
	footer segment.Footer // of a sealed one
	end    uint32         // of its frames; 0 when that is not known yet
}

// listSegments finds out which segments there are. A file without a sound header is none: if something in it is needed, that is missing.
func (r *rebuild) listSegments() error {
	backend, err := r.s.tiers.Backend(defaultTier)
	if err != nil {
		return err
	}
	err = backend.List(func(key string, size int64) error {
		id, generation, ok := tiers.ParseSegmentKey(key)
		if ok {
			r.segs = append(r.segs, foundSegment{row: segmentRow{ID: id, Generation: generation, Size: uint64(size),
				Placement: tiers.PlacementList{{Tier: defaultTier, Key: key, Generation: generation, State: tiers.Live}}}})
		}
		return r.ctx.Err()
	})
	if err != nil {
		return fmt.Errorf("list segments: %w", err)
	}
	slices.SortFunc(r.segs, func(a, b foundSegment) int { return cmp.Compare(a.row.ID, b.row.ID) })
	kept := r.segs[:0]
	for i := range r.segs {
		f := &r.segs[i]
		ok, err := r.identify(backend, f)
		if err != nil {
			return err
		}
		if ok {
			kept = append(kept, *f)
		}
	}
	r.segs = kept
	return nil
}

// identify reads header and footer of a segment. It reports false for a file that is not one of this store.
func (r *rebuild) identify(backend tiers.Backend, f *foundSegment) (bool, error) {
	file, err := backend.Open(f.row.Placement[0].Key)
	if err != nil {
		return false, err
	}
	defer file.Close()
	meta, err := segment.CheckHeader(file, int64(f.row.Size), r.s.super.StoreID, f.row.ID, f.row.Generation)
	if errors.Is(err, block.ErrCorrupt) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	f.row.Class, f.row.State = meta.Class, segmentOpen
	footer, err := segment.ReadFooter(file, int64(f.row.Size))
	if err == nil && footer.ID == f.row.ID && footer.StoreID == meta.StoreID {
		f.footer, f.row.State, f.end = footer, segmentSealed, footer.DirOff
		f.row.TotalRaw, f.row.TotalChunks = footer.RawBytes, footer.Chunks
		return true, nil
	}
	if errors.Is(err, block.ErrCorrupt) {
		err = nil // it is open, or is treated as such: the next start seals it
	}
	return true, err
}

// scan calls visit with each frame of a segment. Behind the first bad one there is nothing, unless the segment is sealed: then that is an error.
func (r *rebuild) scan(f *foundSegment, visit func(off uint32, fr *segment.Frame) error) error {
	at := &segmentReader{ctx: r.ctx, s: r.s, row: &f.row}
	end := f.end
	if end == 0 {
		end = uint32(min(f.row.Size, segment.SegmentSize))
	}
	var visitErr error
	got, err := segment.ScanFrames(at, segment.HeaderSize, end, func(off uint32, fr *segment.Frame) error {
		visitErr = visit(off, fr)
		return visitErr
	})
	if visitErr != nil {
		return visitErr
	}
	if f.row.State == segmentOpen && errors.Is(err, block.ErrCorrupt) {
		err = nil
	}
	if f.row.State == segmentOpen {
		f.end, f.row.Size = got, uint64(got)
	}
	return err
}

// choose reads all parts of checkpoints and returns those checkpoints that are needed, in order.
func (r *rebuild) choose() ([]checkpoint.Checkpoint, error) {
	var found []checkpoint.Found
	rd := newPartReader(r)
	for i := range r.segs {
		f := &r.segs[i]
		if f.row.Class != segment.Metadata {
			continue
		}
		f.row.TotalRaw, f.row.TotalChunks = 0, 0
		err := r.scan(f, func(off uint32, fr *segment.Frame) error {
			f.row.TotalRaw += uint64(fr.RawLen)
			f.row.TotalChunks += uint32(fr.NumChunks())
			part, hash, err := rd.decode(fr, &f.row, off)
			if errors.Is(err, block.ErrCorrupt) {
				return nil // its checkpoint is incomplete then
			}
			if err == nil {
				found = append(found, checkpoint.Found{Header: part.Header, Hash: hash, Place: checkpoint.Place{Segment: f.row.ID, Offset: off, Len: fr.Size}})
			}
			return err
		})
		if err != nil && !errors.Is(err, block.ErrCorrupt) {
			return nil, err
		}
	}
	atLeast := max(r.s.super.Checkpoints[0].Seq, r.s.super.Checkpoints[1].Seq)
	all := checkpoint.Collect(found)
	way, err := checkpoint.Choose(all, atLeast)
	if err != nil {
		return nil, err
	}
	r.j = journalOf(way)
	return way, nil
}

// journalOf is the row that says what a way of checkpoints shows, but for what is in the counters.
func journalOf(way []checkpoint.Checkpoint) journalRow {
	pointer := func(c *checkpoint.Checkpoint) checkpointPointer {
		return checkpointPointer{Segment: c.Parts[0].Place.Segment, Offset: uint64(c.Parts[0].Place.Offset), Seq: c.Number}
	}
	full, last := &way[0], &way[len(way)-1]
	j := journalRow{Number: last.Number, Full: pointer(full), Last: pointer(last), FullBytes: full.Bytes}
	for i := range way[1:] {
		j.DeltaBytes += way[1+i].Bytes
	}
	return j
}

// partReader decodes parts and checks their hashes.
type partReader struct {
	keys *frameKeys
	dec  *segment.Decoder
	hash *dedup.Hasher
	raw  []byte
	tbl  []segment.FrameChunk
	buf  []byte
}

func newPartReader(r *rebuild) *partReader {
	return &partReader{keys: r.s.keys, dec: segment.NewDecoder(), hash: dedup.NewHasher(r.s.domain)}
}

// decode returns the part in a frame, lent until the next call, and the first half of its hash.
func (p *partReader) decode(fr *segment.Frame, row *segmentRow, off uint32) (part checkpoint.Part, hash [16]byte, err error) {
	p.tbl = fr.Chunks(p.tbl[:0])
	if len(p.tbl) != 1 {
		return part, hash, &block.CorruptError{Source: "frame of a checkpoint", Want: "one chunk", Got: fmt.Sprint(len(p.tbl))}
	}
	if err = p.keys.open(fr, row.ID, row.Generation, off, p.dec); err != nil {
		return part, hash, err
	}
	if p.raw, err = fr.Decode(p.raw, p.dec); err != nil {
		return part, hash, err
	}
	if got := p.hash.Sum(p.raw); got != p.tbl[0].Hash {
		return part, hash, &block.CorruptError{Source: "frame of a checkpoint", Want: "hash " + p.tbl[0].Hash.String(), Got: got.String()}
	}
	part, err = checkpoint.Decode(p.raw)
	return part, [16]byte(p.tbl[0].Hash[:16]), err
}

// load brings the rows of checkpoints into the database.
func (r *rebuild) load(way []checkpoint.Checkpoint) error {
	rd := newPartReader(r)
	rows := map[block.SegmentID]*segmentRow{}
	for i := range r.segs {
		rows[r.segs[i].row.ID] = &r.segs[i].row
	}
	for i := range way {
		for _, p := range way[i].Parts {
			rd.buf = slices.Grow(rd.buf[:0], int(p.Place.Len))[:p.Place.Len]
			if err := r.s.tiers.ReadAt(r.ctx, p.Place.Segment, rows[p.Place.Segment].Placement, rd.buf, int64(p.Place.Offset)); err != nil {
				return err
			}
			fr, err := segment.ParseFrame(rd.buf)
			if err != nil {
				return err
			}
			part, _, err := rd.decode(&fr, rows[p.Place.Segment], p.Place.Offset)
			if err != nil {
				return err
			}
			if err := r.apply(&part); err != nil {
				return err
			}
		}
	}
	if r.c.StoreID != r.s.super.StoreID {
		return &block.CorruptError{Source: "checkpoint", Want: "counters of store " + r.s.super.StoreID.String(), Got: r.c.StoreID.String()}
	}
	r.j.Watermark, r.j.AppliedSeq, r.j.NextPage, r.j.NextChunk = r.c.Watermark, r.c.AppliedSeq, r.c.NextPage, r.c.NextChunk
	return r.flush(0)
}

// apply brings the rows of one part into the database.
func (r *rebuild) apply(part *checkpoint.Part) (err error) {
	for rows := part.Each(); rows.Next() && err == nil; r.info.Rows++ {
		switch t := rows.Key[0]; {
		case t == checkpoint.LiveTable:
			r.live.want.SetRow(rows.Key, rows.Value)
		case t == keyMeta:
			r.c, err = decodeCounters(rows.Value)
		case rows.Deleted:
			err = r.delete(rows.Key)
		default:
			err = r.set(rows.Key, rows.Value)
		}
	}
	return err
}
