package live

import (
	"bytes"
	"context"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// device is an open volume whose content is still coming, as clients see it.
type device struct {
	Device
	r *Restore
}

// Wrap returns a device that waits for what a client reads and has not come yet. Closing it closes d.
func (r *Restore) Wrap(d Device) Device { return device{d, r} }

// done reports that the engine's device needs nobody before it any more.
func (d device) done() bool { return d.r.complete.Load() }

// TryReadAt implements nbd.Device.
func (d device) TryReadAt(p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	if d.done() {
		return d.Device.TryReadAt(p, off, holes)
	}
	var had come
	d.r.look(&had, off/block.Size*block.Size, uint64(len(p))+block.Size)
	got, err := d.Device.TryReadAt(p, off, holes[len(holes):])
	if err != nil {
		return holes, err
	}
	for at := 0; at < len(p); { // pieces of blocks; of a part that is zero it cannot be said whether its block is
		n := min(len(p)-at, int(block.Size-(off+uint64(at))%block.Size))
		if isZero(p[at:at+n]) && !had.has(off+uint64(at)) {
			return holes, nbd.ErrLongWait
		}
		at += n
	}
	return appendHoles(holes, got), nil
}

// ReadAt implements nbd.Device. It waits until what it reads has come.
func (d device) ReadAt(ctx context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	if d.done() {
		return d.Device.ReadAt(ctx, p, off, holes)
	}
	for len(p) > 0 {
		in, rest := off%block.Size, d.Size()-off
		var err error
		switch n := uint64(len(p)); {
		case in == 0 && (n%block.Size == 0 || n == rest):
			return d.blocks(ctx, p, off, holes)
		case in == 0 && n > block.Size:
			n -= n % block.Size
			holes, err = d.blocks(ctx, p[:n], off, holes)
			p, off = p[n:], off+n
		default:
			n = min(n, block.Size-in)
			holes, err = d.part(ctx, p[:n], off, holes)
			p, off = p[n:], off+n
		}
		if err != nil {
			return holes, err
		}
	}
	return holes, nil
}

// blocks reads whole blocks.
func (d device) blocks(ctx context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	var got []block.Range
	for {
		var had come
		d.r.look(&had, off, uint64(len(p)))
		var err error
		if got, err = d.Device.ReadAt(ctx, p, off, got[:0]); err != nil {
			return holes, err
		}
		missing := had.missing(p, off)
		if len(missing) == 0 {
			return appendHoles(holes, got), nil
		}
		if err := d.r.fetch(ctx, missing); err != nil {
			return holes, err
		}
	}
}

// part reads a part of a block. The block is read as a whole, since zeroes in a part of it do not say that all of it is zero.
func (d device) part(ctx context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	whole := make([]byte, block.Size)
	first := off / block.Size * block.Size
	whole = whole[:min(block.Size, d.Size()-first)]
	got, err := d.blocks(ctx, whole, first, nil)
	if err != nil {
		return holes, err
	}
	copy(p, whole[off-first:])
	if len(got) == 1 && got[0].Len == uint64(len(whole)) {
		return appendHoles(holes, []block.Range{{Off: off, Len: uint64(len(p))}}), nil
	}
	return holes, nil
}

// appendHoles joins the first hole to the last one there if they touch.
func appendHoles(holes, more []block.Range) []block.Range {
	if k := len(holes); k > 0 && len(more) > 0 && holes[k-1].End() == more[0].Off {
		holes[k-1].Len += more[0].Len
		more = more[1:]
	}
	return append(holes, more...)
}

// TryWrite implements nbd.Device.
func (d device) TryWrite(batch []nbd.Write, fua bool) error {
	if d.done() {
		return d.Device.TryWrite(batch, fua)
	}
	if fua {
		return block.ErrWouldBlock
	}
	if parts, marks := d.sort(batch); len(parts) > 0 {
		return nbd.ErrLongWait
	} else if len(marks) > 0 {
		return block.ErrWouldBlock
	}
	release, ok := d.r.claims.try(rangesOf(batch))
	if !ok {
		return block.ErrWouldBlock
	}
	defer release()
	return d.Device.TryWrite(batch, false)
}

// Write implements nbd.Device. It waits until blocks have come of which it writes a part, and for nothing else that has to come.
func (d device) Write(ctx context.Context, batch []nbd.Write, fua bool) error {
	if d.done() {
		return d.Device.Write(ctx, batch, fua)
	}
	parts, marks := d.sort(batch)
	for _, p := range parts {
		if err := d.await(ctx, p); err != nil {
			return err
		}
	}
	release, err := d.r.claims.take(ctx, false, rangesOf(batch)...)
	if err != nil {
		return err
	}
	defer release()
	if err := d.r.mark(ctx, append(marks, parts...)); err != nil {
		return err
	}
	return d.Device.Write(ctx, batch, fua)
}

// sort returns the blocks of which a batch writes a part, and those that it writes zeroes to.
func (d device) sort(batch []nbd.Write) (parts, zeroes []block.Range) {
	size := d.Size()
	for _, w := range batch {
		for at := 0; at < len(w.Data); {
			off := w.Off + uint64(at)
			n := min(len(w.Data)-at, int(block.Size-off%block.Size))
			r := outward(block.Range{Off: off, Len: uint64(n)})
			switch piece := w.Data[at : at+n]; {
			case uint64(n) < r.Len && off+uint64(n) != size, off%block.Size != 0:
				parts = append(parts, r)
			case !isZero(piece):
			case len(zeroes) > 0 && zeroes[len(zeroes)-1].End() == off:
				zeroes[len(zeroes)-1].Len += r.Len
			default:
				zeroes = append(zeroes, r)
			}
			at += n
		}
	}
	return parts, zeroes
}

// await waits until a block has come.
func (d device) await(ctx context.Context, r block.Range) error {
	r.Len = min(r.Len, d.Size()-r.Off)
	_, err := d.blocks(ctx, make([]byte, r.Len), r.Off, nil)
	return err
}

// Trim implements nbd.Device.
func (d device) Trim(ctx context.Context, r block.Range, fua bool) error {
	if d.done() {
		return d.Device.Trim(ctx, r, fua)
	}
	whole := inward(r, d.Size())
	if whole.Len == 0 {
		return d.Device.Trim(ctx, r, fua)
	}
	release, err := d.r.claims.take(ctx, false, outward(r))
	if err != nil {
		return err
	}
	defer release()
	if err := d.r.mark(ctx, []block.Range{whole}); err != nil {
		return err
	}
	return d.Device.Trim(ctx, r, fua)
}

// Zero implements nbd.Device. It waits until the blocks at the ends have come, if they are not zeroed as a whole.
func (d device) Zero(ctx context.Context, r block.Range, noHole, fua bool) error {
	if d.done() || r.Len == 0 {
		return d.Device.Zero(ctx, r, noHole, fua)
	}
	all, size := outward(r), d.Size()
	if all.Off < r.Off {
		if err := d.await(ctx, block.Range{Off: all.Off, Len: block.Size}); err != nil {
			return err
		}
	}
	if last := all.End() - block.Size; r.End() < min(all.End(), size) && (last > all.Off || all.Off == r.Off) {
		if err := d.await(ctx, block.Range{Off: last, Len: block.Size}); err != nil {
			return err
		}
	}
	release, err := d.r.claims.take(ctx, false, all)
	if err != nil {
		return err
	}
	defer release()
	if err := d.r.mark(ctx, []block.Range{all}); err != nil {
		return err
	}
	return d.Device.Zero(ctx, r, noHole, fua)
}

// statusPages bounds what is told by one call of Depths, in pages of marks.
const statusPages = 1024

// Depths is the engine's, but what has not come is told as data, which it may be.
func (d device) Depths(ctx context.Context, r block.Range, emit func(n uint64, depth uint32) bool) error {
	more := true
	for page := 0; page < statusPages && r.Len > 0 && more; page++ {
		if d.done() {
			return d.Device.Depths(ctx, r, emit)
		}
		window := block.Range{Off: r.Off, Len: min(r.Len, pageSpan-r.Off%pageSpan)}
		var had come
		d.r.look(&had, window.Off/block.Size*block.Size, window.Len+window.Off%block.Size)
		at := window.Off
		err := d.Device.Depths(ctx, window, func(n uint64, depth uint32) bool {
			n = min(n, window.End()-at)
			if depth != 0 {
				at += n
				more = emit(n, depth)
				return more
			}
			for end := at + n; at < end && more; {
				next := min(end, at/block.Size*block.Size+block.Size)
				is := had.has(at)
				for next < end && had.has(next) == is {
					next = min(end, next+block.Size)
				}
				depth := uint32(1)
				if is {
					depth = 0
				}
				more = emit(next-at, depth)
				at = next
			}
			return more
		})
		if err != nil {
			return err
		}
		if at == window.Off {
			return nil // it has worked long enough
		}
		r = block.Range{Off: at, Len: r.End() - at}
	}
	return nil
}

var zeroBlock [block.Size]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeroBlock[:len(p)]) }
