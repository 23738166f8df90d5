package history

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// A sealed file may have a sidecar with its parity, of the name NNNNNNNN.par (docs/format/history.md, parity.md). It takes the file as bytes: one sidecar for each 64 MiB of it, one behind the other in one file, each of which
// names the file, its part, the checksum of the file's header, which has a random salt, and that of its footer. So a sidecar of what had the name before, or was in it before it was thinned, says nothing about the file.

// These constants are part of the format and must not be changed.
const (
	sidecarSuffix = ".par"
	partSize      = 64 << 20 // bytes of a file that one sidecar covers
	// historyBit is set in the number that a sidecar has in the place of a segment's id: no segment has it.
	historyBit = 1 << 63
)

const (
	guardingSuffix = sidecarSuffix + ".tmp"
	mendingSuffix  = fileSuffix + ".mend"
)

// sidecarName is that of the sidecar of a file.
func sidecarName(id uint32) string {
	return strings.TrimSuffix(fileName(id), fileSuffix) + sidecarSuffix
}

// parseSidecarName is the inverse of sidecarName.
func parseSidecarName(name string) (uint32, bool) {
	digits, ok := strings.CutSuffix(name, sidecarSuffix)
	if !ok {
		return 0, false
	}
	return parseFileName(digits + fileSuffix)
}

// isLeftOver reports whether a name is that of something that was being made when a death came.
func isLeftOver(name string) bool {
	if isThinning(name) {
		return true
	}
	if digits, ok := strings.CutSuffix(name, guardingSuffix); ok {
		_, ok = parseFileName(digits + fileSuffix)
		return ok
	}
	digits, ok := strings.CutSuffix(name, mendingSuffix)
	_, file := parseFileName(digits + fileSuffix)
	return ok && file
}

// beside is the path of another file of the same id.
func beside(path, suffix string) string { return strings.TrimSuffix(path, fileSuffix) + suffix }

// bytesID names the bytes of a sealed file.
type bytesID struct {
	store block.UUID
	id    uint32 // of the file
	size  int64
	seed  uint32 // checksum of the header
	seal  uint32 // of the footer
}

// parts is how many sidecars cover the file.
func (b *bytesID) parts() int { return int((b.size + partSize - 1) / partSize) }

// partLen is how many bytes of the file part p has.
func (b *bytesID) partLen(p int) int64 { return min(partSize, b.size-int64(p)*partSize) }

// part is what the sidecar of a part names.
func (b *bytesID) part(p int) erasure.Identity {
	return erasure.Identity{StoreID: b.store, Segment: block.SegmentID(historyBit | uint64(b.id)<<32 | uint64(p)), Generation: b.seed, SizeBytes: b.partLen(p), FooterCRC: b.seal}
}

// SidecarSize is the length of the sidecar of a file of size bytes.
func SidecarSize(s erasure.Shape, size int64) (n int64) {
	for ; size > 0; size -= partSize {
		n += erasure.SidecarSize(s, min(partSize, size))
	}
	return n
}

// sidecar is what was read of a file's sidecar: whose it is, and the checksums of all columns. Parity is read from the file when it is needed, which is opened for that: few reads need it.
type sidecar struct {
	r     *sidecarFile
	of    bytesID
	shape erasure.Shape
	parts []*erasure.Sidecar // nil: of one nothing can be used
	why   error              // of the last one of these
}

// sidecarFile reads a file by its name. What has the name later is another sidecar at worst, whose columns do not fit the checksums.
type sidecarFile struct {
	fs   vfs.FS
	path string
	f    vfs.File // open while all of it is read; nil: each read opens it
}

// ReadAt implements io.ReaderAt.
func (s *sidecarFile) ReadAt(p []byte, off int64) (int, error) {
	f := s.f
	if f == nil {
		var err error
		if f, err = s.fs.Open(s.path); err != nil {
			return 0, err
		}
		defer f.Close()
	}
	return f.ReadAt(p, off)
}

// openSidecar reads the heads of a sidecar and what it belongs to, and leaves its file open until release. size is that of the file that it should belong to; 0: it is not known, and the sidecar tells.
func openSidecar(fs vfs.FS, path string, store block.UUID, id uint32, size int64) (*sidecar, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	sc := &sidecar{r: &sidecarFile{fs: fs, path: path, f: f}}
	if err := sc.load(store, id, size); err != nil {
		sc.release()
		return nil, fmt.Errorf("parity %s: %w", path, err)
	}
	return sc, nil
}

// release closes the file. The sidecar can still be used.
func (sc *sidecar) release() {
	if sc.r.f != nil {
		_ = sc.r.f.Close()
		sc.r.f = nil
	}
}

func (sc *sidecar) load(store block.UUID, id uint32, size int64) error {
	info, err := sc.r.f.Stat()
	if err != nil {
		return err
	}
	length := info.Size()
	got, shape, err := erasure.Identify(sc.r, length)
	if err != nil {
		return err
	}
	sc.shape = shape
	sc.of = bytesID{store: store, id: id, size: size, seed: got.Generation, seal: got.FooterCRC}
	full := erasure.SidecarSize(shape, partSize)
	if size == 0 {
		last := max(0, (length-1)/full)
		end, _, err := erasure.Identify(io.NewSectionReader(sc.r, last*full, length-last*full), length-last*full)
		if err != nil {
			return err
		}
		sc.of.size = last*partSize + end.SizeBytes
	}
	if part := uint64(got.Segment) & (1<<32 - 1); part >= uint64(sc.of.parts()) || got != sc.of.part(int(part)) {
		return &block.CorruptError{Source: sc.r.path, Want: fmt.Sprintf("parity of history file %08x of %d B, store %v", id, sc.of.size, store), Got: "that of " + got.String()}
	}
	for p := range sc.of.parts() {
		n := erasure.SidecarSize(shape, sc.of.partLen(p))
		part, err := erasure.Open(io.NewSectionReader(sc.r, int64(p)*full, n), n, sc.of.part(p))
		if err == nil && part.Shape() != shape {
			part, err = nil, &block.CorruptError{Source: sc.r.path, Offset: int64(p) * full, Want: "parity " + shape.String(), Got: part.Shape().String()}
		}
		if err != nil {
			sc.why = err
		}
		sc.parts = append(sc.parts, part)
	}
	return nil
}

// within is a part of a file.
func (sc *sidecar) within(src io.ReaderAt, p int) io.ReaderAt {
	return io.NewSectionReader(src, int64(p)*partSize, sc.of.partLen(p))
}

// readAt fills p with the bytes of the file at off, whatever is damaged of src, and returns how many columns were made anew for that. What parity does not reach is block.ErrCorrupt.
func (sc *sidecar) readAt(src io.ReaderAt, p []byte, off int64) (mended int, err error) {
	if off < 0 || off+int64(len(p)) > sc.of.size {
		return 0, io.ErrUnexpectedEOF
	}
	for len(p) > 0 {
		i := int(off / partSize)
		n := int(min(int64(len(p)), int64(i)*partSize+sc.of.partLen(i)-off))
		if sc.parts[i] == nil {
			return mended, sc.why
		}
		m, err := sc.parts[i].ReadAt(sc.within(src, i), p[:n], off-int64(i)*partSize)
		if err != nil {
			return mended, beyondParity(err, i)
		}
		mended, p, off = mended+m, p[n:], off+int64(n)
	}
	return mended, nil
}

// beyondParity gives an error of part p the offset in the file. Who knows the file names it.
func beyondParity(err error, p int) error {
	var c *block.CorruptError
	if errors.As(err, &c) {
		return &block.CorruptError{Offset: int64(p)*partSize + c.Offset, Want: c.Want, Got: c.Got + ", beyond parity"}
	}
	return err
}
