package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/checkpoint"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

// liveChunks are the chunks that the checkpoints say there are, and those that were found in segments: two bitmaps.
type liveChunks struct {
	want, found checkpoint.LiveSet
	highest     uint64 // id that any frame has
	unique      uint64 // raw bytes of those found
	row         []byte // scratch
}

// place finds every chunk in the segments and writes its row; the index follows from the rows. The newest place counts, so it goes from the newest segment to the oldest.
func (r *rebuild) place() error {
	for i := len(r.segs) - 1; i >= 0; i-- {
		f := &r.segs[i]
		r.c.NextSegment = max(r.c.NextSegment, uint64(f.row.ID))
		if f.row.Class == segment.Metadata {
			continue
		}
		frames, err := r.frames(f)
		if err != nil {
			return fmt.Errorf("segment %06x: %w", f.row.ID, err)
		}
		for k := len(frames) - 1; k >= 0; k-- {
			if err := r.placeFrame(f, &frames[k]); err != nil {
				return err
			}
		}
	}
	r.c.NextChunk = max(r.c.NextChunk, r.live.highest)
	return r.flush(0)
}

// frames returns what a segment holds, by its directory if that is sound, else by its frames: then it is an open segment again.
func (r *rebuild) frames(f *foundSegment) ([]segment.DirFrame, error) {
	if f.row.State == segmentSealed {
		frames, err := segment.ReadDirectory(&segmentReader{ctx: r.ctx, s: r.s, row: &f.row}, &f.footer)
		if err == nil || !errors.Is(err, block.ErrCorrupt) {
			return frames, err
		}
		f.row.State = segmentOpen
	}
	var frames []segment.DirFrame
	f.row.TotalRaw, f.row.TotalChunks = 0, 0
	var table []segment.FrameChunk
	err := r.scan(f, func(off uint32, fr *segment.Frame) error {
		d := segment.DirFrame{Off: off, Len: fr.Size, RawLen: fr.RawLen}
		table = fr.Chunks(table[:0])
		for i := range table {
			d.Chunks = append(d.Chunks, segment.DirChunk{ID: table[i].ID, Hash: [16]byte(table[i].Hash[:16]), RawLen: table[i].RawLen})
		}
		f.row.TotalRaw += uint64(fr.RawLen)
		f.row.TotalChunks += uint32(len(table))
		frames = append(frames, d)
		return nil
	})
	return frames, err
}

// placeFrame writes the rows of those chunks of a frame that live and were not found before.
func (r *rebuild) placeFrame(f *foundSegment, d *segment.DirFrame) error {
	l := &r.live
	at := d.RawLen
	for i := len(d.Chunks) - 1; i >= 0; i-- {
		c := &d.Chunks[i]
		at -= c.RawLen
		l.highest = max(l.highest, uint64(c.ID))
		if !l.want.Has(c.ID) || !l.found.Add(c.ID) {
			continue
		}
		row := chunkRow{Segment: f.row.ID, FrameOff: d.Off, FrameLen: d.Len, RawOff: at, RawLen: c.RawLen, Hash: c.Hash}
		l.row = row.encode(l.row[:0])
		l.unique += uint64(c.RawLen)
		f.row.LiveRaw += uint64(c.RawLen)
		f.row.LiveChunks++
		r.info.Chunks++
		if err := r.set(key64(keyChunk, uint64(c.ID)), l.row); err != nil {
			return err
		}
	}
	return nil
}

// verify compares what was made with the counters of the checkpoint, and every extent with the row of its chunk.
func (r *rebuild) verify() error {
	if err := r.verifyExtents(); err != nil {
		return err
	}
	var nodes, shared uint64
	it := rowIter{}
	err := r.each(keySnapshot, func(_, _ []byte) error { nodes++; return nil })
	if err == nil {
		err = r.each(keyRef, func(key, _ []byte) error {
			row, err := it.row(r.db, block.ChunkID(binary.BigEndian.Uint64(key[1:])))
			shared += uint64(row.RawLen)
			return err
		})
	}
	if err = errors.Join(err, it.close()); err != nil {
		return err
	}
	// Of a chunk that is lost, or was lost before and is back, the length is not known for sure.
	exact, before := r.lost.Chunks == 0 && r.c.Lost == 0, r.c.Lost == 0
	differs := func(got, want uint64) bool { return exact && got != want || before && got > want }
	want := fmt.Sprintf("%d nodes, %d bytes of chunks, %d of shared ones, as its counters say", r.c.Nodes, r.c.Unique, r.c.Shared)
	if nodes != r.c.Nodes || differs(r.live.unique, r.c.Unique) || differs(shared, r.c.Shared) {
		return &block.CorruptError{Source: "checkpoint", Want: want, Got: fmt.Sprintf("%d, %d, %d", nodes, r.live.unique, shared)}
	}
	r.c.Unique, r.c.Shared, r.c.Lost = r.live.unique, shared, r.lost.Chunks
	return nil
}

// extentsABatch is how many extents are compared at once: 24 bytes each.
const extentsABatch = 1 << 17

// maxWrong bounds how many chunks of another content are put up with: more are no damage, but the segments of another store.
const maxWrong = 1 << 16

// verifyExtents compares every extent of every page with the row of its chunk, in batches that are sorted by chunk. A page that is about to be freed may name chunks that
// are gone.
func (r *rebuild) verifyExtents() error {
	batch := make([]lostExtent, 0, extentsABatch)
	var wrong []lostExtent
	verify := func() (err error) {
		if wrong, err = r.verifyBatch(batch, wrong); len(wrong) > maxWrong && err == nil {
			err = &block.CorruptError{Source: r.s.path("segments"), Want: "the chunks of this store", Got: "more than a few with other bytes"}
		}
		batch = batch[:0]
		return err
	}
	err := r.eachPage(func(page extentmap.Page) error {
		for i := range page.Len() {
			x := page.Extent(i)
			if x.Kind != extentmap.KindChunk || !r.live.found.Has(x.Chunk) {
				continue
			}
			if batch = append(batch, lostExtent{x.Chunk, x.Hash8, x.ChunkOff + x.Len}); len(batch) == extentsABatch {
				if err := verify(); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil {
		err = verify()
	}
	if err != nil {
		return err
	}
	for _, x := range wrong {
		if err := r.loseWrong(x); err != nil {
			return err
		}
	}
	return nil
}

// eachPage calls f with the region pages, and with the parts of those that are kept in parts.
func (r *rebuild) eachPage(f func(extentmap.Page) error) error {
	return r.each(keyPage, func(key, value []byte) error {
		if len(value) < 32 {
			return &block.CorruptError{Source: "region page in a checkpoint", Want: "a page", Got: fmt.Sprintf("%d B", len(value))}
		}
		id, region := binary.BigEndian.Uint64(key[1:]), binary.LittleEndian.Uint64(value[24:])
		decode := extentmap.DecodePage
		switch {
		case extentmap.IsDirectory(value):
			_, err := extentmap.DecodeDirectory(id, region, value)
			return err
		case extentmap.IsPart(value):
			decode = extentmap.DecodePart
		}
		page, err := decode(id, region, value)
		if err != nil {
			return err
		}
		return f(page)
	})
}

// verifyBatch appends to wrong the extents whose chunk has another hash, or fewer bytes.
func (r *rebuild) verifyBatch(batch, wrong []lostExtent) ([]lostExtent, error) {
	slices.SortFunc(batch, func(a, b lostExtent) int { return int(min(1, max(-1, int64(a.id-b.id)))) })
	it := rowIter{}
	for _, x := range batch {
		row, err := it.row(r.db, x.id)
		if err != nil {
			return wrong, errors.Join(err, it.close())
		}
		if [8]byte(row.Hash[:8]) != x.hash || x.end > row.RawLen {
			wrong = append(wrong, x)
		}
	}
	return wrong, errors.Join(it.close(), r.ctx.Err())
}

// each calls f with the rows of a table.
func (r *rebuild) each(table byte, f func(key, value []byte) error) error {
	it, err := r.db.NewIter(&pebble.IterOptions{LowerBound: []byte{table}, UpperBound: []byte{table + 1}})
	if err != nil {
		return err
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		v, verr := it.ValueAndErr()
		if err = verr; err == nil {
			err = f(it.Key(), v)
		}
	}
	return errors.Join(err, it.Close())
}
