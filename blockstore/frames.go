package blockstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/framecache"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

const (
	// runMost is how many bytes of a segment are read at once for the sake of frames that are neighbours.
	runMost = 256 << 10
	// runGap is how many bytes between two frames are read for nothing rather than with a read of their own.
	runGap = 8 << 10
)

// frame is a decoded frame whose checksums were verified. The hashes of its chunks are not checked yet.
type frame struct {
	raw    []byte
	chunks []segment.FrameChunk
}

// frameTools are the scratch of one goroutine that reads frames.
type frameTools struct {
	stored  []byte
	raw     []byte
	chunks  []segment.FrameChunk
	claimed []framecache.Key
	keys    *frameKeys
	dec     *segment.Decoder
	hash    *dedup.Hasher
}

// fetching says how to fetch.
type fetching struct {
	ctx  context.Context
	try  bool // answer ErrWouldBlock instead of waiting for a device
	long bool // frames that are used as a whole are not likely to be wanted again
}

// longRead is how many missed bytes make a read a long one.
const longRead = 128 << 10

// fetch answers what the cache did not have, and may change the order of want. With try it never waits for a device.
func (c *chunkReader) fetch(ctx context.Context, want []wanted, try bool) error {
	total := 0
	for i := range want {
		total += len(want[i].p)
	}
	how := fetching{ctx: ctx, try: try, long: total >= longRead}
	if len(want) > 1 {
		// A frame of the cold class holds much, in an order of its own: what is in one is taken out of it at once.
		slices.SortStableFunc(want, func(a, b wanted) int {
			return cmp.Or(cmp.Compare(a.row.Segment, b.row.Segment), cmp.Compare(a.row.FrameOff, b.row.FrameOff))
		})
	}
	if parts := c.parts(want, total); len(parts) > 1 {
		return c.together(how, parts)
	}
	return c.fetchPart(how, want)
}

// fetchPart answers what is wanted, one run of neighbouring frames after the other.
func (c *chunkReader) fetchPart(how fetching, want []wanted) error {
	t := c.tools.Get().(*frameTools)
	defer c.tools.Put(t)
	for len(want) > 0 {
		n, err := c.fetchRun(how, t, want)
		if err != nil {
			return err
		}
		want = want[n:]
	}
	return nil
}

// fetchRun answers the first of what is wanted, and what lies next to it; it returns how many. None, without an error, means to try again.
func (c *chunkReader) fetchRun(how fetching, t *frameTools, want []wanted) (int, error) {
	if !how.try {
		defer c.land(t)
		if n, err := c.claimFirst(how.ctx, t, &want[0]); n > 0 || err != nil || len(t.claimed) == 0 {
			return n, err
		}
	}
	n, end := c.run(t, want, how.try)
	first := &want[0].row
	size := int(end - first.FrameOff)
	t.stored = slices.Grow(t.stored[:0], size)[:size]
	if err := c.s.segments.readAt(how.ctx, first.Segment, t.stored, first.FrameOff, how.try); err != nil {
		return c.mend(how, t, want, err)
	}
	for at := 0; at < n; {
		k, err := c.serve(how, t, t.stored[want[at].row.FrameOff-first.FrameOff:], want[at:n])
		if errors.Is(err, block.ErrCorrupt) {
			k, err = c.mend(how, t, want[at:n], err)
		}
		if err != nil {
			return 0, err
		}
		at += k
	}
	return n, nil
}

// mend answers the first of what is wanted, and the others of its frame, by parity, after a read of it failed for that cause. That takes a read that may wait.
func (c *chunkReader) mend(how fetching, t *frameTools, want []wanted, cause error) (int, error) {
	if how.try {
		return 0, block.ErrWouldBlock
	}
	want = sameFrame(want)
	row := &want[0].row
	f, err := c.s.keeper.rescue(how.ctx, row.Segment, row.FrameOff, make([]byte, row.FrameLen), t, cause)
	if err != nil {
		return 0, c.damage(want, err)
	}
	for i := range want {
		w := &want[i]
		k := f.find(&w.row)
		if k < 0 {
			return 0, c.damage(want[i:i+1], w.stranger())
		}
		if err := t.verify(f, k, row.Segment, row.FrameOff); err != nil {
			return 0, c.damage(want[i:i+1], err)
		}
		copy(w.p, f.raw[w.row.RawOff+w.at:])
	}
	return len(want), nil
}

// sameFrame returns those at the front of what is wanted that lie in the frame of the first.
func sameFrame(want []wanted) []wanted {
	n := 1
	for n < len(want) && want[n].frame() == want[0].frame() {
		n++
	}
	return want[:n]
}

// run returns how many of what is wanted can be read at once with the first, and where that ends in the segment.
func (c *chunkReader) run(t *frameTools, want []wanted, try bool) (n int, end uint32) {
	first := &want[0].row
	end = first.FrameOff + first.FrameLen
	last := first
	for n = 1; n < len(want); n++ {
		next := &want[n].row
		if next.Segment == last.Segment && next.FrameOff == last.FrameOff {
			continue
		}
		if next.Segment != first.Segment || next.FrameOff < end || next.FrameOff-end > runGap || uint64(next.FrameOff)+uint64(next.FrameLen)-uint64(first.FrameOff) > runMost {
			break
		}
		if key := want[n].frame(); !try && (c.frames.Has(key) || !c.claim(t, key)) {
			break
		}
		end, last = next.FrameOff+next.FrameLen, next
	}
	return n, end
}

// serve decodes the frame at the start of stored and answers those at the front of what is wanted that lie in it. It returns how many.
func (c *chunkReader) serve(how fetching, t *frameTools, stored []byte, want []wanted) (int, error) {
	want = sameFrame(want)
	key := want[0].frame()
	h, err := segment.ParseFrame(stored[:want[0].row.FrameLen])
	if err != nil {
		return 0, fmt.Errorf("segment %06x at %d: %w", key.Segment, key.Off, err)
	}
	if err := t.keys.open(&h, key.Segment, 0, key.Off, t.dec); err != nil {
		return 0, fmt.Errorf("segment %06x at %d: %w", key.Segment, key.Off, err)
	}
	dst, whole := t.raw, target(want, h.RawLen)
	if whole != nil {
		dst = whole
	}
	raw, err := h.Decode(dst, t.dec)
	if err != nil {
		return 0, fmt.Errorf("segment %06x at %d: %w", key.Segment, key.Off, err)
	}
	if whole == nil {
		t.raw = raw
	}
	t.chunks = h.Chunks(t.chunks[:0])
	f := frame{raw, t.chunks}
	verified := uint64(0)
	for i := range want {
		w := &want[i]
		k := f.find(&w.row)
		if k < 0 {
			return 0, w.stranger()
		}
		if k >= 64 || verified&(1<<k) == 0 {
			if err := t.verify(&f, k, key.Segment, key.Off); err != nil {
				return 0, err
			}
		}
		if k < 64 {
			verified |= 1 << k
		}
		if whole == nil {
			copy(w.p, raw[w.row.RawOff+w.at:])
		}
	}
	c.frames.Put(key, framecache.Frame{Raw: raw, Chunks: f.chunks, Verified: verified, Passing: whole != nil && how.long})
	return len(want), nil
}

// damage remembers that what is wanted cannot be read, and returns why.
func (c *chunkReader) damage(want []wanted, err error) error {
	for i := range want {
		c.s.damaged.noteIf(want[i].id, err)
	}
	return err
}

// target returns the memory that all of a frame can be decoded into at once, because what is wanted is just that, in one piece. Else it is nil.
func target(want []wanted, rawLen uint32) []byte {
	p := want[0].p[:0]
	for i := range want {
		w := &want[i]
		n := len(p) + len(w.p)
		if int(w.row.RawOff+w.at) != len(p) || n > cap(p) || &p[:n][len(p)] != &w.p[0] {
			return nil
		}
		p = p[:n]
	}
	if len(p) != int(rawLen) {
		return nil
	}
	return p
}

// find returns which chunk a row means, or -1. Row and frame must mean the same chunk.
func (f *frame) find(row *chunkRow) int {
	for i := range f.chunks {
		t := &f.chunks[i]
		if t.RawOff == row.RawOff && t.RawLen == row.RawLen && [16]byte(t.Hash[:16]) == row.Hash {
			return i
		}
	}
	return -1
}

// decode checks the checksums of a stored frame and decodes it into memory of its own.
func (t *frameTools) decode(stored []byte, id block.SegmentID, off uint32) (*frame, error) {
	h, err := segment.ParseFrame(stored)
	if err == nil {
		err = t.keys.open(&h, id, 0, off, t.dec)
	}
	if err != nil {
		return nil, fmt.Errorf("segment %06x at %d: %w", id, off, err)
	}
	raw, err := h.Decode(nil, t.dec)
	if err != nil {
		return nil, fmt.Errorf("segment %06x at %d: %w", id, off, err)
	}
	return &frame{raw: raw, chunks: h.Chunks(nil)}, nil
}

// verify checks the hash of chunk i of a frame.
func (t *frameTools) verify(f *frame, i int, id block.SegmentID, off uint32) error {
	ch := &f.chunks[i]
	return t.check(f.raw[ch.RawOff:ch.RawOff+ch.RawLen], ch.Hash, id, off)
}

// check checks the hash of a chunk of the frame at off.
func (t *frameTools) check(raw []byte, want block.Hash, id block.SegmentID, off uint32) error {
	if got := t.hash.Sum(raw); got != want {
		return &block.CorruptError{Source: fmt.Sprintf("segment %06x", id), Offset: int64(off), Want: "chunk hash " + want.String(), Got: got.String()}
	}
	return nil
}
