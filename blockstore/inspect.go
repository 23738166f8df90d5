package blockstore

import (
	"context"
	"io"

	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// inspection is what a look at every frame of a sealed segment found.
type inspection struct {
	first error              // the first thing that is wrong; nil for a segment that is whole
	bad   []segment.DirFrame // frames that cannot be read, or whose bytes are not those of their hashes
	blind bool               // header, footer or directory are damaged, so that bad says nothing

	s    *Store
	r    io.ReaderAt
	row  *segmentRow
	t    *frameTools
	buf  []byte
	last *frame
}

func (in *inspection) note(err error) {
	if in.first == nil {
		in.first = err
	}
}

// inspect reads every frame of a sealed segment, decodes it and hashes its chunks. The error is the end of ctx.
func (s *Store) inspect(ctx context.Context, r io.ReaderAt, row *segmentRow, pace erasure.Pace) (*inspection, error) {
	in := &inspection{s: s, r: r, row: row, t: s.chunks.tools.Get().(*frameTools)}
	defer s.chunks.tools.Put(in.t)
	size := int64(row.Size)
	if _, err := segment.CheckHeader(r, size, s.super.StoreID, row.ID, row.Generation); err != nil {
		in.note(err)
	}
	footer, err := segment.ReadFooter(r, size)
	var frames []segment.DirFrame
	if err == nil {
		frames, err = segment.ReadDirectory(r, &footer)
	}
	if err != nil {
		in.note(err)
		in.blind = true
		return in, ctx.Err()
	}
	for i := range frames {
		d := &frames[i]
		if pace != nil {
			if err := pace(ctx, int(d.Len)); err != nil {
				return in, err
			}
		}
		if in.badFrame(d.Off, d.Len) || !in.entryFits(d) {
			in.bad = append(in.bad, *d)
		}
	}
	return in, nil
}

// badFrame reads a frame and reports whether it is not what it should be.
func (in *inspection) badFrame(off, n uint32) bool {
	in.last = nil
	if uint64(off)+uint64(n) > in.row.Size {
		in.note(corruptSegment(in.row, int64(off), "a frame inside the segment", "one that ends behind it"))
		return true
	}
	if cap(in.buf) < int(n) {
		in.buf = make([]byte, n)
	}
	b := in.buf[:n]
	if got, err := in.r.ReadAt(b, int64(off)); got < len(b) {
		in.note(corruptSegment(in.row, int64(off), "a readable frame", err.Error()))
		return true
	}
	f, err := in.t.decode(b, in.row.ID, off)
	if err == nil {
		for i := range f.chunks {
			if err = in.t.verify(f, i, in.row.ID, off); err != nil {
				break
			}
		}
	}
	if err != nil {
		in.note(err)
		return true
	}
	in.last = f
	return false
}

// entryFits compares the frame that was read last with its entry in the directory.
func (in *inspection) entryFits(d *segment.DirFrame) bool {
	f := in.last
	ok := f != nil && len(f.chunks) == len(d.Chunks) && len(f.raw) == int(d.RawLen)
	for i := 0; ok && i < len(f.chunks); i++ {
		c, e := &f.chunks[i], &d.Chunks[i]
		ok = c.ID == e.ID && [16]byte(c.Hash[:16]) == e.Hash && c.RawLen == e.RawLen
	}
	if !ok {
		in.note(corruptSegment(in.row, int64(d.Off), "a frame as the directory says", "another one"))
	}
	return ok
}
