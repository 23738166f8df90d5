package transfer

import (
	"encoding/binary"
	"hash/crc32"
	"io"
)

// Writer writes a stream. Not for use by several goroutines at once.
type Writer struct {
	w    io.Writer
	off  uint64 // where the next frame begins
	hole uint64 // bytes before off that read as zeroes and are in no frame yet
}

// NewWriter writes the header. sizeBytes may be UnknownSize.
func NewWriter(w io.Writer, sizeBytes uint64) (*Writer, error) {
	h := NewHeader(magic, version, sizeBytes)
	_, err := w.Write(h[:])
	return &Writer{w: w}, err
}

// Data writes the next len(p) bytes of the content. p is not kept.
func (w *Writer) Data(p []byte) error {
	if err := w.writeHole(); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(len(p), MaxPayload)
		err := w.frame(frame{kindData, uint32(n), w.off, uint64(n), crc32.Checksum(p[:n], castagnoli)}, p[:n])
		if err != nil {
			return err
		}
		p = p[n:]
		w.off += uint64(n)
	}
	return nil
}

// Hole says that the next length bytes read as zeroes. Holes that touch leave as one frame.
func (w *Writer) Hole(length uint64) {
	w.hole += length
	w.off += length
}

func (w *Writer) writeHole() error {
	if w.hole == 0 {
		return nil
	}
	err := w.frame(frame{kind: kindHole, off: w.off - w.hole, length: w.hole}, nil)
	w.hole = 0
	return err
}

// Offset is how many bytes of content were written.
func (w *Writer) Offset() uint64 { return w.off }

// End ends the stream: its content is complete.
func (w *Writer) End() error {
	if err := w.writeHole(); err != nil {
		return err
	}
	return w.frame(frame{kind: kindEnd, off: w.off}, nil)
}

// Fail ends the stream with the reason why it is not complete.
func (w *Writer) Fail(reason string) error {
	if err := w.writeHole(); err != nil {
		return err
	}
	reason = reason[:min(len(reason), maxMessage)]
	sum := crc32.Checksum([]byte(reason), castagnoli)
	return w.frame(frame{kindFailed, uint32(len(reason)), w.off, 0, sum}, []byte(reason))
}

func (w *Writer) frame(f frame, payload []byte) error {
	var b Header
	le := binary.LittleEndian
	le.PutUint32(b[0:], uint32(f.kind))
	le.PutUint32(b[4:], f.payload)
	le.PutUint64(b[8:], f.off)
	le.PutUint64(b[16:], f.length)
	le.PutUint32(b[24:], f.sum)
	b.Seal()
	if _, err := w.w.Write(b[:]); err != nil {
		return err
	}
	if len(payload) == 0 {
		return nil
	}
	_, err := w.w.Write(payload)
	return err
}
