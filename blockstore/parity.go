package blockstore

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/secondcopy"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// stepParity makes or removes the sidecar of one sealed segment whose row does not say what is wanted, and reports whether there was one.
func (k *keeper) stepParity(ctx context.Context) (bool, error) {
	row, ok := k.unguarded()
	if !ok {
		return false, nil
	}
	if k.s.wantParity().None() {
		// The row first: one that names a sidecar which is not there would be damage.
		if err := k.setParity(&row, erasure.Shape{}); err != nil {
			return false, err
		}
		return true, k.s.tiers.DeleteParity(row.Placement[0])
	}
	if !k.room(erasure.SidecarSize(k.s.wantParity(), int64(row.Size))) {
		k.later()
		return false, nil
	}
	err := k.guard(ctx, &row)
	switch {
	case err == nil || ctx.Err() != nil:
		return true, nil
	case errors.Is(err, block.ErrNoSpace):
		k.later()
		return false, nil
	case errors.Is(err, block.ErrCorrupt), errors.Is(err, block.ErrNotFound):
		k.mark(row.ID, true)
		k.enqueue(row.ID)
		return true, nil
	}
	return false, fmt.Errorf("parity of segment %06x: %w", row.ID, err)
}

// unguarded returns a sealed segment whose sidecar is not as it shall be, the oldest first. It goes over all rows only when those it found the last time are done: while a store is guarded
// for the first time, each of its segments costs a look at one row.
func (k *keeper) unguarded() (best segmentRow, ok bool) {
	want := k.s.wantParity()
	if !want.None() && time.Now().Before(k.roomy) {
		return best, false
	}
	if len(k.todo) == 0 {
		k.findUnguarded()
	}
	for n := len(k.todo); n > 0; n-- {
		r, there := k.s.segments.get(k.todo[n-1])
		if there && k.lacks(&r) {
			return r, true
		}
		k.todo = k.todo[:n-1]
	}
	return best, false
}

// lacks reports whether a segment's sidecar is not as it shall be, and can be.
func (k *keeper) lacks(r *segmentRow) bool {
	want := k.s.wantParity()
	if r.State != segmentSealed || r.Parity == want {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return want.None() || !k.mu.unsound[r.ID]
}

func (k *keeper) findUnguarded() {
	t := &k.s.segments
	t.mu.RLock()
	for id, r := range t.rows {
		if r.State == segmentSealed && r.Parity != k.s.wantParity() {
			k.todo = append(k.todo, id)
		}
	}
	t.mu.RUnlock()
	slices.SortFunc(k.todo, func(a, b block.SegmentID) int { return cmp.Compare(b, a) })
}

// mark remembers whether a segment is known to be damaged, so that no sidecar is made of what is wrong.
func (k *keeper) mark(id block.SegmentID, unsound bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if unsound {
		k.mu.unsound[id] = true
	} else {
		delete(k.mu.unsound, id)
	}
}

// guard makes the sidecar of a segment and notes it in its row.
func (k *keeper) guard(ctx context.Context, row *segmentRow) error {
	s, shape := k.s, k.s.wantParity()
	if !row.Parity.None() {
		// Another shape. While the file changes the row names none, so that it never says something else than the file.
		if err := k.setParity(row, erasure.Shape{}); err != nil {
			return err
		}
	}
	p := row.Placement[0]
	src, err := s.tiers.OpenCopy(p)
	if err != nil {
		return err
	}
	defer src.Close()
	id, sums, err := s.sound(ctx, src, row, k.pace.wait)
	if err != nil {
		return err
	}
	c, err := k.coderFor(shape)
	if err != nil {
		return err
	}
	file, err := s.tiers.ReplaceParity(p)
	if err != nil {
		return err
	}
	defer file.Discard()
	if err := c.Encode(ctx, src, id, sums, &appendTo{w: file}, k.pace.wait); err != nil {
		return err
	}
	if err := s.needFeature(incompatParity); err != nil {
		return err
	}
	if err := file.Commit(); err != nil {
		return err
	}
	s.at(afterSidecar)
	k.counts.written.Add(erasure.SidecarSize(shape, int64(row.Size)))
	return k.setParity(row, shape)
}

// setParity notes the shape of a segment's sidecar. If the segment went meanwhile, its sidecar goes too.
func (k *keeper) setParity(row *segmentRow, shape erasure.Shape) error {
	s := k.s
	m := s.beginMeta()
	now, ok := s.segments.get(row.ID)
	if !ok || now.Generation != row.Generation {
		m.abort()
		return s.tiers.DeleteParity(row.Placement[0])
	}
	now.Parity = shape
	m.segs[row.ID] = &now
	return m.commit()
}

// sound reads a sealed segment from front to back and returns its identity and the checksums of its columns, or block.ErrCorrupt when any of its own checksums
// says that it is not what was sealed.
func (s *Store) sound(ctx context.Context, r tiers.Reader, row *segmentRow, pace erasure.Pace) (erasure.Identity, []uint32, error) {
	id := s.identity(row)
	size, err := r.Size()
	if err != nil {
		return id, nil, err
	}
	if size != int64(row.Size) {
		return id, nil, corruptSegment(row, int64(min(uint64(size), row.Size)), fmt.Sprintf("%d B", row.Size), fmt.Sprintf("%d B", size))
	}
	sums, err := s.soundBytes(ctx, r, row, &id, pace)
	return id, sums, err
}

func (s *Store) soundBytes(ctx context.Context, r io.ReaderAt, row *segmentRow, id *erasure.Identity, pace erasure.Pace) ([]uint32, error) {
	size := int64(row.Size)
	if _, err := segment.CheckHeader(r, size, id.StoreID, row.ID, row.Generation); err != nil {
		return nil, err
	}
	footer, err := segment.ReadFooter(r, size)
	if err != nil {
		return nil, err
	}
	if footer.StoreID != id.StoreID || footer.ID != row.ID || footer.Generation != row.Generation {
		return nil, corruptSegment(row, size, "its own footer", "that of "+footer.Meta.String())
	}
	if _, err := segment.ReadDirectory(r, &footer); err != nil {
		return nil, err
	}
	if id.FooterCRC, err = footerCRC(r, size); err != nil {
		return nil, err
	}
	// Header and frames have one checksum; directory and footer have theirs; what lies between is zeroes.
	at, crc, padding := int64(0), uint32(0), true
	zeroFrom, zeroTo := int64(footer.DirOff)+int64(footer.DirLen), size-segmentFooterSize
	sums, err := erasure.Sums(ctx, r, size, pace, func(b []byte) {
		if n := min(int64(len(b)), int64(footer.DirOff)-at); n > 0 {
			crc = crc32.Update(crc, castagnoli, b[:n])
		}
		lo, hi := max(zeroFrom, at), min(zeroTo, at+int64(len(b)))
		for i := lo; i < hi; i++ {
			padding = padding && b[i-at] == 0
		}
		at += int64(len(b))
	})
	switch {
	case err != nil:
		if ctx.Err() == nil { // of the device, not of the pace
			err = corruptSegment(row, at, "readable bytes", err.Error())
		}
		return nil, err
	case crc != footer.DataCRC:
		return nil, corruptSegment(row, 0, fmt.Sprintf("crc %08x of header and frames", footer.DataCRC), fmt.Sprintf("%08x", crc))
	case !padding:
		return nil, corruptSegment(row, zeroFrom, "zeroes between directory and footer", "other bytes")
	}
	return sums, nil
}

func corruptSegment(row *segmentRow, off int64, want, got string) error {
	return &block.CorruptError{Source: "segment " + row.Placement[0].Key, Offset: off, Want: want, Got: got}
}

// identity is what the sidecar of a segment must name; the footer's checksum is not known yet.
func (s *Store) identity(row *segmentRow) erasure.Identity {
	return erasure.Identity{StoreID: s.super.StoreID, Segment: row.ID, Generation: row.Generation, SizeBytes: int64(row.Size)}
}

func footerCRC(r io.ReaderAt, size int64) (uint32, error) {
	var b [4]byte
	if n, err := r.ReadAt(b[:], size-4); n < 4 {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b[:]), nil
}

// segmentFooterSize is the length of a segment's footer (docs/format/segment.md).
const segmentFooterSize = 256

// appendTo writes one piece behind the other.
type appendTo struct {
	w   io.WriterAt
	off int64
}

// Write implements io.Writer.
func (a *appendTo) Write(p []byte) (int, error) {
	n, err := a.w.WriteAt(p, a.off)
	a.off += int64(n)
	return n, err
}

// guarded is an open segment with its sidecar.
type guarded struct {
	src  tiers.Reader
	par  tiers.Reader
	side *erasure.Sidecar
}

func (g *guarded) close() {
	if g.src != nil {
		_ = g.src.Close()
	}
	if g.par != nil {
		_ = g.par.Close()
	}
}

// bestReader reads a segment with the help of its parity, a frame that has a second copy from that, and the rest as it is.
type bestReader struct {
	g   *guarded
	k   *keeper
	row *segmentRow
}

// ReadAt implements io.ReaderAt.
func (b bestReader) ReadAt(p []byte, off int64) (int, error) {
	if b.g.side != nil {
		if _, err := b.g.side.ReadAt(b.g.src, p, off); err == nil {
			return len(p), nil
		}
	}
	if b.k.seconds.read(p, secondcopy.Place{Segment: b.row.ID, Generation: b.row.Generation, Off: uint32(off), Len: uint32(len(p))}) {
		return len(p), nil
	}
	return b.g.src.ReadAt(p, off)
}

// noFile is a segment whose file is gone.
type noFile struct{ tiers.Reader }

func (noFile) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }
func (noFile) Size() (int64, error)              { return 0, nil }
func (noFile) Close() error                      { return nil }

// openGuarded opens a segment and its sidecar. side is nil, and the error says why, when there is none that can be used; src is there all the same.
func (s *Store) openGuarded(row *segmentRow) (guarded, error) {
	var g guarded
	var err error
	if g.src, err = s.tiers.OpenCopy(row.Placement[0]); err != nil {
		g.src = noFile{}
		if !errors.Is(err, block.ErrNotFound) {
			return g, err
		}
	}
	if g.par, err = s.tiers.OpenParity(row.Placement[0]); err != nil {
		return g, err
	}
	id := s.identity(row)
	if f, err := segment.ReadFooter(g.src, int64(row.Size)); err == nil && f.StoreID == id.StoreID && f.ID == row.ID && f.Generation == row.Generation {
		// A footer that is whole says which sidecar is the right one; one that is damaged, or that of another file, does not.
		if id.FooterCRC, err = footerCRC(g.src, int64(row.Size)); err != nil {
			return g, err
		}
	}
	size, err := g.par.Size()
	if err == nil {
		g.side, err = erasure.Open(g.par, size, id)
	}
	return g, err
}
