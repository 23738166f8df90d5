package segment

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// ErrFull is returned by Writer.Append when the frame, or its directory entry, would not fit any more: seal the segment and start another.
var ErrFull = errors.New("segment is full")

// writeBuffer is how many bytes a Writer collects before it writes by itself.
const writeBuffer = 1 << 20

// Sink is where a Writer puts a segment's bytes. Write appends; a Write that returned is visible to readers of the same file.
type Sink interface {
	io.Writer
	// Sync makes all written bytes, and the file's name, durable.
	Sync() error
}

// Writer appends frames to one new segment. It belongs to one goroutine. After an error of the sink every further call fails with it: what lies
// behind the last successful Sync is unknown.
type Writer struct {
	sink    Sink
	meta    Meta
	buf     []byte // bytes not yet written
	written uint32 // bytes that the sink took
	dir     dirBuilder
	sealed  bool
	err     error

	key     *Key   // nil: frames are not sealed
	frame   []byte // a sealed frame
	scratch []byte
}

// dirBuilder gathers a directory and what the footer says about it.
type dirBuilder struct {
	entries []byte
	footer  Footer
}

func (d *dirBuilder) add(off uint32, f *Frame) {
	d.entries = appendDirFrame(d.entries, off, f)
	d.footer.Frames++
	d.footer.Chunks += uint32(f.NumChunks())
	d.footer.RawBytes += uint64(f.RawLen)
	d.footer.StoredBytes += uint64(f.Size)
	d.footer.Codecs |= 1 << f.Codec
}

// finish returns directory, padding and footer of a segment whose frames end at end, for a file that will have at least minSize bytes.
func (d *dirBuilder) finish(meta Meta, end uint32, minSize int64) ([]byte, Footer) {
	f := &d.footer
	f.Meta = meta
	f.DirOff, f.DirLen, f.DirCRC = end, uint32(len(d.entries)), crc32.Checksum(d.entries, castagnoli)
	tail := d.entries
	if pad := minSize - int64(end) - int64(len(tail)) - footerSize; pad > 0 {
		tail = append(tail, make([]byte, pad)...)
	}
	tail = appendFooter(tail, f)
	f.fileSize = int64(end) + int64(len(tail))
	return tail, *f
}

// NewWriter writes the header of a new segment to sink, which must be empty.
func NewWriter(sink Sink, meta Meta) (*Writer, error) {
	return NewSealedWriter(sink, meta, nil)
}

// NewSealedWriter is NewWriter of a segment whose frames are sealed, unless key is nil: Append seals them.
func NewSealedWriter(sink Sink, meta Meta, key *Key) (*Writer, error) {
	if key != nil {
		meta.KeyID = key.id
	}
	if !meta.Class.valid() || meta.ID == 0 || (meta.KeyID != 0) != (key != nil) || meta.Salt != [32]byte{} {
		return nil, fmt.Errorf("new %v of %v: %w", &meta, meta.Class, block.ErrInvalid)
	}
	w := &Writer{sink: sink, meta: meta, key: key, buf: make([]byte, 0, writeBuffer+FrameRawTarget)}
	w.push(appendHeader(nil, &meta))
	return w, w.Flush()
}

// Meta returns the segment's identity.
func (w *Writer) Meta() Meta { return w.meta }

// Size returns the bytes appended so far, header included: the offset of the next frame. Directory and footer come on top.
func (w *Writer) Size() uint32 { return w.written + uint32(len(w.buf)) }

// Stats returns what the footer would say now: counts and bytes.
func (w *Writer) Stats() Footer { return w.dir.footer }

// Append takes one encoded frame, which it checks again: a bit that flipped in memory does not reach the disk as a valid frame. It
// returns the frame's offset in the segment. The frame is copied; it is readable and durable after Sync. A frame that does not fit is ErrFull,
// which leaves the writer usable; frames may be smaller, or the segment may be sealed.
func (w *Writer) Append(frame []byte) (off uint32, err error) {
	if err := w.usable(); err != nil {
		return 0, err
	}
	f, err := ParseFrame(frame)
	if err != nil {
		return 0, fmt.Errorf("append to %v: %w", &w.meta, err)
	}
	if f.KeyID != 0 {
		return 0, fmt.Errorf("append to %v: a sealed frame: %w", &w.meta, block.ErrInvalid)
	}
	if int(f.Size) != len(frame) {
		return 0, fmt.Errorf("append to %v: frame of %d B in %d B: %w", &w.meta, f.Size, len(frame), block.ErrInvalid)
	}
	off = w.Size()
	entries := len(w.dir.entries) + dirFrameSize + f.NumChunks()*dirChunkSize
	if int64(off)+int64(f.Size)+int64(entries)+footerSize > SegmentSize {
		return 0, ErrFull
	}
	if len(w.buf) > 0 && len(w.buf)+len(frame) > writeBuffer {
		if err := w.Flush(); err != nil {
			return 0, err
		}
	}
	if w.key != nil {
		w.frame = append(w.frame[:0], frame...)
		w.scratch = w.key.seal(w.frame, off, w.scratch)
		frame = w.frame
	}
	w.push(frame)
	w.dir.add(off, &f)
	return off, nil
}

func (w *Writer) push(b []byte) {
	w.dir.footer.DataCRC = crc32.Update(w.dir.footer.DataCRC, castagnoli, b)
	w.buf = append(w.buf, b...)
}

// Flush hands what was appended to the sink. Readers find it after Sync.
func (w *Writer) Flush() error {
	if err := w.usable(); err != nil || len(w.buf) == 0 {
		return err
	}
	if n, err := w.sink.Write(w.buf); err != nil || n != len(w.buf) {
		return w.fail("write to", errors.Join(err, shortWrite(n, len(w.buf))))
	}
	w.written += uint32(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}

// Sync flushes, and makes all appended frames durable.
func (w *Writer) Sync() error {
	if err := w.Flush(); err != nil {
		return err
	}
	if err := w.sink.Sync(); err != nil {
		return w.fail("sync", err)
	}
	return nil
}

// Seal writes directory and footer and makes the whole segment durable. epoch is the log sequence number that the footer records. The writer accepts
// nothing afterwards. The caller closes the sink.
func (w *Writer) Seal(epoch uint64) (Footer, error) {
	if err := w.usable(); err != nil {
		return Footer{}, err
	}
	w.meta.SealEpoch = epoch
	tail, footer := w.dir.finish(w.meta, w.Size(), 0)
	w.buf = append(w.buf, tail...)
	if err := w.Sync(); err != nil {
		return Footer{}, err
	}
	w.sealed = true
	return footer, nil
}

func (w *Writer) usable() error {
	if w.sealed {
		return fmt.Errorf("%v is sealed: %w", &w.meta, block.ErrClosed)
	}
	return w.err
}

func (w *Writer) fail(verb string, err error) error {
	w.err = fmt.Errorf("%s %v: %w", verb, &w.meta, err)
	return w.err
}

func shortWrite(n, want int) error {
	if n != want {
		return io.ErrShortWrite
	}
	return nil
}
