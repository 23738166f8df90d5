package segment

import (
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// UpdateFile is an existing segment file that Reseal may write into.
type UpdateFile interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Reseal seals a segment that a crash left open. size is the file's length, committed the length up to which frames are referenced: bytes behind
// it are replaced by directory, zeroes and footer, so that the footer ends the file without a truncation, which not every file system here offers.
// It checks header and frames first and changes nothing when one of them is bad. The result is durable. A crash during Reseal leaves the
// committed bytes as they are: repeat it with the same committed.
func Reseal(f UpdateFile, size int64, meta Meta, committed uint32, epoch uint64) (Footer, error) {
	if committed < HeaderSize || int64(committed) > min(size, SegmentSize) {
		return Footer{}, meta.corrupt(int64(committed), "committed bytes inside the file", fmt.Sprintf("%d of %d B", committed, size))
	}
	found, err := CheckHeader(f, size, meta.StoreID, meta.ID, meta.Generation)
	if err != nil {
		return Footer{}, fmt.Errorf("reseal: %w", err)
	}
	found.SealEpoch = epoch
	var dir dirBuilder
	if _, err := ScanFrames(f, HeaderSize, committed, func(off uint32, fr *Frame) error {
		dir.add(off, fr)
		return nil
	}); err != nil {
		return Footer{}, fmt.Errorf("reseal %v: %w", &meta, err)
	}
	if dir.footer.DataCRC, err = checksum(f, committed); err != nil {
		return Footer{}, fmt.Errorf("reseal %v: %w", &meta, err)
	}
	tail, footer := dir.finish(found, committed, size)
	if int64(committed)+int64(len(tail)) > SegmentSize {
		return Footer{}, fmt.Errorf("reseal %v to %d B: %w", &meta, int64(committed)+int64(len(tail)), ErrFull)
	}
	if _, err := f.WriteAt(tail, int64(committed)); err != nil {
		return Footer{}, fmt.Errorf("reseal %v: %w", &meta, err)
	}
	if err := f.Sync(); err != nil {
		return Footer{}, fmt.Errorf("sync resealed %v: %w", &meta, err)
	}
	return footer, nil
}

// checksum returns the CRC32C of the first n bytes.
func checksum(r io.ReaderAt, n uint32) (uint32, error) {
	h := crc32.New(castagnoli)
	got, err := io.CopyBuffer(h, io.NewSectionReader(r, 0, int64(n)), make([]byte, 256<<10))
	if err == nil && got != int64(n) {
		err = &block.CorruptError{Source: "segment", Offset: got, Want: fmt.Sprintf("%d B", n), Got: fmt.Sprintf("%d B", got)}
	}
	return h.Sum32(), err
}

// Check reads a whole sealed segment of size bytes and checks header, frames, directory, padding and footer, and that they agree. It decodes no payload and
// knows no chunk hashes. A mover calls it on a new copy before it lets the old one go.
func Check(r io.ReaderAt, size int64) (Footer, error) {
	footer, err := ReadFooter(r, size)
	if err != nil {
		return Footer{}, err
	}
	if _, err := CheckHeader(r, size, footer.StoreID, footer.ID, footer.Generation); err != nil {
		return Footer{}, err
	}
	frames, err := ReadDirectory(r, &footer)
	if err != nil {
		return Footer{}, err
	}
	i := 0
	if _, err := ScanFrames(r, HeaderSize, footer.DirOff, func(off uint32, f *Frame) error {
		i++
		return checkEntry(&footer, frames, i-1, off, f)
	}); err != nil {
		return Footer{}, fmt.Errorf("check %v: %w", &footer.Meta, err)
	}
	crc, err := checksum(r, footer.DirOff)
	if err != nil {
		return Footer{}, fmt.Errorf("check %v: %w", &footer.Meta, err)
	}
	if crc != footer.DataCRC {
		return Footer{}, footer.corrupt(0, crcText(footer.DataCRC), crcText(crc))
	}
	return footer, checkPadding(r, &footer, size)
}

// checkEntry compares directory entry i with the frame that it is about.
func checkEntry(footer *Footer, frames []DirFrame, i int, off uint32, f *Frame) error {
	bad := func() error {
		return footer.corrupt(int64(off), fmt.Sprintf("frame %d as its directory entry says", i), "another one")
	}
	if i >= len(frames) {
		return bad()
	}
	e := &frames[i]
	if e.Off != off || e.Len != f.Size || e.RawLen != f.RawLen || len(e.Chunks) != f.NumChunks() {
		return bad()
	}
	for j, c := range f.Chunks(nil) {
		if d := e.Chunks[j]; d.ID != c.ID || d.Hash != [16]byte(c.Hash[:16]) || d.RawLen != c.RawLen {
			return bad()
		}
	}
	return nil
}

func checkPadding(r io.ReaderAt, footer *Footer, size int64) error {
	at := int64(footer.DirOff) + int64(footer.DirLen)
	pad := make([]byte, size-footerSize-at)
	if err := readAt(r, pad, at); err != nil {
		return err
	}
	if !isZero(pad) {
		return footer.corrupt(at, "zeroes between directory and footer", "other bytes")
	}
	return nil
}
