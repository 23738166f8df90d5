package history

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// Found is what a look at all bytes of a file found.
type Found struct {
	Sealed
	Columns []int64 // offsets of columns of 4 KiB that are, or were, damaged, as far as a sidecar could tell; ascending
	Lost    []int64 // of these, those that parity does not reach
	Mended  bool    // there was damage, and the file is whole again
	Spoilt  int     // columns and heads of the sidecar that are damaged
	Parity  error   // why the sidecar cannot be used, or not all of it; nil also where there is none
	Unsound error   // what is wrong with the file; nil: nothing
}

// Whole reports whether nothing is wrong with the file or its sidecar.
func (d *Found) Whole() bool {
	return len(d.Columns) == 0 && d.Spoilt == 0 && d.Parity == nil && d.Unsound == nil
}

// Check reads all of a file and its sidecar, from the device where that can be asked for, and says what is damaged. Of one without a sidecar its own checksums tell. An error is the end of ctx, block.ErrNotFound of a file that is gone, or what keeps this process from opening it now.
func (s *Set) Check(ctx context.Context, k FileKey, w *Work) (d Found, err error) {
	f, err := s.sealedFile(k)
	if err != nil {
		return d, err
	}
	src, err := s.take(f)
	if errors.Is(err, block.ErrCorrupt) {
		d.Sealed, _ = f.describe()
		d.Unsound = f.name(err)
		return d, nil
	}
	if err != nil {
		return d, f.name(err)
	}
	defer s.handles.put(f)
	_ = vfs.Uncache(src) // what lies in memory says nothing about the device; where it cannot be dropped, it is read
	sc := s.look(f, &d)
	if sc != nil {
		defer sc.release()
		_ = vfs.Uncache(sc.r.f)
		guarded, err := sc.verify(ctx, src, &d, w)
		if err != nil || guarded && len(d.Columns) == 0 {
			return d, err
		}
	}
	_, d.Unsound = f.sound(ctx, src, w.Pace)
	if ctx.Err() == nil && !d.Whole() {
		if err := s.whileThere(f, func() error { return nil }); errors.Is(err, block.ErrNotFound) { // what is being replaced loses its sidecar first
			return d, err
		}
	}
	return d, ctx.Err()
}

// look opens the sidecar of a file that was found to have one; nil if there is none that can be used.
func (s *Set) look(f *file, d *Found) *sidecar {
	d.Sealed, _ = f.describe()
	if d.Sidecar == 0 {
		return nil
	}
	sc, err := f.sidecar()
	if d.Parity = err; err != nil {
		return nil
	}
	d.Parity = sc.why
	return sc
}

// verify looks at all columns of a file and its sidecar, and reports whether it knows of all what they should be.
func (sc *sidecar) verify(ctx context.Context, src io.ReaderAt, d *Found, w *Work) (guarded bool, err error) {
	guarded = true
	for p, part := range sc.parts {
		if part == nil {
			guarded = false
			continue
		}
		found, err := part.Verify(ctx, sc.within(src, p), w.Pace)
		if err != nil {
			return false, err
		}
		d.Columns = append(d.Columns, offsets(found.Columns, p)...)
		d.Lost = append(d.Lost, offsets(found.Lost, p)...)
		d.Spoilt += found.ParityColumns + found.Heads
		guarded = guarded && found.Unguarded == 0
	}
	return guarded, nil
}

// offsets are where columns of a part lie in the file.
func offsets(columns []int, p int) (all []int64) {
	for _, c := range columns {
		all = append(all, int64(p)*partSize+int64(c)*erasure.ColumnSize)
	}
	return all
}

// Mend looks at all of a file as Check does, and puts a copy in its place in which everything is mended that parity reaches. The damaged file stays until the copy is durable and was read back; nobody who reads is disturbed. Found says what was left: with nothing lost, and room for the copy, nothing.
// A sidecar that is damaged, or that of something else, is given up if the file is sound, so that another one is made.
func (s *Set) Mend(ctx context.Context, k FileKey, w *Work) (d Found, err error) {
	f, err := s.sealedFile(k)
	if err != nil {
		return d, err
	}
	for range mendTries {
		d, err = s.mend(ctx, f, w)
		if err != nil || d.Unsound == nil || d.Sidecar == 0 || d.Parity != nil || len(d.Lost) > 0 {
			break
		} // else it was damaged between two looks
	}
	if err == nil && d.Unsound != nil {
		err = s.whileThere(f, func() error { return nil }) // what is being replaced loses its sidecar first
	}
	return d, err
}

// mendTries bounds the looks at a file that is damaged while it is looked at.
const mendTries = 3

func (s *Set) mend(ctx context.Context, f *file, w *Work) (d Found, err error) {
	src, err := s.take(f)
	if errors.Is(err, block.ErrCorrupt) {
		d.Sealed, _ = f.describe()
		d.Unsound = f.name(err)
		return d, nil
	}
	if err != nil {
		return d, f.name(err)
	}
	defer s.handles.put(f)
	known := f.guard.through.Load() != nil
	_ = vfs.Uncache(src)
	var failed error
	proved := false
	if sc := s.look(f, &d); sc != nil {
		defer sc.release()
		if _, err := sc.verify(ctx, src, &d, w); err != nil {
			return d, err
		}
		if len(d.Columns) > len(d.Lost) {
			fresh, whole, err := s.mendFile(ctx, f, src, sc, d.Lost, w)
			switch {
			case ctx.Err() != nil:
				return d, ctx.Err()
			case errors.Is(err, block.ErrNotFound):
				return d, err
			case err != nil:
				failed = err
			default:
				src, proved = fresh, whole
			}
		}
	}
	if !proved {
		if _, d.Unsound = f.sound(ctx, src, w.Pace); ctx.Err() != nil {
			return d, ctx.Err()
		}
	}
	if failed != nil {
		if d.Unsound == nil { // the damage lies where only parity knows what should be there
			d.Unsound = f.name(damaged("a column that fits the checksum in its parity", d.Columns[0]))
		}
		d.Parity = errors.Join(d.Parity, failed)
	}
	f.guard.mark(d.Unsound != nil)
	if d.Unsound != nil {
		return d, nil
	}
	d.Mended = proved || known || len(d.Columns) > 0 // a read that failed may have been one of a device that is well again
	f.guard.healed.Store(true)
	f.guard.through.Store(nil)
	if d.Spoilt > 0 || d.Parity != nil || len(d.Lost) > 0 { // what is lost and has no checksum of its own is nothing: between frames and index
		d.Mended, d.Parity, d.Lost = true, nil, nil
		return d, f.name(s.whileThere(f, f.unguard))
	}
	return d, nil
}

// mendFile replaces a file by its mended copy, and returns that, and whether all of the file's own checksums are right in it, as they have to be if nothing is lost.
func (s *Set) mendFile(ctx context.Context, f *file, src io.ReaderAt, sc *sidecar, lost []int64, w *Work) (fresh vfs.File, whole bool, err error) {
	if err := w.room(sc.of.size); err != nil {
		return nil, false, f.name(fmt.Errorf("mend it in a copy: %w", err))
	}
	c, err := w.Coder(sc.shape)
	if err != nil {
		return nil, false, err
	}
	path := beside(f.path, mendingSuffix)
	if fresh, err = vfs.Create(s.opts.FS, path); err != nil {
		return nil, false, f.name(fmt.Errorf("mend it in a copy: %w", err))
	}
	w.step(MendBegun)
	whole, err = sc.copyMended(ctx, src, fresh, lost, c, w)
	if err == nil && whole {
		_, err = f.sound(ctx, fresh, w.Pace)
	}
	if err == nil {
		w.step(MendWritten)
		err = s.whileThere(f, func() error {
			if err := s.opts.FS.Rename(path, f.path); err != nil {
				return err
			}
			s.handles.renew(f, fresh)
			w.step(MendNamed)
			if err := f.syncBeside(); err != nil { // after a power loss it may be damaged again, and is mended again
				f.ask()
			}
			return nil
		})
	}
	if err != nil {
		return nil, false, errors.Join(f.name(fmt.Errorf("mend it in a copy: %w", err)), fresh.Close(), ignoreMissing(s.opts.FS.Remove(path)))
	}
	w.step(MendDone)
	return fresh, whole, nil
}

// copyMended writes a mended copy durably, and reads it back: all columns but those that are lost pass. whole says that there are none of these, nor any that no checksum is known of.
func (sc *sidecar) copyMended(ctx context.Context, src io.ReaderAt, dst vfs.File, lost []int64, c *erasure.Coder, w *Work) (whole bool, err error) {
	for p, part := range sc.parts {
		at := int64(p) * partSize
		if part == nil {
			if err := copyPlain(ctx, src, dst, at, sc.of.partLen(p), w); err != nil {
				return false, err
			}
			continue
		}
		if _, err := part.Mend(ctx, sc.within(src, p), writeAt{dst, at}, c, w.Pace); err != nil {
			return false, err
		}
	}
	if err := vfs.DataSync(dst); err != nil {
		return false, err
	}
	_ = vfs.Uncache(dst)
	var again Found
	guarded, err := sc.verify(ctx, dst, &again, w)
	if err != nil {
		return false, err
	}
	for _, off := range again.Columns {
		if _, known := slices.BinarySearch(lost, off); !known {
			return false, &block.CorruptError{Source: "its mended copy", Offset: off, Want: "a mended column", Got: "another one when it was read back"}
		}
	}
	return guarded && len(again.Columns) == 0, nil
}

// copyPlain copies a part that has no sidecar which can be used. What cannot be read becomes zeroes.
func copyPlain(ctx context.Context, src io.ReaderAt, dst vfs.File, at, size int64, w *Work) error {
	buf := make([]byte, erasure.ColumnSize)
	for end := at + size; at < end; at += int64(len(buf)) {
		if err := w.Pace.Wait(ctx, 2*len(buf)); err != nil {
			return err
		}
		b := buf[:min(int64(len(buf)), end-at)]
		if n, _ := src.ReadAt(b, at); n < len(b) {
			clear(b)
		}
		if err := vfs.WriteVec(dst, [][]byte{b}, at); err != nil {
			return err
		}
	}
	return nil
}

// writeAt writes to a part of a file.
type writeAt struct {
	f  vfs.File
	at int64
}

// WriteAt implements io.WriterAt.
func (w writeAt) WriteAt(p []byte, off int64) (int, error) {
	if err := vfs.WriteVec(w.f, [][]byte{p}, w.at+off); err != nil {
		return 0, err
	}
	return len(p), nil
}
