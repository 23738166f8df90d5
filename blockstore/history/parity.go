package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// FileKey names a file of a volume's history.
type FileKey struct {
	Volume block.VolumeID
	ID     uint32
}

// Compare orders files by volume, and then as their history goes.
func (k FileKey) Compare(o FileKey) int {
	return cmp.Or(cmp.Compare(k.Volume, o.Volume), cmp.Compare(k.ID, o.ID))
}

// Sealed is a file that is sealed.
type Sealed struct {
	FileKey
	Path    string
	Bytes   int64
	Sidecar int64 // bytes of its sidecar; 0: it has none
	// Seed is the checksum of its header: a file that was thinned has the same key, and another one.
	Seed uint32
	// Unsound says that damage was found that was not mended: it gets no sidecar.
	Unsound bool
}

// Work is what an owner of the set does things to files with. They are for one goroutine at a time; files may be appended to, read, thinned and dropped meanwhile.
type Work struct {
	Pace  erasure.Pace
	Coder func(erasure.Shape) (*erasure.Coder, error)
	Room  func(bytes int64) bool // whether so many may be written; nil: they may
	Step  func(ParityStep)       // tests stop there; may be nil
}

// ParityStep is a place in the making of a sidecar, or of a mended copy.
type ParityStep uint8

// The steps, in their order.
const (
	SidecarBegun   ParityStep = iota + 1 // a file of another name is there, and nothing in it
	SidecarWritten                       // it is durable
	SidecarNamed                         // it has its name, which is not durable
	SidecarDone
	MendBegun   // a copy of another name is there, and nothing in it
	MendWritten // it is durable, and was read back
	MendNamed   // it has the name of the damaged file, which is not durable
	MendDone
)

func (w *Work) step(s ParityStep) {
	if w.Step != nil {
		w.Step(s)
	}
}

func (w *Work) room(n int64) error {
	if w.Room != nil && !w.Room(n) {
		return fmt.Errorf("no room for %d B: %w", n, block.ErrNoSpace)
	}
	return nil
}

// Sealed lists all files that are sealed, in their order.
func (s *Set) Sealed() (all []Sealed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.mu.files {
		if of, ok := f.describe(); ok {
			all = append(all, of)
		}
	}
	slices.SortFunc(all, func(a, b Sealed) int { return a.Compare(b.FileKey) })
	return all
}

func (f *file) describe() (Sealed, bool) {
	_, bytes, unsound := f.guard.get()
	f.mu.Lock()
	defer f.mu.Unlock()
	return Sealed{FileKey: FileKey{f.header.Volume, f.header.ID}, Path: f.path, Bytes: f.end, Sidecar: bytes, Seed: f.seed, Unsound: unsound}, f.sealed
}

// Asked returns the files that somebody met damage in since the last call.
func (s *Set) Asked() (all []FileKey) {
	if s.handles.asked.Swap(0) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.mu.files {
		if f.guard.asked.Swap(false) {
			all = append(all, FileKey{f.header.Volume, f.header.ID})
		}
	}
	return all
}

// InlineRepairs is how many reads were answered by parity.
func (s *Set) InlineRepairs() uint64 { return s.handles.inline.Load() }

// ParityBytes is what all sidecars take on disk.
func (s *Set) ParityBytes() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.mu.files {
		_, bytes, _ := f.guard.get()
		n += bytes
	}
	return n
}

// ParityBytes is what the stream's sidecars take on disk.
func (st *Stream) ParityBytes() (n int64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, f := range st.files {
		_, bytes, _ := f.guard.get()
		n += bytes
	}
	return n
}

// sealedFile returns a file, which nobody appends to any more.
func (s *Set) sealedFile(k FileKey) (*file, error) {
	s.mu.Lock()
	f := s.mu.files[k.ID]
	s.mu.Unlock()
	if f == nil || f.header.Volume != k.Volume || !f.isSealed() {
		return nil, fmt.Errorf("sealed history file %08x of volume %d: %w", k.ID, k.Volume, block.ErrNotFound)
	}
	return f, nil
}

// take opens a file to look at all of it, until it is put back. One that cannot be opened is block.ErrCorrupt, if that says something of the file; one that was dropped is block.ErrNotFound.
func (s *Set) take(f *file) (vfs.File, error) {
	src, err := s.handles.take(f)
	if mendable(err) {
		return nil, unreadable(0, err)
	}
	return src, gone(err)
}

// findSidecars takes note of the sidecars that lie beside the files of a stream, and removes those without a file. Whether they are the right ones is looked at later (Lacks).
func (st *Stream) findSidecars(names []string) error {
	fs := st.s.opts.FS
	for _, name := range names {
		id, ok := parseSidecarName(name)
		if !ok {
			continue
		}
		path := fs.PathJoin(st.s.dirOf(st.volume), name)
		i, found := slices.BinarySearchFunc(st.files, id, func(f *file, id uint32) int { return cmp.Compare(f.header.ID, id) })
		if !found || !st.files[i].sealed {
			if err := ignoreMissing(fs.Remove(path)); err != nil {
				return err
			}
			continue
		}
		info, err := fs.Stat(path)
		if err != nil && !vfs.IsNotExist(err) {
			return err
		}
		if err == nil {
			st.files[i].guard.set(erasure.Shape{}, info.Size())
		}
	}
	return nil
}

// Lacks finds a sealed file whose sidecar is not of a shape, and that is not known to be damaged, the first in their order; want none finds one that has a sidecar. It reads the heads of a sidecar once.
func (s *Set) Lacks(want erasure.Shape) (of Sealed, found bool) {
	var files []*file
	s.mu.Lock()
	for _, f := range s.mu.files {
		if shape, bytes, unsound := f.guard.get(); want.None() && bytes > 0 || !want.None() && !unsound && shape != want {
			files = append(files, f)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(files, func(a, b *file) int { return cmp.Compare(a.header.ID, b.header.ID) })
	for _, f := range files {
		if of, found = f.describe(); !found {
			continue
		}
		if shape, bytes, _ := f.guard.get(); !want.None() && bytes > 0 && shape.None() {
			if sc, err := f.sidecar(); err == nil {
				sc.release()
				if f.guard.set(sc.shape, bytes); sc.shape == want && sc.why == nil {
					continue
				}
			}
		}
		return of, true
	}
	return Sealed{}, false
}

// Unguard removes the sidecar of a file, durably.
func (s *Set) Unguard(k FileKey) error {
	f, err := s.sealedFile(k)
	if err != nil {
		return err
	}
	return f.name(s.whileThere(f, f.unguard))
}

// whileThere does something beside a file of a stream, unless that was replaced or dropped meanwhile: then it is block.ErrNotFound.
func (s *Set) whileThere(f *file, do func() error) error {
	st := s.Stream(f.header.Volume)
	if st == nil {
		return errGone
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if !slices.Contains(st.files, f) {
		return errGone
	}
	if st.unsure { // a power loss might bring back what the file has replaced, beside what is made for it
		if err := vfs.SyncDir(s.opts.FS, s.dirOf(st.volume)); err != nil {
			return err
		}
		st.unsure = false
	}
	return do()
}

// errGone says that a file was thinned or dropped.
var errGone = fmt.Errorf("it was thinned or dropped meanwhile: %w", block.ErrNotFound)

// Guard makes the sidecar of a file, which is durable when it returns, and returns its length in bytes. Only a file all of whose own checksums are right gets one: else it is block.ErrCorrupt, and the file counts as damaged. ErrNotFound says that it is gone, or another one, meanwhile.
//
// The sidecar is whole and durable under another name before it gets its own, so a death leaves what was there, or the new one.
func (s *Set) Guard(ctx context.Context, k FileKey, shape erasure.Shape, w *Work) (bytes int64, err error) {
	f, err := s.sealedFile(k)
	if err != nil {
		return 0, err
	}
	src, err := s.take(f)
	if err != nil {
		if errors.Is(err, block.ErrCorrupt) {
			f.guard.mark(true)
		}
		return 0, f.name(err)
	}
	defer s.handles.put(f)
	of := f.bytesID()
	if err := w.room(SidecarSize(shape, of.size)); err != nil {
		return 0, f.name(err)
	}
	sums, err := f.sound(ctx, src, w.Pace)
	if err != nil {
		if errors.Is(err, block.ErrCorrupt) {
			f.guard.mark(true)
		}
		return 0, err
	}
	path := beside(f.path, guardingSuffix)
	bytes, err = s.writeSidecar(ctx, &of, src, sums, path, shape, w)
	if err == nil {
		err = s.whileThere(f, func() error {
			if err := s.opts.FS.Rename(path, beside(f.path, sidecarSuffix)); err != nil {
				return err
			}
			f.guard.set(shape, bytes) // also if the next line fails: it is there
			w.step(SidecarNamed)
			return f.syncBeside()
		})
	}
	if err != nil {
		return 0, errors.Join(f.name(fmt.Errorf("make its parity: %w", err)), ignoreMissing(s.opts.FS.Remove(path)))
	}
	w.step(SidecarDone)
	return bytes, nil
}

// writeSidecar writes a sidecar of bytes that were found sound, durably.
func (s *Set) writeSidecar(ctx context.Context, of *bytesID, src io.ReaderAt, sums [][]uint32, path string, shape erasure.Shape, w *Work) (n int64, err error) {
	c, err := w.Coder(shape)
	if err != nil {
		return 0, err
	}
	out, err := vfs.Create(s.opts.FS, path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w.step(SidecarBegun)
	to := &appendTo{f: out}
	for p := range of.parts() {
		size := of.partLen(p)
		if err := c.Encode(ctx, io.NewSectionReader(src, int64(p)*partSize, size), of.part(p), sums[p], to, w.Pace); err != nil {
			return 0, err
		}
	}
	if err := vfs.DataSync(out); err != nil {
		return 0, err
	}
	w.step(SidecarWritten)
	return to.off, nil
}

// appendTo writes one piece behind the other.
type appendTo struct {
	f   vfs.File
	off int64
}

// Write implements io.Writer.
func (a *appendTo) Write(p []byte) (int, error) {
	if err := vfs.WriteVec(a.f, [][]byte{p}, a.off); err != nil {
		return 0, err
	}
	a.off += int64(len(p))
	return len(p), nil
}
